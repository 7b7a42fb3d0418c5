"""Formats by name, in the order in which a source is tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers import pictures, video
from veorl_tf.data.importers.base import (
    LOOKED_AT,
    Reader,
    Unreadable,
    files,
    no_files,
    one_of,
    relative,
)
from veorl_tf.data.mistaken import EMPTY, mistaken


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
SUFFIXES = {  # of the files that readers look for by name
    **PLAIN,
    "dreamerv3": PLAIN["episodes"],
    "minari": PLAIN["vd4rl"],
    "bridge": PLAIN["images"],
    "cliplist": PLAIN["video"],
}
INDEXES = {  # files that tell a format by what they hold
    "lerobot": ("meta/info.json",),
    "minari": ("data/metadata.json",),
    "rlds": ("dataset_info.json", "features.json"),
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
    _check_indexes(source)
    counts = plain_files(source)
    for name in sorted(counts, key=counts.get, reverse=True):
        if known[name].detect(source):
            return known[name]
    raise UserError(_unknown(source, known))


def _check_indexes(source: Path) -> None:
    """Raises UserError where a file that would tell the format holds none of its data: what lies
    beside it must not be taken for another format's."""
    names = {Path(index).name for indexes in INDEXES.values() for index in indexes}
    for path in files(source, names.__contains__):
        for format, indexes in INDEXES.items():
            if path.as_posix().endswith(tuple(f"/{index}" for index in indexes)):
                if cause := mistaken(path):
                    raise UserError(
                        f"{path}: {cause} (it would say how to read {format}; --format reads the "
                        f"files beside it as they are)"
                    )


def _unknown(source: Path, known: Iterable[str]) -> str:
    """What is said of a source that no reader recognises: what its files are instead of data."""
    for lost in no_files(source, lambda name: any(map(_ends(name), PLAIN.values()))):
        return f"{source}: {lost}"
    for path in islice(files(source, lambda name: not name.endswith(PAGES)), LOOKED_AT):
        if path.stat().st_size and (cause := mistaken(path)):
            where = "" if path == source else f"{relative(source, path)}: "
            return f"{source}: {where}{cause}"
    return f"{source}: none of the known formats ({', '.join(known)}); name one with --format"


def plain_files(source: Path) -> dict[str, int]:
    """How many files of each plain format there are, if any."""
    counts = dict.fromkeys(PLAIN, 0)
    for path in files(source, lambda name: True):
        for format, suffixes in PLAIN.items():
            counts[format] += _ends(path.name)(suffixes)
    return {format: count for format, count in counts.items() if count}


def _ends(name: str) -> Callable[[tuple[str, ...]], bool]:
    """Whether a file's name ends with one of some suffixes, but for a number and `.gz`."""
    return re.sub(r"(-[0-9]+-of-[0-9]+)?(\.gz)?$", "", name.lower()).endswith


def beside(source: Path, reader: Reader) -> list[Unreadable]:
    """What else lies in a source and is not imported: what is no file, though named as the reader's
    are, and files of other plain formats beside those of one."""
    own = SUFFIXES.get(reader.name, ())
    found = list(no_files(source, lambda name: _ends(name)(own)))
    if reader.name not in PLAIN:
        return found
    for name, count in plain_files(source).items():
        if name != reader.name:
            found += _of_another(source, name, count)
    return found


def _of_another(source: Path, name: str, count: int) -> list[Unreadable]:
    """What is told of the files of another plain format: what the first are instead of data, and
    how to import them if there are others and these can be read."""
    first = list(islice(files(source, lambda file: _ends(file)(PLAIN[name])), LOOKED_AT))
    causes = {relative(source, path): mistaken(path) for path in first}
    lost = [Unreadable(file, cause) for file, cause in causes.items() if cause]
    if not formats()[name].detect(source) or all(
        cause and cause != EMPTY for cause in causes.values()
    ):
        return lost
    told = f"{count:,} files of another format; --format {name} imports these"
    return [Unreadable(source.name, told)]
