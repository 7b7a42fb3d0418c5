"""Whole commands in surroundings that are not as one thinks: streams, names, places, settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from veorl_tf.__main__ import main
from veorl_tf.core import checkpoint
from veorl_tf.core.media import write_mp4
from veorl_tf.run.directory import RunDirectory
from veorl_tf.run.job import train

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROGRAM = ["-m", "veorl_tf"]


def shell(redirections: str, argv: list, **variables: str) -> subprocess.CompletedProcess:
    """A command of ours with some of its streams redirected."""
    script = ["bash", "-c", f'exec "$@" {redirections}', "bash", sys.executable]
    return subprocess.run(
        [*script, *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A folder with a video of something that moves."""
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, i : i + 9] = 255
    return write_mp4(tmp_path_factory.mktemp("films") / "film.mp4", frames, 10).parent


@pytest.mark.parametrize("words", [["--help"], []])
def test_a_full_disk_under_stdout(words):
    done = shell("1>/dev/full", [*PROGRAM, *words])
    assert done.returncode == 4 and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(closed, film, tmp_path):
    """Exit codes are what they are with open ones, and what is made is whole."""
    commands = [
        ([*PROGRAM, "--help"], 0),
        ([*PROGRAM, "import", film, tmp_path / "out"], 0),
        ([*PROGRAM, "inspect", film, "--sheet", tmp_path / "sheet.png"], 0),
        ([*PROGRAM, "evaluate", tmp_path], 2),
        ([*PROGRAM, "table", "--train", "false", "--results", tmp_path / "none"], 2),
        (["train.py", "--configs", "veorl"], 2),
    ]
    for argv, code in commands:
        done = shell(closed, argv)
        assert done.returncode == code, (argv, done)
        assert "Traceback" not in done.stdout + done.stderr
    with np.load(next((tmp_path / "out").glob("*.npz"))) as episode:
        assert episode["image"].shape == (40, 64, 64, 3)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_names_that_are_no_text(film, tmp_path):
    """Bytes that are not UTF-8, printed where there is ASCII alone: escaped, after the work and in
    the report."""
    strange = tmp_path / "o\udcff\udcfe"
    (strange / "in").mkdir(parents=True)
    shutil.copy(film / "film.mp4", strange / "in" / "f\udcfcr.mp4")
    for variables in (ASCII, {"PYTHONIOENCODING": "latin-1"}):
        out = strange / f"out{len(variables)}"
        done = shell("", [*PROGRAM, "import", strange / "in", out], **variables)
        assert done.returncode == 0, done.stderr
        assert f"o\\udcff\\udcfe/{out.name}: 1 episodes" in done.stdout
        assert json.loads((out / "import.json").read_text())["source"] == str(strange / "in")
        sheet = strange / "sheet.png"
        done = shell("", [*PROGRAM, "inspect", out, "--sheet", sheet], **variables)
        assert done.returncode == 0 and sheet.exists(), done.stderr


TRAIN = ["--configs", "metaworld", "dreamerv2", "debug"]
COLLECT = ["collect", "--configs", "metaworld", "debug", "--"]


@pytest.mark.parametrize(
    "argv, code",
    [
        ([*TRAIN, "--logdir={}/dangling"], 2),
        ([*TRAIN, "--logdir={}/run", "--datadir={}/pool/x"], 2),
        ([*TRAIN, "--logdir={}/" + 300 * "x"], 2),
        ([*TRAIN, "--logdir=/sys/run"], 4),
        ([*TRAIN, "--init_from={}/" + 300 * "x"], 2),
        (["import", "{}/films", "{}/dangling"], 2),
        (["inspect", "{}/films", "--sheet", "{}/pool/sheet.png"], 2),
        (["evaluate", "{}/" + 300 * "x"], 2),
        ([*COLLECT, "/sys/out"], 4),
    ],
)
def test_broken_places(argv, code, film, tmp_path, refused):
    """One line each, that names the place."""
    (tmp_path / "films").symlink_to(film)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "pool").symlink_to("pool")
    argv = [argument.format(tmp_path) for argument in argv]
    line = refused(train if argv[0] == "--configs" else main, argv, code)
    place = argv[-1].partition("=")[2] or argv[-1]
    assert place.removesuffix("/sheet.png") in line


def test_a_configuration_that_the_disk_does_not_give(tmp_path, refused):
    """Where this process' memory begins, nothing can be read: EIO."""
    (tmp_path / "config.yaml").symlink_to("/proc/self/mem")
    line = refused(main, ["evaluate", tmp_path], 4)
    assert line == f"error: LOGDIR {tmp_path}: Input/output error: {tmp_path}/config.yaml"


@pytest.mark.slow
def test_a_run_whose_terminal_closes(random_data, tmp_path, faults):
    """A name that is no text, Keras set up otherwise, no stdin; SIGHUP, and nobody reads any more:
    it saves. The same command, of which the reader leaves after a line, goes on to the end."""
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"image_data_format": "channels_first"}')
    logdir = tmp_path / "l\udcffg"
    argv = [sys.executable, "train.py", "--configs", "dreamerv2", "debug", "--logdir", str(logdir)]
    argv += [f"--{key}={value}" for key, value in random_data.items() if key != "source_videos"]
    argv += ["--stages.model.updates=3000", "--log.every=1"]
    argv += ["--log.checkpoint_every=0", "--log.validation_every=0"]
    script = ["bash", "-c", 'exec "$@" 0<&- 2>&1', "bash", *argv]
    environ = {**os.environ, **ASCII, "HOME": str(tmp_path), "MPLBACKEND": "nonsense"}
    start = lambda more=(): subprocess.Popen(
        [*script, *more], cwd=ROOT, env=environ, stdout=subprocess.PIPE
    )
    process = start()
    metrics = logdir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    run = RunDirectory(logdir)
    saved = checkpoint.latest(run.checkpoints)
    assert checkpoint.manifest(run.checkpoints, saved)["step"] == metrics.read_bytes().count(b"\n")
    reached = checkpoint.manifest(run.checkpoints, saved)["update"]
    process = start([f"--stages.model.updates={reached + 2}", "--force"])
    assert process.stdout.readline().startswith(b"warning: ")
    process.stdout.close()
    assert process.wait(240) == 0
    assert run.finished()["updates"] == reached + 2 + 6 and (run.policy / "policy.json").exists()
    faults.append(("SIGHUP, no reader", "training", "saved, then gone on in silence"))


@pytest.mark.slow
def test_closed_streams_around_a_run(trained, tmp_path):
    """Of what loads TensorFlow and simulators."""
    run = trained("dreamerv2")
    closed, strange = "0<&- 1>&- 2>&-", tmp_path / "o\udcff"
    data = ["--configs", "metaworld", "debug", "--task", "metaworld_reach", "--env.time_limit=20"]
    for argv in (
        ["evaluate", run.path, "--episodes", "2", "--seed", "7"],
        ["export", run.path, strange],
        ["collect", tmp_path / "data", *data, "--data.collect_episodes=1"],
    ):
        done = shell(closed, [*PROGRAM, *argv], **ASCII)
        assert done.returncode == 0, argv
    assert (run.path / "evaluations" / "stage-behavior-seed7-2" / "scores.json").exists()
    assert (strange / "saved_model.pb").exists() and (strange / "policy.json").exists()
    assert (tmp_path / "data" / "recipe.json").exists()
