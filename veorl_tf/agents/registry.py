"""Algorithms, backbones and behaviour learners by name."""

from __future__ import annotations

import importlib

from veorl_tf.core.errors import UserError, nearest

AGENTS = {
    "dreamerv2": "veorl_tf.agents.dreamerv2:DreamerV2",
    "dreamerv3": "veorl_tf.agents.dreamerv3:DreamerV3",
    "veorl": "veorl_tf.agents.veorl:VeoRL",
}
BACKBONES = {
    "v2": "veorl_tf.agents.parts:V2",
    "v3": "veorl_tf.agents.parts:V3",
    "nature": "veorl_tf.agents.parts:Nature",
}
LEARNERS = {"imagined": "veorl_tf.agents.behavior:ImaginedActorCritic"}


def find(table: dict[str, str], key: str, name: str):
    """The class that `name` stands for in a table of this module; `key` is the configuration's."""
    if name not in table:
        raise UserError(f"--{key} {name}: unknown{nearest(name, table)}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def make_agent(config, action_space):
    """The agent that `config.agent` names, with freshly drawn weights."""
    return find(AGENTS, "agent", config.agent)(config, action_space)
