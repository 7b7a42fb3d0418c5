"""`--distribute`: devices and processes that share batches give the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import TINY
from veorl_tf.core import checkpoint
from veorl_tf.core.errors import UserError
from veorl_tf.core.metrics import read_metrics
from veorl_tf.run import job
from veorl_tf.run.directory import load_weights
from veorl_tf.run.replicas import Replicas

PROGRAM = Path(__file__).with_name("distributed.py")
UPDATES = 3  # of every stage
RARELY = {"log.every": 3, "log.checkpoint_every": 0}  # so that a call may make several updates


def tiny(backbone: str) -> dict:
    """`TINY` without the sizes of other backbones, which a command line may not name."""
    others = {"v2", "v3", "nature"} - {backbone}
    left_out = {"v2.classes"}  # of categorical latents
    return {
        k: v for k, v in TINY.items() if k.partition(".")[0] not in others and k not in left_out
    }


@pytest.fixture(scope="module")
def flags(random_data):
    """`flags(logdir)`: a tiny run of VeoRL on random data, everything logged."""
    values = {
        **tiny("v2"),
        **random_data,
        "data.batch": 4,
        "stages.(abstraction|model|behavior).updates": UPDATES,
        "log.every": 1,
        "log.validation_every": 3,
        "log.video_every": 0,
        "log.checkpoint_every": 2,
    }

    def make(logdir: Path, **more) -> list[str]:
        chosen = values | {"logdir": logdir} | more
        pairs = [[f"--{key}", str(value)] for key, value in chosen.items()]
        return ["--configs", "metaworld", "veorl", "debug", *sum(pairs, [])]

    return make


@pytest.fixture(scope="module")
def one(flags, tmp_path_factory) -> Path:
    """A run on one device."""
    logdir = tmp_path_factory.mktemp("logs") / "one"
    assert job.train(flags(logdir)) == 0
    return logdir


def start(arguments: list[str], **environment) -> subprocess.Popen:
    variables = os.environ | {k: str(v) for k, v in environment.items()}
    root = PROGRAM.parents[2]
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        env=variables | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output = process.communicate(timeout=300)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
    return process.returncode, output


def assert_same_run(logdir: Path, expected: Path, stage: str = "behavior", least: int = 6) -> None:
    """The same metrics wherever both have them, and the same weights, up to rounding."""
    left, right = (
        {(line["step"], len(line)): line for line in read_metrics(path / "metrics.jsonl")}
        for path in (logdir, expected)
    )
    assert left.keys() <= right.keys() and len(left) >= least
    for position, line in left.items():
        other = right[position]
        assert line.keys() == other.keys()
        for key in line:
            if not key.startswith("time/") and key != "stage":
                assert line[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
    arrays, others = (
        load_weights(path, checkpoint.stage_name(stage))[0] for path in (logdir, expected)
    )
    assert arrays.keys() == others.keys()
    for path, array in arrays.items():
        # Adam's first steps have the size of the learning rate (3e-4) wherever a gradient is not 0.
        np.testing.assert_allclose(array, others[path], rtol=1e-3, atol=3e-5, err_msg=path)


def test_two_devices(one, flags, tmp_path):
    """Two stages on two devices, several updates a call; interrupted, then continued on one."""
    logdir = tmp_path / "run"
    arguments = flags(logdir, distribute="mirrored", updates_per_call=2, **RARELY)
    code, output = finish(start(arguments, DEVICES=2, STOP_AT=4))  # calls of 2 + 1 updates
    assert code == 143, output
    assert "saved at update 3 of stage model" in output
    assert "interrupted by SIGTERM; the same command goes on" in output
    assert job.train(flags(logdir, **RARELY)) == 0
    assert_same_run(logdir, one)


def test_two_devices_train_dreamerv3(random_data, tmp_path):
    """Its joint stage: percentiles of all returns, several updates a call."""
    values = {**tiny("v3"), **random_data, "data.batch": 4, "stages.joint.updates": UPDATES}
    values |= {"log.every": 1, "log.validation_every": 3, "log.video_every": 0}
    names = ["--configs", "metaworld", "dreamerv3", "debug"]
    runs = []
    for name, more in (
        ("one", {}),
        ("two", {"distribute": "mirrored", "updates_per_call": 2, **RARELY}),
    ):
        pairs = (values | {"logdir": tmp_path / name} | more).items()
        runs.append([*names, *sum(([f"--{k}", str(v)] for k, v in pairs), [])])
    assert job.train(runs[0]) == 0
    code, output = finish(start(runs[1], DEVICES=2))
    assert code == 0, output
    assert_same_run(tmp_path / "two", tmp_path / "one", "joint", least=1)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def both(arguments: list[str], other: list[str] | None = None, **second) -> list[tuple[int, str]]:
    """Two processes of one run; the second may have other arguments, and further variables."""
    hosts = [f"localhost:{free_port()}" for _ in range(2)]
    config = lambda i: json.dumps(
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
    )
    started = [
        start(arguments, TF_CONFIG=config(0)),
        start(other or arguments, TF_CONFIG=config(1), **second),
    ]
    return [finish(process) for process in started]


def test_two_processes(one, flags, tmp_path):
    """A signal to the second process stops both; both continue where they were."""
    logdir = tmp_path / "run"
    arguments = flags(logdir, distribute="multi_worker", updates_per_call=2, **RARELY)
    outcomes = both(arguments, STOP_AT=3)  # calls of 2 + 1 updates a stage
    assert [code for code, _ in outcomes] == [143, 143], outcomes
    assert all("saved at update 2 of stage model" in output for _, output in outcomes)
    (code, output), (other, silent) = both(arguments)
    assert code == other == 0, (output, silent)
    assert "at update 2 of stage model" in output
    assert "the first process" in silent and "SavedModel" not in silent
    assert_same_run(logdir, one)


@pytest.mark.slow
def test_a_process_that_is_lost(flags, tmp_path):
    arguments = flags(tmp_path / "run", distribute="multi_worker")
    (code, output), (other, _) = both(arguments, STOP_AT=2, SIGNAL="SIGKILL")
    assert (code, other) == (4, -9), output
    assert "another process of the run is gone" in output and "Traceback" not in output


@pytest.mark.slow
def test_processes_with_other_flags(flags, tmp_path):
    arguments = flags(tmp_path / "run", distribute="multi_worker")
    for code, output in both(arguments, [*arguments, "--seed", "1"]):
        assert code == 2 and "the configuration differs" in output, output
        assert "Traceback" not in output


@pytest.mark.parametrize("kind", ["none", "mirrored"])
def test_one_device_needs_no_strategy(kind):
    replicas = Replicas(kind)
    assert replicas.strategy is tf.distribute.get_strategy()
    assert replicas.count == 1 and replicas.chief and replicas.rows(5) == slice(0, 5)
    assert replicas.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]


def test_batches_that_cannot_be_shared():
    replicas = Replicas()
    replicas.count, replicas._ids = 4, [2, 3]
    assert replicas.rows(8) == slice(4, 8)
    with pytest.raises(UserError, match=r"--data.batch 6: 4 devices share it"):
        replicas.rows(6)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "not JSON",
        '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
    ],
)
def test_processes_that_are_not_described(text, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        Replicas("multi_worker")


def test_programs_of_xla_stay_on_one_device(flags, tmp_path):
    with pytest.raises(UserError, match="--compiler xla"):
        job.train(flags(tmp_path / "run", distribute="mirrored", compiler="xla"))
    assert not (tmp_path / "run").exists()


def test_every_process_would_take_a_fresh_directory(flags, tmp_path):
    with pytest.raises(UserError, match="--fresh"):
        job.train([*flags(tmp_path / "run", distribute="multi_worker"), "--fresh"])
