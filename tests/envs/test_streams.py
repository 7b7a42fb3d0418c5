"""Standard streams that are closed, leave, or fail: nothing else does."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOSED = ["2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"]

# Writes to both streams, then what its own file's number is, and what a worker's streams are.
PROGRAM = """
import json, sys
from envs import streams
from envs.workers import run_jobs
if __name__ == "__main__":
    {settle}
    with open(sys.argv[1], "w") as file:
        (_, seen), = run_jobs("tests.envs.jobs:streams", [{{}}], 1, rendering=False)
        if {settled}:
            sys.stdin.read()
            print("out", flush=True)
            print("err", file=sys.stderr, flush=True)
        json.dump([file.fileno(), seen], file)
    sys.exit(3)
"""


def shell(redirections: str, argv: list[str], **options) -> subprocess.CompletedProcess:
    """The command with some of its streams closed."""
    script = ["bash", "-c", f'exec "$@" {redirections}', "bash", sys.executable, *argv]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("closed, settled", [*product(CLOSED, [True]), (CLOSED[-1], False)])
def test_closed_streams(closed, settled, tmp_path):
    """Their numbers go to no file and no socket, here and in workers; also in a program that only
    uses the workers."""
    settle = "streams.settle()" if settled else "pass"
    program = PROGRAM.format(settle=settle, settled=settled)
    done = shell(closed, ["-c", program, str(tmp_path / "seen")], input="")
    assert done.returncode == 3, done.stderr
    number, seen = json.loads((tmp_path / "seen").read_text())
    assert not settled or number > 2
    assert seen == {"answers": "yes", "socket": True, "there": [True, True, True]}
    if settled:
        assert done.stdout == ("" if "1>" in closed else "out\n")
        assert done.stderr == ("" if "2>" in closed else "err\n")


TALKS = """
import sys
from envs import streams
from veorl_tf.core.command import run_main
def command(argv):
    for i in range(20_000):
        print("a line", i)
        print("another", i, file=sys.stderr)
streams.settle()
sys.exit(run_main(command, []) or 3)
"""


@pytest.mark.parametrize("stderr", [subprocess.STDOUT, subprocess.PIPE])
def test_a_reader_who_leaves(stderr):
    """The command goes on in silence, and ends as if it had a reader."""
    process = subprocess.Popen(
        [sys.executable, "-c", TALKS], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    assert process.stdout.readline() == "a line 0\n"
    process.stdout.close()
    lines = process.stderr.readlines() if process.stderr else []
    assert process.wait(60) == 3
    assert len(lines) == (20_000 if process.stderr else 0)


def test_a_pipe_that_does_not_wait():
    """Its writer waits: nothing is lost."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader) as pipe:
        process = subprocess.Popen(
            [sys.executable, "-c", TALKS], cwd=ROOT, stdout=writer, stderr=subprocess.DEVNULL
        )
        os.close(writer)
        assert len(pipe.readlines()) == 20_000
    assert process.wait(60) == 3


def test_a_full_disk_under_stdout():
    done = shell("1>/dev/full", ["-c", TALKS])
    assert done.returncode == 4 and done.stderr.count("error: ") == 1
    assert done.stderr.endswith(
        "No space left on device: /dev/stdout; free some, and the same command goes on\n"
    )


def test_what_cannot_be_encoded_is_escaped():
    program = "from envs import streams; streams.settle(); print('r\\u00fcn\\udcff')"
    for variables in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}):
        done = shell("", ["-c", program], env={**os.environ, **variables}, errors="replace")
        assert done.returncode == 0 and done.stdout.endswith("n\\udcff\n"), done.stderr
