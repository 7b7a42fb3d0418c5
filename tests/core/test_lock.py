"""One process at a time; what a dead one leaves behind."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.core.files import host
from veorl_tf.core.lock import locked

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time, pathlib
from veorl_tf.core.lock import locked
with locked(pathlib.Path(sys.argv[1]), "holds"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """`holder(seconds)`: another process that holds the lock."""
    started = []

    def start(seconds=60.0):
        arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), str(seconds)]
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_second_is_refused_and_told_who_is_first(tmp_path, holder):
    process = holder()
    with pytest.raises(UserError, match=f"process {process.pid} trains in x"):
        with locked(tmp_path / "lock", "trains in x"):
            raise AssertionError("two hold it")
    process.kill()
    process.wait()
    with locked(tmp_path / "lock", "trains in x"):
        pass


def test_a_dead_owner_is_recognised(tmp_path, holder, capfd):
    process = holder()
    process.kill()
    process.wait()
    with locked(tmp_path / "lock", "trains"):
        assert f"process {process.pid} did not end by itself" in capfd.readouterr().err
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    with locked(tmp_path / "lock", "trains"):
        assert capfd.readouterr().err == "", "the one before ended well"


def test_waiting(tmp_path, holder, capfd):
    process, began = holder(1.0), time.monotonic()
    with locked(tmp_path / "lock", "makes x", wait=True):
        assert time.monotonic() - began > 0.5
    assert f"waiting for process {process.pid}, which makes x" in capfd.readouterr().err


def test_twice_in_one_process(tmp_path):
    with locked(tmp_path / "lock", "trains"):
        with pytest.raises(UserError, match=f"process {os.getpid()} trains"):
            with locked(tmp_path / "lock", "trains"):
                raise AssertionError("two hold it")


@pytest.fixture
def taken(tmp_path):
    """The lock, held by an owner that has not written its name yet."""
    with open(tmp_path / "lock", "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_an_owner_writes_its_name_late(tmp_path, taken):
    entry = json.dumps({"host": host(), "pid": os.getppid()})
    late = threading.Timer(0.3, lambda: (taken.write(entry), taken.flush()))
    late.start()
    with pytest.raises(UserError, match=f"process {os.getppid()} trains"):
        with locked(tmp_path / "lock", "trains"):
            raise AssertionError("two hold it")
    late.join()


@pytest.mark.parametrize("dead", [False, True])
def test_an_owner_without_a_name(tmp_path, taken, dead):
    """Nothing is there, or the name of the owner before, which was killed."""
    if dead:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        json.dump({"host": host(), "pid": process.pid}, taken)
        taken.flush()
    with pytest.raises(UserError, match="another process trains"):
        with locked(tmp_path / "lock", "trains"):
            raise AssertionError("two hold it")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', "\0" * 50])
def test_whatever_the_file_holds(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with locked(tmp_path / "lock", "trains"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capfd):
    """The file alone counts: a process of this host that runs, or one of another host."""

    def none(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": host(), "pid": os.getppid()}))
    with pytest.raises(UserError, match=f"process {os.getppid()} trains"):
        with locked(path, "trains"):
            raise AssertionError("two hold it")
    path.unlink()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with locked(path, "trains"):
        entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"pid": process.pid}))
    with locked(path, "trains"):
        assert "did not end by itself" in capfd.readouterr().err
    path.write_text(json.dumps(entry))
    with locked(path, "trains"):
        assert "did not end by itself" in capfd.readouterr().err, "our number, of another life"
    path.write_text(json.dumps(entry | {"host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere trains"):
        with locked(path, "trains"):
            raise AssertionError("two hold it")
