"""Files appear whole or not at all.

Everything is written under a temporary name in the same folder, flushed to the disk and renamed.
The temporary name carries host and process, so what a killed process left behind can be told from
what another one is writing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from veorl_tf.core.errors import MachineError, UserError

LONGEST = 120  # bytes of a name that becomes part of another
MARGIN = 64 << 20  # bytes left free for everything else, by `require_free`

_LEFTOVER = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of the operating system that name no file (a full disk shows at a write) name this."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def _standing_for(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the operating system at the temporary name, or below it, name the final one."""
    try:
        yield
    except OSError as error:
        name = str(error.filename)
        if name.startswith(str(temporary)):
            error.filename = str(path) + name.removeprefix(str(temporary))
        raise


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that replaces `path` only when the block ends without an exception.

    Args:
        path: the final place; its folder is made when missing.
        mode: 'wb' (default) or 'w' (UTF-8).
    Yields:
        The open file. Whatever the block raises leaves `path` as it was and no temporary file.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode {mode!r}: 'wb' or 'w' expected")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / _temporary_name(path.name)
    try:
        with naming(path), _standing_for(path, temporary):
            with open(
                temporary, mode.replace("w", "x"), encoding="utf-8" if mode == "w" else None
            ) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what a read-only disk says even of a file that is not there
            temporary.unlink()
        raise
    _sync_directory(path.parent)


@contextmanager
def atomic_directory(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Build a folder under a temporary name; it takes the place of `path` when the block ends well.

    Processes that have files of the old folder open or mapped keep reading them undisturbed.
    Without `replace`, UserError is raised where there is one with files in it by then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(path.parent)
    temporary = path.parent / _temporary_name(path.name)
    try:
        with _standing_for(path, temporary):
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            _take_place(path, temporary, replace)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(path.parent)


def _take_place(path: Path, temporary: Path, replace: bool) -> None:
    while True:
        try:
            return os.rename(temporary, path)  # replaces nothing but an empty folder
        except OSError:
            if not path.is_dir():
                raise
            if not replace:
                raise UserError(f"{path} was made by another process meanwhile") from None
        # Aside first: a folder cannot be replaced in one step. Another process may win the race;
        # then again.
        old = path.parent / _temporary_name(path.name)
        try:
            os.rename(path, old)
        except FileNotFoundError:
            continue
        shutil.rmtree(old)


def sweep_leftovers(directory: str | Path) -> list[Path]:
    """Remove temporary files and folders whose writer, a process of this host, no longer runs."""
    removed = []
    for path in Path(directory).glob(".*.tmp"):
        match = _LEFTOVER.match(path.name)
        if not match or match["host"] != host() or runs(int(match["pid"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with naming(path), open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(path: str | Path) -> int:
    """Bytes that an ordinary user may still write where `path` is, or will be."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free(directory: str | Path, need: int, what: str) -> None:
    """Raises MachineError when `directory` has no room for `what` of `need` bytes and `MARGIN`."""
    free = free_bytes(directory)
    if free < need + MARGIN:
        raise MachineError(
            f"{directory}: {what} needs {need:,} bytes and {MARGIN:,} to spare, {free:,} are free; "
            f"free some or choose another --datadir"
        )


def shortened(name: str) -> str:
    """A name that leaves room for what is put around it: names of files have 255 bytes at most."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def _temporary_name(name: str) -> str:
    return f".{shortened(name)}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def host() -> str:
    """This machine's name, as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", platform.node()) or "host"


def runs(pid: int) -> bool:
    """Whether a process of this host runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_directory(directory: Path) -> None:
    """Make a rename durable. Some network file systems refuse to sync a folder: their business."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
