"""Exit codes, and the one line that goes with them."""

import errno

import pytest

from veorl_tf.core.command import run_main
from veorl_tf.core.errors import Diverged, Interrupted, MachineError, UserError, nearest


def raising(error):
    def function(argv):
        raise error

    return function


@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("bad\n  value"), 2, "error: bad value\n"),
        (MachineError("no disk"), 4, "error: no disk\n"),
        (Interrupted(15), 143, "interrupted by SIGTERM; the same command goes on\n"),
        (Diverged("loss"), 5, "error: loss\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            4,
            "error: No space left on device: /x/y; free some, and the same command goes on\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/z"),
            4,
            "error: Permission denied: /z\n",
        ),
    ],
)
def test_exit_codes_and_one_line(error, code, text, capsys):
    assert run_main(raising(error), []) == code
    assert capsys.readouterr().err == text


def test_results_and_bugs():
    assert run_main(lambda argv: None, []) == 0
    assert run_main(lambda argv: len(argv), ["a", "b", "c"]) == 3
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: 1 / 0, [])
    with pytest.raises(
        FileNotFoundError
    ):  # a bug: user-named files are checked where they are named
        run_main(lambda argv: open("/no/such/file"), [])


def test_nearest_names():
    keys = ["rssm.deter", "rssm.stoch", "seed", "stages.model.updates"]
    assert "rssm.deter" in nearest("deter", keys)
    assert "rssm.deter" in nearest("rssm.detre", keys)
    assert "stages.model.updates" in nearest("update", keys)
    assert nearest("zzzzzz", keys) == ""
