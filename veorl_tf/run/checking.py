"""What a configuration must fulfil, looked at before any work. Every fault is one line that names
the flag."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError
from veorl_tf.core.flags import Request
from veorl_tf.core.places import expanded
from veorl_tf.core.values import show
from veorl_tf.run import datasets
from veorl_tf.run.directory import load_config
from veorl_tf.run.simulators import check_task

CHOICES = {
    "precision": ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    "compiler": ("auto", "graph", "xla"),
    "distribute": ("none", "mirrored", "multi_worker"),
    "v2.latent": ("gaussian", "categorical"),
    "v2.activation": ("elu", "relu", "silu"),
    "behavior.actor": ("trunc_normal", "normal"),
    "behavior.indexing": ("veorl", "dreamerv2", "dreamerv3"),
    "behavior.gradient": ("dynamics", "reinforce", "both", "auto"),
    "behavior.discount": ("mean", "mode"),
    "optimizer": ("adam", "laprop"),
    "data.reward": ("identity", "tanh"),
}
SEEDS = 2**31 - 1
MOST = 10**9 - 1  # of anything that is counted
LESS_THAN_ONE = r"(v3|nature|behavior)\.unimix|behavior\.return_rate|data\.validation"
MORE_THAN_ZERO = r"behavior\.slow_fraction"
# Whole keys: the lowest and the highest value. Of the rows that fit a key the first counts.
RANGES = {
    r"seed": (0, SEEDS),
    r"env\.(workers|action_repeat|time_limit)|action\.size": (1, MOST),
    r"data\.(batch|prefetch)": (1, MOST),
    r"data\.(length|long_length|source_length)|behavior\.horizon": (3, MOST),
    r"v3\.layers|(v2|nature)\.\w+_layers": (0, MOST),
    r"(v3|nature)\.classes": (2, MOST),
    r"(v3|nature)\.bins": (3, MOST),
    r"(v2|v3|nature)\.(deter|hidden|units|stoch|classes|depth|layers|blocks)": (1, MOST),
    r"veorl\.(codes|code_size|ban_units)": (1, MOST),
    r"behavior\.(gamma|lambda|mix|slow_fraction)|kl\.balance": (0, 1),
    LESS_THAN_ONE: (0, 1),
    r"behavior\.slow_every|log\.(eval|final)_episodes": (1, MOST),
    r"(model|actor|critic)\.eps": (1e-30, 1),  # what float32 can hold
    r"(model|actor|critic)\.decay": (0, 1),
    r"(model|actor|critic)\.\w+": (0, 1e30),
    r"(kl|scale|veorl|behavior|data)\..+": (0, 1e30),
    r"(stages|log)\..+|updates_per_call|max_skipped": (0, MOST),
}
SMALLEST_AGC = 1e-6
# What a flag on the command line needs another key to be, or it would do nothing.
NEEDS = {
    r"v2\.classes": ("v2.latent", ("categorical",)),
    r"kl\.(scale|balance)": ("backbone", ("v2",)),
    r"kl\.(dyn|rep)": ("backbone", ("v3", "nature")),
    r"behavior\.mix": ("behavior.gradient", ("both",)),
    r"behavior\.actor": ("action.discrete", (False,)),
    r"behavior\.unimix": ("action.discrete", (True,)),
}


def check_request(request: Request, blocks: Mapping[str, Mapping[str, Any]]) -> None:
    """Everything that can be known before data and nets are there. Raises UserError."""
    check(request.config)
    check_sizes(request, blocks)
    check_needs(request)


def check(config: Config) -> None:
    """A configuration, however it came to be."""
    check_values(config)
    check_parts(config)
    check_compiler(config)
    if config.fresh and config.distribute == "multi_worker":
        raise UserError(
            "--fresh does not fit --distribute multi_worker: each process would take a directory "
            "of its own; name a new --logdir"
        )
    if config.env.image_size != 64:
        raise UserError(f"--env.image_size {config.env.image_size}: the nets take 64")
    check_task(config)
    check_actions(config)
    datasets.data_root(config)  # can be named
    datasets.check_given(config)
    if config.init_from:
        load_config(expanded("--init_from", config.init_from))


def check_values(config: Config) -> None:
    """Each value by itself."""
    from veorl_tf.agents.registry import AGENTS, BACKBONES, LEARNERS

    flat = config.flat
    choices = {"agent": AGENTS, "backbone": BACKBONES, "behavior.learner": LEARNERS, **CHOICES}
    for key, valid in choices.items():
        if flat[key] not in valid:
            raise UserError(f"--{key} {flat[key]}: one of {', '.join(valid)}")
    for key, value in flat.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if math.isinf(value):
            raise UserError(f"--{key} {value}: a finite number")
        pattern = next((pattern for pattern in RANGES if re.fullmatch(pattern, key)), None)
        lowest, highest = RANGES.get(pattern, (-math.inf, math.inf))
        if value < lowest or (value == 0 and re.fullmatch(MORE_THAN_ZERO, key)):
            least = f"at least {lowest}" if value < lowest else "more than 0"
            raise UserError(f"--{key} {value}: {least}")
        if value > highest or (value == 1 and re.fullmatch(LESS_THAN_ONE, key)):
            most = f"at most {highest}" if value > highest else "less than 1"
            raise UserError(f"--{key} {value}: {most}")


def check_parts(config: Config) -> None:
    """Sizes that must fit each other, and what the behaviour learner is told."""
    flat = config.flat
    for key in ("v3.bins", "nature.bins"):
        if flat[key] % 2 == 0:
            raise UserError(f"--{key} {flat[key]}: an odd number, so that one bin stands for 0")
    if config.nature.deter % config.nature.blocks:
        raise UserError(
            f"--nature.deter {config.nature.deter}: a multiple of the {config.nature.blocks} blocks"
        )
    if 4 * config.nature.depth % config.nature.blocks:
        raise UserError(
            f"--nature.depth {config.nature.depth}: four times it must be a multiple of the "
            f"{config.nature.blocks} blocks"
        )
    for group in ("model", "actor", "critic"):
        if 0 < config[group].agc < SMALLEST_AGC:
            raise UserError(f"--{group}.agc {config[group].agc}: 0, or at least {SMALLEST_AGC}")
    keys = config.behavior
    if keys.replay_value and config.agent != "dreamerv3":
        raise UserError(
            f"--behavior.replay_value {keys.replay_value}: only --agent dreamerv3 learns from "
            f"stored sequences; it must be 0 for {config.agent}"
        )
    if keys.replay_value and keys.indexing != "dreamerv3":
        raise UserError(
            f"--behavior.replay_value {keys.replay_value} needs --behavior.indexing dreamerv3, "
            f"not {keys.indexing}"
        )


def check_actions(config: Config) -> None:
    """Those of a simulator are what they are."""
    if config.task == "none":
        return
    import envs

    if config.action.discrete:
        raise UserError(f"--action.discrete: the actions of {config.task} are continuous")
    if config.action.size != envs.ACTION_SIZE:
        raise UserError(
            f"--action.size {config.action.size}: those of {config.task} have {envs.ACTION_SIZE} "
            f"numbers"
        )


def check_sizes(request: Request, blocks: Mapping[str, Mapping[str, Any]]) -> None:
    """Of sizes that are asked for: they must be those of the backbone, or they would do nothing.

    A block that sets other keys too, a domain or a budget, may hold sizes of every backbone.
    """
    from veorl_tf.agents.registry import BACKBONES

    backbone = request.config.backbone
    others = set(BACKBONES) - {backbone}
    asked = {f"--configs {name}": set(blocks[name]) for name in request.names}
    asked |= {f"--{key}": {key.partition(".")[0]} for key, _ in request.overrides}
    for what, groups in asked.items():
        if groups and groups <= others:
            raise UserError(
                f"{what} sets sizes of {', '.join(sorted(groups))}, but the backbone is {backbone}"
            )


def check_needs(request: Request) -> None:
    """Flags that would do nothing."""
    flat = request.config.flat
    for key, _ in request.overrides:
        for pattern, (other, values) in NEEDS.items():
            if re.fullmatch(pattern, key) and flat[other] not in values:
                needed = " or ".join(map(show, values))
                raise UserError(
                    f"--{key} does nothing while --{other} is {show(flat[other])}; it needs "
                    f"{needed}"
                )


def check_compiler(config: Config) -> None:
    """Of the flags, and of the settled configuration: a run that goes on keeps its compiler."""
    if config.distribute != "none" and config.compiler == "xla":
        raise UserError(
            f"--compiler xla does not fit --distribute {config.distribute}: a program that XLA "
            f"compiles stays on one device, and so does a run that was begun with it"
        )
