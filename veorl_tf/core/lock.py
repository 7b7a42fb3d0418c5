"""One process at a time in a folder: a lock that its owner's death releases."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veorl_tf.core.errors import UserError, warn
from veorl_tf.core.files import host, naming, runs

NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)  # of some file systems
EVERY = 0.2  # seconds between looks at a lock that is waited for
NAMELESS = 5  # looks until an owner, who writes its name after it took the lock, counts as unnamed


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path` during the block.

    The operating system holds the lock, and drops it when the process ends in whatever way; the
    file tells who that is. Where a file system has no locks the file alone counts: its process must
    run on this host.

    Args:
        what: is done under the lock, after 'which': 'trains in logs/x'.
        wait: until its owner is done, instead of refusing.
    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    with open(path, "a+", encoding="utf-8") as file:
        for look in itertools.count():
            if _take(file):
                break
            entry = _entry(file)
            named = _alive(entry) or look >= NAMELESS
            if named and not wait:
                raise UserError(f"{_owner(entry)} {what}; wait for it, or end it ({path})")
            if named and not told:
                warn(f"waiting for {_owner(entry)}, which {what}")
                told = True
            time.sleep(EVERY)
        former = _entry(file)
        if former and not told:
            warn(f"process {former['pid']} did not end by itself; going on from what it saved")
        _write(file, _ours())
        try:
            yield
        finally:
            _write(file, None)  # and closing it gives the lock up


def _take(file) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    entry = _entry(file)
    # In a container every first process has the same number: ours, in the file, is a dead one's.
    return not _alive(entry) or entry == _ours()


def _ours() -> dict:
    return {"host": host(), "pid": os.getpid()}


def _entry(file) -> dict:
    """Host and process that the file names, or nothing."""
    file.seek(0)
    try:
        entry = json.loads(file.read())
    except ValueError:
        return {}
    valid = isinstance(entry, dict) and isinstance(entry.get("pid"), int) and "host" in entry
    return entry if valid else {}


def _alive(entry: dict) -> bool:
    """Whether the process that an entry names may hold the lock."""
    return bool(entry) and (entry["host"] != host() or runs(entry["pid"]))


def _owner(entry: dict) -> str:
    if not _alive(entry):
        return "another process"
    elsewhere = "" if entry["host"] == host() else f" on {entry['host']}"
    return f"process {entry['pid']}{elsewhere}"


def _write(file, entry: dict | None) -> None:
    with naming(file.name):  # and nothing stays in a buffer, to fail again when it is closed
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(entry).encode() if entry else b"")
