"""A whole run from one configuration: data, training, evaluation, export, result."""

from __future__ import annotations

import json
import re
import shlex
import sys
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from veorl_tf.core.config import Config, load_blocks
from veorl_tf.core.files import atomic_write, sweep_leftovers
from veorl_tf.core.flags import parse_flags
from veorl_tf.core.interrupt import StopRequest, going_on
from veorl_tf.core.media import write_mp4
from veorl_tf.core.quiet import load_tensorflow
from veorl_tf.run.checking import check_compiler, check_request
from veorl_tf.run.directory import (
    RunDirectory,
    accept,
    open_run,
    owned,
    provenance,
    run_path,
    settle,
)

BLOCKS = Path(__file__).resolve().parents[2] / "configs.yaml"
RANDOM_EPISODES = 100
# What each of several processes may have of its own.
OWN = re.compile(
    r"logdir|datadir|target_dataset|source_videos|init_from|env\.workers|data\.prefetch"
)


def train(argv: Sequence[str]) -> int:
    """`train.py`: runs what the command line asks for; returns an exit code."""
    blocks, comments = load_blocks(BLOCKS)
    request = parse_flags(argv, blocks, comments)
    check_request(request, blocks)
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
        if replicas.chief:
            accept(directory, config)
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
    from veorl_tf.run.export import export

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
    export(training.agent, config, directory.policy, training.bounds)
    with atomic_write(directory.result, "w") as file:
        json.dump(result, file, indent=1)


def final_evaluation(training) -> dict:
    """The trained policy, a random one on the same first goals, and the data's own scores."""
    from veorl_tf.run.evaluate import AgentPolicy, Evaluator, random_policy

    config, directory = training.config, training.directory
    workers = config.env.workers
    with StopRequest(at_once=True):
        policy = AgentPolicy(training.agent, config.seed, workers, training.step)
        scores = training.evaluator.run(policy, config.log.final_episodes, 3)
        blind = {**training.evaluator.spec, "render": False}
        episodes = min(RANDOM_EPISODES, 5 * config.log.final_episodes)
        with Evaluator(blind, workers) as evaluator:
            action = training.agent.action_space
            blindly = random_policy(action.size, action.discrete, config.seed, workers)
            random = evaluator.run(blindly, episodes)
    summary = {f"evaluation/final_{k}": v for k, v in scores.summary().items()}
    training.logger.scalars(training.step, summary, training.stages[-1].name)
    sweep_leftovers(directory.videos)
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
