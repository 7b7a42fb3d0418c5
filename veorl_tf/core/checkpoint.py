"""Checkpoints: named arrays in one `.npz`, and a JSON manifest that makes them valid.

`<name>.npz` holds the arrays by path ('trunk/gru/kernel'), `<name>.json` the archive's checksum and
whatever the run wants back: counters, stage, configuration. The manifest is written last, so a
checkpoint without one does not exist, and one whose archive fails the checksum is damaged and
passed over. There is no object graph and nothing is unpickled: a checkpoint loads whole, or in part
by prefix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.arrays import READ_ERRORS, write_npz
from veorl_tf.core.errors import MachineError, UserError, warn
from veorl_tf.core.files import atomic_write, naming, sha256, sweep_leftovers

FORMAT = 2
_UNREADABLE = (
    2**62
)  # stands for the serial of a manifest that cannot be read: last, so that it is reported
_REGULAR = re.compile(r"update-\d+-\d{9}")
_NAME = re.compile(r"update-\d+-\d{9}|stage-[A-Za-z0-9_]+")


class DamagedCheckpoint(MachineError):
    """A checkpoint's files do not hold what was written into them."""


def update_name(stage: int, update: int) -> str:
    """Name of a regular checkpoint: index of the stage in the schedule, updates done in it."""
    return f"update-{stage}-{update:09d}"


def stage_name(stage: str) -> str:
    """Name of the checkpoint at a stage's end, which `prune` keeps."""
    return f"stage-{stage}"


def save(
    directory: str | Path, name: str, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
) -> None:
    """Write a checkpoint; it exists once its manifest does.

    Args:
        name: of `update_name` or `stage_name`.
        arrays: {path: array} of float32, integers or booleans; any shape.
        manifest: what JSON can hold; given back by `load`.
    Raises:
        TypeError: an array of another type (half precision and bfloat16 are for computing, not for
            keeping).
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: 'update-<stage>-<9 digits>' or 'stage-<name>' expected")
    arrays = {path: np.asarray(array) for path, array in arrays.items()}
    for path, array in arrays.items():
        if array.dtype != np.float32 and array.dtype.kind not in "iub":
            raise TypeError(f"{path}: dtype {array.dtype}; float32, integers or booleans expected")
    directory = Path(directory)
    serials = [_serial(directory, other) for other in names(directory)]
    header = {
        "format": FORMAT,
        "serial": 1 + max([s for s in serials if s < _UNREADABLE], default=0),
        "arrays": len(arrays),
        "manifest": dict(manifest),
    }
    json.dumps(header)  # fails before anything is touched when JSON cannot hold the manifest
    manifest_path, archive_path = _paths(directory, name)
    with atomic_write(archive_path) as file:
        write_npz(file, arrays)
        # A manifest must never stand beside another archive than its own.
        manifest_path.unlink(missing_ok=True)
    header |= {"sha256": sha256(archive_path), "bytes": archive_path.stat().st_size}
    header["check"] = _check(header)
    with atomic_write(manifest_path, "w") as file:
        json.dump(header, file, indent=1)


def load(
    directory: str | Path, name: str, prefix: str | Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        prefix: only arrays whose path begins with it (or with one of several); None for all.
    Returns:
        ({path: array}, manifest).
    Raises:
        DamagedCheckpoint: a file is missing, cut or altered.
    """
    _, archive_path = _paths(Path(directory), name)
    header = _verified(Path(directory), name)
    prefixes = ("",) if prefix is None else (prefix,) if isinstance(prefix, str) else tuple(prefix)
    try:
        with np.load(archive_path, allow_pickle=False) as archive:
            chosen = [path for path in archive.files if path.startswith(prefixes)]
            arrays = {path: archive[path] for path in chosen}
    except READ_ERRORS as error:
        raise DamagedCheckpoint(f"{archive_path}: {error}") from None
    for path, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DamagedCheckpoint(f"{archive_path}: {path} is no array")
    return arrays, header["manifest"]


def manifest(directory: str | Path, name: str) -> dict[str, Any]:
    """A checkpoint's manifest alone. Raises DamagedCheckpoint."""
    return _header(Path(directory), name)["manifest"]


def names(directory: str | Path) -> list[str]:
    """Checkpoints in the order of writing; those with unreadable manifests come last."""
    directory = Path(directory)
    found = [path.stem for path in directory.glob("*.json") if _NAME.fullmatch(path.stem)]
    return sorted(found, key=lambda name: (_serial(directory, name), name))


def latest(directory: str | Path) -> str | None:
    """Name of the newest whole checkpoint; None when there is none at all.

    A damaged one is reported by a warning and the one before it taken. Raises DamagedCheckpoint
    when all are: to begin again silently would overwrite what may still be mended.
    """
    reasons = []
    for name in reversed(names(directory)):
        try:
            _verified(Path(directory), name)
        except DamagedCheckpoint as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warn(f"damaged checkpoint passed over: {reason}; continuing from {name}")
        return name
    if reasons:
        raise DamagedCheckpoint(
            f"no checkpoint is whole: {'; '.join(reasons)}. Remove {directory} to start again"
        )
    return None


def prune(directory: str | Path, keep: int = 2) -> list[str]:
    """Remove all but the last `keep` regular checkpoints; returns the names of the removed.

    The checkpoints of the stages' ends are always kept.
    """
    directory = Path(directory)
    regular = [name for name in names(directory) if _REGULAR.fullmatch(name)]
    readable = [name for name in regular if _serial(directory, name) < _UNREADABLE]
    removed = [name for name in regular if name not in readable[-keep:]] if readable else []
    for name in removed:
        for path in _paths(directory, name):  # the manifest first: half a checkpoint is none
            path.unlink(missing_ok=True)
    for archive in directory.glob("*.npz"):
        if _NAME.fullmatch(archive.stem) and not archive.with_suffix(".json").exists():
            archive.unlink()  # its writer was killed before the manifest
    sweep_leftovers(directory)
    return removed


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.json", directory / f"{name}.npz"


def _header(directory: Path, name: str) -> dict[str, Any]:
    path, _ = _paths(directory, name)
    try:
        with naming(path):
            header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path}: no such file") from None
    except ValueError:
        raise DamagedCheckpoint(f"{path}: no JSON") from None
    kinds = {"format": int, "serial": int, "sha256": str, "bytes": int, "manifest": dict}
    if not isinstance(header, dict) or any(
        not isinstance(header.get(k), t) for k, t in kinds.items()
    ):
        raise DamagedCheckpoint(f"{path}: no manifest of a checkpoint")
    if header["format"] != FORMAT:
        newer = header["format"] > FORMAT
        which = "a newer version; update this one" if newer else "an older version; train anew"
        raise UserError(f"{path}: format {header['format']} of {which} ({FORMAT} is read here)")
    if header.get("check") != _check(header):
        raise DamagedCheckpoint(f"{path}: the checksum differs from the one written")
    return header


def _check(header: Mapping[str, Any]) -> str:
    """Of everything else that a manifest says."""
    rest = {key: value for key, value in header.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _serial(directory: Path, name: str) -> int:
    """Position in the order of writing, kept in the manifest: copying a run changes times."""
    try:
        return _header(directory, name)["serial"]
    except DamagedCheckpoint:
        return _UNREADABLE


def _verified(directory: Path, name: str) -> dict[str, Any]:
    header = _header(directory, name)
    _, archive = _paths(directory, name)
    if not archive.is_file():
        raise DamagedCheckpoint(f"{archive}: no such file")
    size = archive.stat().st_size
    if size != header["bytes"]:
        raise DamagedCheckpoint(f"{archive}: {size} bytes, {header['bytes']} were written")
    if sha256(archive) != header["sha256"]:
        raise DamagedCheckpoint(f"{archive}: the checksum differs from the one written")
    return header
