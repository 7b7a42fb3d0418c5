"""A whole run from one configuration: data, training, evaluation, export, result."""

from __future__ import annotations

import json
import re
import shlex
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.config import Config, load_blocks
from veorl_tf.core.errors import Interrupted, UserError
from veorl_tf.core.files import atomic_write
from veorl_tf.core.flags import Request, parse_flags
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.media import write_mp4
from veorl_tf.core.quiet import load_tensorflow
from veorl_tf.run import datasets
from veorl_tf.run.directory import (
    RunDirectory,
    load_config,
    open_run,
    owned,
    provenance,
    run_path,
    settle,
)
from veorl_tf.run.simulators import check_task

BLOCKS = Path(__file__).resolve().parents[2] / "configs.yaml"
RANDOM_EPISODES = 100
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
# What each of several processes may have of its own.
OWN = re.compile(
    r"logdir|datadir|target_dataset|source_videos|init_from|env\.workers|data\.prefetch"
)
GROUPS = ("model", "actor", "critic")  # of optimisers
LOWEST = {
    "updates_per_call": 0,
    "env.workers": 1,
    "data.batch": 1,
    "data.length": 3,
    "data.long_length": 3,
    "data.source_length": 3,
    "behavior.horizon": 3,
    "v2.deter": 1,
    "v2.hidden": 1,
    "v2.stoch": 1,
    "v2.classes": 1,
    "v2.depth": 1,
    "v2.units": 1,
    "v3.deter": 1,
    "v3.units": 1,
    "v3.depth": 1,
    "v3.layers": 0,
    "v3.stoch": 1,
    "v3.classes": 2,
    "v3.bins": 3,
    "nature.deter": 1,
    "nature.hidden": 1,
    "nature.units": 1,
    "nature.depth": 1,
    "nature.stoch": 1,
    "nature.classes": 2,
    "nature.blocks": 1,
    "nature.bins": 3,
    "veorl.codes": 1,
    "veorl.code_size": 1,
    "veorl.ban_units": 1,
    "veorl.bucket": 0,
    "nature.reward_layers": 0,
    "nature.discount_layers": 0,
    "nature.critic_layers": 0,
    "nature.actor_layers": 0,
    "behavior.slow_every": 1,
    "behavior.slow_pull": 0,
    "behavior.replay_value": 0,
    **{f"{group}.{key}": 0 for group in GROUPS for key in ("clip", "decay", "agc", "warmup")},
    "stages.abstraction.updates": 0,
    "stages.model.updates": 0,
    "stages.behavior.updates": 0,
    "stages.joint.updates": 0,
    "log.eval_episodes": 1,
    "log.final_episodes": 1,
}


def train(argv: Sequence[str]) -> int:
    """`train.py`: runs what the command line asks for; returns an exit code."""
    blocks, comments = load_blocks(BLOCKS)
    request = parse_flags(argv, blocks, comments)
    check(request.config)
    check_sizes(request, blocks)
    load_tensorflow(wake=request.config.distribute != "multi_worker")
    from veorl_tf.run.replicas import Replicas

    replicas = Replicas(request.config.distribute)
    directory = RunDirectory(run_path(request.config, request.names))
    again = f"with --logdir {directory.path} and without --fresh " * request.config.fresh
    with (
        replicas.together(),
        owned(directory) if replicas.chief else nullcontext(),
        going_on(f"the same command {again}goes on"),
    ):
        with replicas.chief_first():
            config = settle(request.config, directory)
            check_compiler(config)
            if replicas.chief:
                open_run(config, request.names, directory)
        replicas.require_same("the configuration", [fingerprint(config)])
        result = directory.finished()
        replicas.require_same("whether the run is finished", [result is not None])
        if result is None:
            run(config, directory, replicas=replicas)
            return 0
    print(f"{directory.path}: this run is finished. {outcome(result)}")
    print(where(directory))
    return 0


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """What an interruption says of how to go on."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.signum, how) from None


def check(config: Config) -> None:
    """Fails on what cannot work, before anything is written."""
    from veorl_tf.agents.registry import AGENTS, BACKBONES, LEARNERS

    choices = {
        "agent": AGENTS,
        "precision": PRECISIONS,
        "compiler": ("auto", "graph", "xla"),
        "distribute": ("none", "mirrored", "multi_worker"),
        "backbone": BACKBONES,
        "v2.latent": ("gaussian", "categorical"),
        "v2.activation": ("elu", "relu", "silu"),
        "behavior.learner": LEARNERS,
        "behavior.actor": ("trunc_normal", "normal"),
        "behavior.indexing": ("veorl", "dreamerv2", "dreamerv3"),
        "behavior.gradient": ("dynamics", "reinforce", "both", "auto"),
        "behavior.discount": ("mean", "mode"),
        "optimizer": ("adam", "laprop"),
        "data.reward": ("identity", "tanh"),
    }
    flat = config.flat
    for key, valid in choices.items():
        if flat[key] not in valid:
            raise UserError(f"--{key} {flat[key]}: one of {', '.join(valid)}")
    for key, lowest in LOWEST.items():
        if flat[key] < lowest:
            raise UserError(f"--{key} {flat[key]}: at least {lowest}")
    if not 0 <= config.data.validation < 1:
        raise UserError(f"--data.validation {config.data.validation}: at least 0, less than 1")
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
    datasets.check_given(config)
    if config.init_from:
        load_config(config.init_from)


def check_parts(config: Config) -> None:
    """Of the sizes of DreamerV3's parts, and of what its behaviour learner is told."""
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
    for key in ("v3.unimix", "nature.unimix", "behavior.unimix", "behavior.return_rate"):
        if not 0 <= flat[key] < 1:
            raise UserError(f"--{key} {flat[key]}: at least 0, less than 1")
    if not 0 < config.behavior.slow_fraction <= 1:
        raise UserError(
            f"--behavior.slow_fraction {config.behavior.slow_fraction}: more than 0, at most 1"
        )
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


def check_compiler(config: Config) -> None:
    """Of the flags, and of the settled configuration: a run that goes on keeps its compiler."""
    if config.distribute != "none" and config.compiler == "xla":
        raise UserError(
            f"--compiler xla does not fit --distribute {config.distribute}: a program that XLA "
            f"compiles stays on one device, and so does a run that was begun with it"
        )


def fingerprint(config: Config) -> int:
    """Of what several processes must have in common: all but what each has of its own."""
    common = {key: str(value) for key, value in config.flat.items() if not OWN.fullmatch(key)}
    return zlib.crc32(json.dumps(common, sort_keys=True).encode())


def run(config: Config, directory: RunDirectory, strict: bool = False, replicas=None) -> dict:
    """Trains, evaluates, exports; writes and returns the result. Of several processes (`replicas`)
    the first does what follows the training, and the others wait for it."""
    load_tensorflow()
    from veorl_tf.run.offline import OfflineTraining
    from veorl_tf.run.replicas import Replicas

    replicas = replicas or Replicas()
    print(f"run directory: {directory.path}", flush=True)
    with replicas.scope():
        training = OfflineTraining(config, directory, strict, replicas)
        try:
            training.run()
            with replicas.chief_first():
                if replicas.chief:
                    conclude(training)
        finally:
            training.close()
    if not replicas.chief:
        print("the run is finished; its result is where the first process runs")
        return {}
    result = directory.finished()
    print(outcome(result))
    print(where(directory))
    return result


def conclude(training) -> None:
    """Evaluates and exports what was trained; writes the result."""
    from veorl_tf.run.export import replace_export

    config, directory = training.config, training.directory
    result = provenance() | {
        "task": config.task,
        "agent": config.agent,
        "backbone": config.backbone,
        "seed": config.seed,
        "precision": config.precision,
        "compiler": config.compiler,
        "updates": training.step,
        "training_seconds": round(training.clock()),
    }
    if training.evaluator is not None:
        result |= final_evaluation(training)
    replace_export(training.agent, config, directory.policy, training.bounds)
    with atomic_write(directory.result, "w") as file:
        json.dump(result, file, indent=1)


def final_evaluation(training) -> dict:
    """The trained policy, a random one on the same first goals, and the data's own scores."""
    from veorl_tf.run.evaluate import Evaluator, agent_policy, random_policy

    config, directory = training.config, training.directory
    workers = config.env.workers
    with StopRequest() as stop:
        policy = agent_policy(training.agent, config.seed, workers)
        scores = training.evaluator.run(
            policy, config.log.final_episodes, 3, lambda: stop.requested
        )
        stop.raise_if_requested()
        blind = {**training.evaluator.spec, "render": False}
        episodes = min(RANDOM_EPISODES, 5 * config.log.final_episodes)
        with Evaluator(blind, workers) as evaluator:
            action = training.agent.action_space
            blindly = random_policy(action.size, action.discrete, config.seed, workers)
            random = evaluator.run(blindly, episodes, 0, lambda: stop.requested)
        stop.raise_if_requested()
    summary = {f"evaluation/final_{k}": v for k, v in scores.summary().items()}
    training.logger.scalars(training.step, summary, training.stages[-1].name)
    for i, frames in enumerate(scores.videos):
        write_mp4(directory.videos / f"episode-{i}.mp4", frames, fps=20)
    return {
        "policy": scores.summary(),
        "random": random.summary(),
        "dataset": dataset_scores(training.stores["target"]),
    }


def dataset_scores(store) -> dict:
    """Mean return and success of the episodes that were learnt from."""
    slices = [slice(a, a + n) for a, n in zip(store.episodes.starts, store.episodes.lengths)]
    returns = [float(store.arrays["reward"][s].sum()) for s in slices]
    success = [float(store.arrays["success"][s].max() > 0) for s in slices]
    return {
        "return": float(np.mean(returns)),
        "success": float(np.mean(success)),
        "episodes": len(slices),
    }


def outcome(result: dict) -> str:
    """The result in one line."""
    if "policy" not in result:
        return f"{result['updates']} updates; no simulator, so no evaluation"
    parts = []
    for name in ("policy", "random", "dataset"):
        row = result[name]
        parts.append(
            f"{name}: success {row['success']:.0%}, return {row['return']:.0f} "
            f"({row['episodes']} episodes)"
        )
    return "; ".join(parts)


def where(directory: RunDirectory) -> str:
    """Where the files of a finished run are."""
    videos = f"videos {directory.videos}, " if directory.videos.exists() else ""
    board = [str(Path(sys.executable).parent / "tensorboard"), "--logdir", str(directory.path)]
    return f"{videos}policy (SavedModel) {directory.policy}, logs: {shlex.join(board)}"
