"""Errors that a user can mend, and the exit codes that go with them.

Exit codes of every command: 0 done, 2 wrong input, 3 done but for what could not be imported, 4 the
machine (missing library, full disk), 5 numbers that were not finite again and again, 128 + signal
number when interrupted. A bug is none of these: it keeps its traceback and exits with 1.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Wrong input: the message says in one line what was wrong, where, and what to do."""

    exit_code = 2


class AllLeftOut(UserError):
    """Nothing of what was given can be used: the message says in one line what it was."""

    exit_code = 3


class MachineError(Exception):
    """The environment or the disk is at fault: the message says in one line what is missing."""

    exit_code = 4


class Diverged(Exception):
    """Training has no finite numbers left: the message says in one line which went first."""

    exit_code = 5


class Interrupted(BaseException):
    """The run was asked to stop by a signal and has stopped tidily. `how` says how to go on. No
    `except Exception` of a library may swallow it."""

    def __init__(self, signum: int, how: str = "the same command goes on"):
        super().__init__(signum, how)
        self.signum, self.how = int(signum), how
        self.exit_code = 128 + self.signum

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.signum).name}; {self.how}"


# Failures of the operating system that are the machine's state, not a bug of ours, wherever they
# show. (At a place that the user named all of them are: core/places.py.)
FULL = (errno.ENOSPC, errno.EDQUOT)
MACHINE_ERRNOS = (
    *FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


def warn(message: str) -> None:
    """Print one `warning:` line on stderr."""
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(message: object) -> str:
    """The message with its line breaks and runs of blanks made single spaces."""
    return " ".join(str(message).split())


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A clause `; did you mean a, b?` with the closest valid names, or '' when none is close.

    A dotted choice is also close when its last part is: 'deter' finds 'rssm.deter'.
    """
    choices = sorted(set(choices))
    last = name.rsplit(".", 1)[-1]
    found = [c for c in choices if c.rsplit(".", 1)[-1] == last]
    found += [c for c in get_close_matches(name, choices, count, 0.6) if c not in found]
    if not found:
        tails = get_close_matches(last, {c.rsplit(".", 1)[-1] for c in choices}, 1, 0.75)
        found = [c for c in choices if c.rsplit(".", 1)[-1] in tails]
    return f"; did you mean {', '.join(found[:count])}?" if found else ""
