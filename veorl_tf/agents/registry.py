"""Algorithms by name."""

from __future__ import annotations

import importlib

from veorl_tf.core.errors import UserError, nearest

AGENTS = {
    "dreamerv2": "veorl_tf.agents.dreamerv2:DreamerV2",
    "veorl": "veorl_tf.agents.veorl:VeoRL",
}


def make_agent(config, action_space):
    """The agent that `config.agent` names, with freshly drawn weights."""
    if config.agent not in AGENTS:
        raise UserError(f"--agent {config.agent}: unknown{nearest(config.agent, AGENTS)}")
    module, name = AGENTS[config.agent].split(":")
    return getattr(importlib.import_module(module), name)(config, action_space)
