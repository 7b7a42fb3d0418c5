"""What else may happen to a run: a full disk, a second process, signals at the worst time."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.run.directory import RunDirectory, owned
from veorl_tf.run.job import train

sys.path.insert(0, str(Path(__file__).parent))

from test_killed import PROGRAM, ROOT, assert_same, flags, start, whole  # noqa: E402


@pytest.fixture
def arguments(random_data) -> list[str]:
    """A run of a few updates without a simulator."""
    argv = ["--configs", "dreamerv2", "debug", "--precision", "float32"]
    given = {k: v for k, v in random_data.items() if k not in ("datadir", "source_videos")}
    return [*argv, *(f"--{key}={value}" for key, value in given.items())]


def test_two_runs_in_one_directory(arguments, tmp_path, refused, faults):
    """The second one is told which process the first one is."""
    with owned(RunDirectory(tmp_path / "run")):
        line = refused(train, flags(tmp_path, *arguments))
    assert re.search(r"process \d+ trains in .*run; wait for it, or end it", line)
    faults.append(("two processes", "one directory", "the second refused"))


def test_a_folder_of_somebody_else_gets_no_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(UserError, match="a folder with other files"):
        with owned(RunDirectory(tmp_path / "run")):
            raise AssertionError("it was taken")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def interrupt(process: subprocess.Popen, number: int) -> list[str]:
    """What it says before the line on how to go on; there is no traceback."""
    process.send_signal(number)
    *lines, last = process.communicate(timeout=60)[0].strip().splitlines()
    assert process.returncode == 128 + number, [*lines, last]
    assert last == f"interrupted by {signal.Signals(number).name}; the same command goes on"
    assert not any("Traceback" in line for line in lines), lines
    return lines


def listens(process: subprocess.Popen) -> bool:
    """Whether it handles SIGTERM yet."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> signal.SIGTERM - 1 & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_update(number, arguments, tmp_path):
    """While data are read and the graph is built: at once."""
    process = start("nowhere", 0, flags(tmp_path, *arguments))
    assert process.stdout.readline().startswith("run directory: ")
    time.sleep(0.5)
    interrupt(process, number)


@pytest.mark.slow
def test_signals_at_random_moments(arguments, tmp_path, faults):
    """While TensorFlow is imported, data are read, the first update is traced and compiled."""
    rng = random.Random(0)
    for i in range(20):
        process = start("nowhere", 0, flags(tmp_path / str(i), *arguments))
        while not listens(process):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 6))
        lines = interrupt(process, rng.choice([signal.SIGINT, signal.SIGTERM]))
        assert not lines or any(line.startswith("run directory: ") for line in lines)
    faults.append(("Ctrl-C, SIGTERM", "20 random moments of a start", "left in one line"))


SMALL_DISK = """
set -u
mount -t tmpfs -o size=400k tmpfs "$1"
size=400
while [ $size -le 40000 ]; do
    "$2" "$3" nowhere 0 "${@:5}" >"$4/log-$size" 2>&1
    code=$?
    echo "$size $code"
    [ $code = 4 ] || break
    size=$((size * 3 / 2))
    mount -o remount,size=${size}k "$1"
done
cp -r "$1/run" "$4/run"
exit $code
"""


@pytest.mark.slow
def test_a_full_disk(arguments, tmp_path, faults, monkeypatch):
    """A disk that is too small, and grows a little whenever the run has given up."""
    unshare = [shutil.which("unshare") or "unshare", "-rm"]
    (tmp_path / "small").mkdir()
    mount = [*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    whole(flags(tmp_path / "whole", *arguments))
    argv = [*arguments, "--datadir", str(tmp_path / "data")]
    argv += ["--logdir", str(tmp_path / "small" / "run")]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    script = ["bash", "-c", SMALL_DISK, "bash", str(tmp_path / "small"), sys.executable, PROGRAM]
    done = subprocess.run(
        [*unshare, *script, str(tmp_path), *argv], capture_output=True, text=True, timeout=900
    )
    tried = [line.split() for line in done.stdout.splitlines()]
    logs = [(tmp_path / f"log-{size}").read_text() for size, _ in tried]
    assert done.returncode == 0, f"{tried}\n{logs[-1]}"
    places = set()
    for log in logs[:-1]:
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "No space left on device" in errors[0], log
        assert "Traceback" not in log, log
        places.add(errors[0])
    assert len(places) >= 2, tried
    assert_same(tmp_path / "whole" / "run", tmp_path / "run")
    sizes = ", ".join(f"{int(size):,} KB" for size, _ in tried[:-1])
    faults.append(("disk full", sizes, "one line each, then bit for bit"))
