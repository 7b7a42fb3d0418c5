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
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from veorl_tf.core.errors import MachineError, UserError

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
        with (
            naming(path),
            open(
                temporary, mode.replace("w", "x"), encoding="utf-8" if mode == "w" else None
            ) as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        while True:
            try:
                os.rename(temporary, path)  # replaces nothing but an empty folder
                break
            except OSError:
                if not path.is_dir():
                    raise
                if not replace:
                    raise UserError(f"{path} was made by another process meanwhile") from None
            # Aside first: a folder cannot be replaced in one step. Another process may win the
            # race; then again.
            old = path.parent / _temporary_name(path.name)
            try:
                os.rename(path, old)
            except FileNotFoundError:
                continue
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(path.parent)


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
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def expanded(flag: str, path: str) -> Path:
    """A path that a user named, its `~` replaced. Raises UserError."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{flag} {path}: no such user") from None


def named_folder(what: str, path: str) -> Path:
    """A path that a user named for a folder, which may have to be made. Raises UserError, which
    says `what` it was named for."""
    folder = expanded(what, path)
    whole = folder.absolute()
    nearest = next(p for p in (whole, *whole.parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"{what} {folder}: {nearest} is a file; name a new folder")
    return folder


def new_folder(what: str, path: str) -> Path:
    """The same for a folder that must not be there yet."""
    folder = named_folder(what, path)
    if os.path.lexists(folder):
        raise UserError(f"{what} {folder} exists; name a new folder")
    return folder


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


def _temporary_name(name: str) -> str:
    return f".{name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


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
