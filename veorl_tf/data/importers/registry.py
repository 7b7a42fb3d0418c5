"""Formats by name, in the order in which a source is tried."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers import pictures, video
from veorl_tf.data.importers.base import (
    LOOKED_AT,
    Reader,
    Unreadable,
    files,
    one_of,
    relative,
)
from veorl_tf.data.mistaken import mistaken


def formats() -> dict[str, Reader]:
    """All readers by name: those that recognise a layout before those that take any picture."""
    from veorl_tf.data.importers.lerobot import LeRobot
    from veorl_tf.data.importers.minari import Minari
    from veorl_tf.data.importers.npz import DreamerV3Replay, Episodes
    from veorl_tf.data.importers.rlds import RLDS
    from veorl_tf.data.importers.sequences import BridgeData, ImageFolders, NuScenes
    from veorl_tf.data.importers.vd4rl import VD4RL
    from veorl_tf.data.importers.video import ClipList, Videos

    readers = (
        LeRobot(),
        NuScenes(),
        Minari(),
        RLDS(),
        VD4RL(),
        DreamerV3Replay(),
        Episodes(),
        BridgeData(),
        ClipList(),
        Videos(),
        ImageFolders(),
    )
    return {reader.name: reader for reader in readers}


# Formats that are known by nothing but their files, by how these end.
PLAIN = {
    "rlds": (".tfrecord", ".tfrecords"),
    "vd4rl": (".hdf5", ".h5"),
    "episodes": (".npz",),
    "video": (*video.SUFFIXES, *pictures.MOVING),
    "images": pictures.SUFFIXES,
}
PAGES = (".html", ".htm", ".xml")  # which are what they look like


def find(source: Path, name: str = "auto") -> Reader:
    """The reader of that name; or the first that recognises the layout of the source; or that of
    the most files. Raises UserError."""
    known = formats()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if name != "auto":
        one_of("format", name, ("auto", *known))
        return known[name]
    for reader in known.values():
        if reader.name not in PLAIN and reader.detect(source):
            return reader
    counts = plain_files(source)
    for name in sorted(counts, key=counts.get, reverse=True):
        if known[name].detect(source):
            return known[name]
    raise UserError(_unknown(source, known))


def _unknown(source: Path, known: Iterable[str]) -> str:
    """What is said of a source that no reader recognises: what its files are instead of data."""
    for path in islice(files(source, lambda name: not name.endswith(PAGES)), LOOKED_AT):
        if path.stat().st_size and (cause := mistaken(path)):
            where = "" if path == source else f"{relative(source, path)}: "
            return f"{source}: {where}{cause}"
    return f"{source}: none of the known formats ({', '.join(known)}); name one with --format"


def plain_files(source: Path) -> dict[str, int]:
    """How many files of each plain format there are, if any."""
    counts = dict.fromkeys(PLAIN, 0)
    for path in files(source, lambda name: True):
        whole = re.sub(r"(-[0-9]+-of-[0-9]+)?(\.gz)?$", "", path.name.lower())
        for format, suffixes in PLAIN.items():
            counts[format] += whole.endswith(suffixes)
    return {format: count for format, count in counts.items() if count}


def beside(source: Path, reader: Reader) -> list[Unreadable]:
    """What else lies in the source of a plain format, and is not imported with it."""
    if reader.name not in PLAIN:
        return []
    others = {name: n for name, n in plain_files(source).items() if name != reader.name}
    there = [name for name in others if formats()[name].detect(source)]
    found = [
        Unreadable(
            source.name, f"{others[name]:,} files of another format; --format {name} imports these"
        )
        for name in there
    ]
    suffixes = tuple(end for name in others if name not in there for end in PLAIN[name])
    lost = islice(files(source, lambda name: name.lower().endswith(suffixes)), LOOKED_AT)
    causes = [(relative(source, path), mistaken(path)) for path in lost]
    return found + [Unreadable(name, cause) for name, cause in causes if cause]
