"""kill -9 at any moment costs time, and nothing else: the run ends as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from veorl_tf.core import checkpoint
from veorl_tf.core.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parent / "faulty.py")
SIGKILL = -signal.SIGKILL

# Where a whole run of VeoRL is killed, in the order in which it comes there.
PLACES = [
    ("in the midst of the configuration", "writing:config.yaml", 1),
    ("before what it was made with is written", "writing:versions.json", 1),
    ("while episodes are made", "veorl_tf.run.collect:save_episode", 3),
    ("in the midst of an episode's file", "writing:.npz", 2),
    ("when the recipe is written", "writing:recipe.json", 1),
    ("while a frame store is built", "veorl_tf.data.store:load_episode", 4),
    ("before the first update", "veorl_tf.agents.stage:Update.__call__", 1),
    ("in abstraction", "veorl_tf.agents.stage:Update.__call__", 3),
    ("in the midst of a checkpoint's archive", "writing:update-0-000000004.npz", 1),
    ("between archive and manifest", "writing:update-0-000000004.json", 1),
    ("between two stages", "writing:stage-abstraction.json", 1),
    ("while labels are computed", "veorl_tf.data.store:FrameStore.add_column", 2),
    ("in the world model's stage", "veorl_tf.agents.stage:Update.__call__", 6),
    ("while videos are made", "veorl_tf.core.metrics:Logger.video", 1),
    ("during validation", "veorl_tf.agents.stage:Update.evaluate", 6),
    ("during an evaluation", "envs.workers:SimulatorPool.step", 30),
    ("in the behaviour's stage", "veorl_tf.agents.stage:Update.__call__", 2),
    ("during the last evaluation", "envs.workers:SimulatorPool.step", 60),
    ("after the last evaluation", "veorl_tf.run.job:write_mp4", 2),
    ("during the export", "tensorflow.saved_model:save", 1),
    ("in the midst of the export", "writing:policy.json", 1),
    ("when the result is written", "writing:result.json", 1),
]


def start(place: str, count: int, argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, PROGRAM, place, str(count), *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def flags(root: Path, *more: str) -> list[str]:
    return [*more, "--datadir", str(root / "data"), "--logdir", str(root / "run")]


def whole(argv: list[str]) -> None:
    """Runs the command to its end."""
    process = start("nowhere", 0, argv)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output


def assert_same(one: Path, two: Path) -> None:
    """Weights, metrics, TensorBoard's scalars, the policy and the result of two runs are equal, bit
    for bit, but for what a clock measured."""
    assert not list(two.parent.rglob("*.tmp"))
    names = sorted(path.name for path in (one / "checkpoints").glob("stage-*.npz"))
    assert names and names == sorted(p.name for p in (two / "checkpoints").glob("stage-*.npz"))
    for name in names:
        arrays, others = (
            checkpoint.load(run / "checkpoints", name.removesuffix(".npz"))[0] for run in (one, two)
        )
        assert arrays.keys() == others.keys()
        for path, array in arrays.items():
            np.testing.assert_array_equal(array, others[path], err_msg=f"{name}: {path}")
    assert lines(one) == lines(two)
    assert scalars(one) == scalars(two)
    assert result(one) == result(two)
    variables = [variables_of(run / "policy") for run in (one, two)]
    assert variables[0] and variables[0] == variables[1]


def lines(run: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def scalars(run: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def result(run: Path) -> dict:
    found = json.loads((run / "result.json").read_text())
    passing = ("training_seconds", "date", "revision")
    return {key: value for key, value in found.items() if key not in passing}


def variables_of(policy: Path) -> list[bytes]:
    import tensorflow as tf

    return [v.numpy().tobytes() for v in tf.saved_model.load(str(policy)).agent_variables]


@pytest.mark.slow
def test_killed_at_every_place(tmp_path, faults):
    """A whole `debug` run, with data that it makes, on a real simulator."""
    argv = ["--configs", "metaworld", "veorl", "debug", "--precision", "float32"]
    whole(flags(tmp_path / "whole", *argv))
    killed = flags(tmp_path / "killed", *argv)
    for what, place, count in PLACES:
        process = start(place, count, killed)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == SIGKILL, f"{what}: {process.returncode}\n{output}"
        faults.append(("kill -9", what, "continued"))
    whole(killed)
    assert_same(tmp_path / "whole" / "run", tmp_path / "killed" / "run")
    episodes = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "data").rglob("*.npz")}
        for name in ("whole", "killed")
    ]
    assert episodes[0] and episodes[0] == episodes[1]
    faults.append(
        ("kill -9", f"{len(PLACES)} places: weights, metrics, policy, data", "bit for bit")
    )


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, faults):
    """By another process, whenever it likes."""
    argv = ["--configs", "metaworld", "dreamerv2", "debug", "--precision", "float32"]
    began = time.monotonic()
    whole(flags(tmp_path / "whole", *argv))
    takes = time.monotonic() - began
    killed, rng, kills = flags(tmp_path / "killed", *argv), random.Random(0), 0
    while kills < 8:
        process = start("nowhere", 0, killed)
        try:
            process.communicate(timeout=rng.uniform(0.2, 0.6) * takes)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode == 0:
            break  # it came to its end between the kills
        assert process.returncode == SIGKILL
        kills += 1
    whole(killed)
    assert kills >= 4
    assert_same(tmp_path / "whole" / "run", tmp_path / "killed" / "run")
    faults.append(("kill -9", f"{kills} random moments", "bit for bit"))


def test_killed_between_checkpoints(tmp_path, random_data):
    """The quick half: no simulator, two stages, two kills."""
    argv = ["--configs", "dreamerv2", "debug", "--precision", "float32"]
    argv += [f"--{k}={v}" for k, v in random_data.items() if k not in ("datadir", "source_videos")]
    whole(flags(tmp_path / "whole", *argv))
    killed = flags(tmp_path / "killed", *argv)
    for place, count in [
        ("writing:update-0-000000004.json", 1),
        ("writing:result.json", 1),
    ]:
        process = start(place, count, killed)
        output = process.communicate(timeout=600)[0]
        assert process.returncode == SIGKILL, output
    whole(killed)
    assert_same(tmp_path / "whole" / "run", tmp_path / "killed" / "run")
