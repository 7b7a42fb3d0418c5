"""Places that the user named: flags, arguments and keys that are paths. What the operating system
says of such a place is no bug, whatever it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from veorl_tf.core.errors import FULL, MACHINE_ERRNOS, MachineError, UserError

# What is wrong with a name; every other error is the state of the machine.
WRONG = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.ENXIO),
)
_NAMED: dict[Path, str] = {}  # absolute paths, and what named them


def expanded(what: str, path: str | Path) -> Path:
    """A path that a user named by `what`, a flag or an argument, its `~` replaced. From now on the
    operating system's errors there are the user's to mend. Raises UserError."""
    path = os.fspath(path)
    if path.startswith("~") and path.partition("/")[0] == "~" and not _home():
        raise UserError(
            f"{what} {path}: HOME does not name this user's home; set it, or name a path without ~"
        )
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{what} {path}: no such user") from None
    _NAMED[place.absolute()] = what
    return place


def named_folder(what: str, path: str) -> Path:
    """The same of a folder, which may have to be made."""
    folder = expanded(what, path)
    whole = folder.absolute()
    nearest = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not nearest.is_dir():
        kind = "is a link that leads nowhere" if not nearest.exists() else "is a file"
        raise UserError(f"{what} {folder}: {nearest} {kind}; name a new folder")
    return folder


def new_folder(what: str, path: str) -> Path:
    """The same of a folder that must not be there yet."""
    folder = named_folder(what, path)
    if os.path.lexists(folder):
        raise UserError(f"{what} {folder} exists; name a new folder")
    return folder


def explained(error: OSError) -> UserError | MachineError | None:
    """An error of the operating system as one that a user can mend; None for a bug.

    It is the user's at, below, or on the way to a place that was named, and the machine's wherever
    its number is one of `MACHINE_ERRNOS`.
    """
    if error.errno is None:
        return None
    names = [error.filename, error.filename2]
    names = [os.fsdecode(name) for name in names if isinstance(name, str | bytes)]
    paths = [Path(name).absolute() for name in names]
    named = next((place for path in paths for place in _near(path)), None)
    if named is None and error.errno not in MACHINE_ERRNOS and not _homeless(error):
        return None
    shown = [f"{_NAMED[named]} {named}"] if named else []
    if not names and error.strerror == os.strerror(errno.ENOENT):
        shown = ["the current folder"]
    broken = next((p for path in paths for p in (path, *path.parents) if _leads_nowhere(p)), None)
    if broken:
        shown.append(f"{broken} is a link that leads nowhere ({os.readlink(broken)})")
    else:
        shown += [error.strerror, *(names[:1] if not named or paths[0] != named else [])]
    then = "; free some, and the same command goes on" if error.errno in FULL else ""
    kind = UserError if named and error.errno in WRONG else MachineError
    return kind(": ".join(shown) + then)


def _home() -> bool:
    """Whether this user has a home: HOME says so, or without it the list of users."""
    return os.path.isabs(os.environ.get("HOME", os.path.expanduser("~")))


def _homeless(error: OSError) -> bool:
    """Whether it says that there is no folder for temporary files, or the current one is gone."""
    return error.errno == errno.ENOENT and error.filename is None


def _near(path: Path) -> list[Path]:
    """Named places that `path` lies in, the innermost first, then those that it leads to."""
    inside = [place for place in _NAMED if path.is_relative_to(place)]
    beyond = [place for place in _NAMED if place.is_relative_to(path)]
    return [*sorted(inside, key=lambda place: -len(place.parts)), *beyond]


def _leads_nowhere(path: Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)
