"""What readers of foreign data have in common.

A reader lists a source's items, each of which a worker process imports by itself, and reads one.
Two kinds exist. `Footage` gives pictures with times, which become clips (`clips.py`); a `Log` gives
episodes with actions, and says how these align with the pictures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veorl_tf.core.errors import MachineError, UserError
from veorl_tf.data.layout import MAX_BYTES as MAX_BYTES
from veorl_tf.data.layout import MAX_PIXELS as MAX_PIXELS
from veorl_tf.data.mistaken import MISSING, mistaken, no_file

LOOKED_AT = 16  # files of a folder that `detect` opens, at most


class Unreadable(Exception):
    """Something in a source is not imported: `reason` says why, `name` where it is; empty, it is
    the item at hand. Passes between processes, and can be printed whatever a file is called."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = _printable(name), _printable(reason)
        super().__init__(self.name, self.reason)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.name else self.reason


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Item:
    """What one worker imports in one go.

    Attributes:
        name: unique in the source; names files of the output, and the item in reports.
        files: what it reads, relative to the source; their contents decide what it is.
        spec: what its reader needs to know besides: numbers, text and lists.
    """

    name: str
    files: tuple[str, ...]
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What a user may say of an import; the command's flags have the same names."""

    size: int = 64  # pixels, square
    fit: str = "crop"  # crop | letterbox | stretch | x,y,width,height
    mirror: bool = False
    flip: bool = False
    fps: float = 10.0  # of footage; 0: every frame
    clip: int = 100  # frames per clip, at most
    shortest: int = 26  # frames per clip, at least
    cut: float = 0.25  # change of a frame, of 1, that is a cut
    still: float = 0.001  # change of a frame, of 1, that is none
    camera: str = ""
    split: str = ""
    image_key: str = ""
    action_key: str = ""
    reward_key: str = ""


class Alignment(NamedTuple):
    """How a log's row t relates to its image t. `arriving`: it led to the image, or was received
    with it; `leaving`: it was chosen at the image, or received for what was done there."""

    action: str
    reward: str
    terminal: str


ARRIVING = Alignment("arriving", "arriving", "arriving")


class Frame(NamedTuple):
    """A picture `[H, W, 3]` uint8 and its time in seconds from the footage's beginning. The picture
    is made when it is asked for."""

    time: float
    picture: Callable[[], np.ndarray]


class Reader:
    """A foreign format. `about` is its line in the table of formats."""

    name: str
    about: str

    def detect(self, source: Path) -> bool:
        """Whether the source, a file or a folder, looks like this format. Reads no more than names
        and heads of files, and raises nothing for damaged ones."""
        raise NotImplementedError("detect(source) -> bool")

    def items(
        self, source: Path, options: Options, leave_out: Callable[[Unreadable], None]
    ) -> Iterator[Item]:
        """All items in an order that depends on the source alone. What cannot be one is told to
        `leave_out`. Raises UserError when the source as a whole cannot be read."""
        raise NotImplementedError("items(source, options, leave_out) -> items")


class Footage(Reader):
    """Pictures with times, without actions; `rate` of them a second, if the format says so."""

    rate: float | None = None

    def frames(self, source: Path, item: Item, options: Options) -> Iterator[Frame]:
        """An item's frames in the order of their times. Raises Unreadable where damage shows; what
        came before stays good."""
        raise NotImplementedError("frames(source, item, options) -> frames")

    def pieces(self, source: Path, item: Item) -> list[Item]:
        """An item of many bytes as several that can be imported side by side."""
        return [item]


class Log(Reader):
    """Episodes with actions."""

    alignment: Alignment

    def episode(self, source: Path, item: Item, options: Options) -> dict[str, Any]:
        """An item's arrays. Raises Unreadable.

        `image`: n pictures, `[n, H, W, 3]` uint8, or a sequence of them that is gone through in
        order and may raise Unreadable then. Where there are any: `action [m, A]`, `reward [m]`,
        `terminal [m]` (true where an episode ended for good), `success [m]`, m = n or, of leaving
        ones, n - 1; and `bounds`, a pair of `[A]`, the range that actions can have. `left_out`, if
        there is any, lists as Unreadable what of the item is not among them; `between` counts its
        discounts between 0 and 1, if any, by value.
        """
        raise NotImplementedError("episode(source, item, options) -> arrays")

    def numbers(self, source: Path, item: Item, options: Options) -> dict[str, Any]:
        """`action` and `bounds` of an item, if it has any; readers that need not look at pictures
        for them say so."""
        return self.episode(source, item, options)

    def action_size(self, source: Path, item: Item) -> int | None:
        """Numbers per action of an item that cannot be read, where its header still tells: it
        counts when the usual size is sought."""
        return None


def aligned(arrays: Mapping[str, Any], alignment: Alignment) -> dict[str, np.ndarray]:
    """`action`, `reward`, `discount` and `success` as episodes store them: row t came with image t,
    row 0 with the reset. Of n `leaving` rows the last led to no image and is dropped, but for the
    only reward or success of an episode, which marks its last image. Raises Unreadable when there
    are more or fewer rows than images need."""
    count, out = len(arrays["image"]), {}

    def arrived(key: str, kind: str) -> np.ndarray:
        rows = np.array(arrays[key], np.float32)
        if len(rows) != count and (kind == "arriving" or len(rows) != count - 1):
            raise Unreadable("", f"{len(rows)} rows of {key} for {count} images")
        if kind == "arriving":
            return rows
        moved = np.concatenate([np.zeros((1, *rows.shape[1:]), np.float32), rows])[:count]
        if key in ("reward", "success") and len(rows) == count and not rows[:-1].any():
            moved[-1] = rows[-1]
        return moved

    for key in ("action", "reward", "success"):
        if key in arrays:
            out[key] = arrived(key, alignment.action if key == "action" else alignment.reward)
    for key in ("action", "reward"):
        if key in out:
            out[key][:1] = 0
    if "terminal" in arrays:
        out["discount"] = 1 - (arrived("terminal", alignment.terminal) > 0).astype(np.float32)
    return out


def scaled(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Actions `[n, A]` with `low` and `high` moved to -1 and 1; what never varies becomes 0. Row 0,
    the reset's, stays zero."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    span = np.where(high > low, high - low, 1.0)
    moved = np.where(high > low, 2 * (action - low) / span - 1, 0.0)
    moved[:1] = 0
    return np.clip(moved, -1, 1).astype(np.float32)


def inside(source: Path, name: str) -> Path:
    """The file of that relative name. Raises Unreadable when it is none of the source's: an
    absolute name, or one that climbs out, through links too. (Files of a snapshot in Hugging Face's
    cache are links to its `blobs`.)"""
    if not isinstance(name, str):
        raise Unreadable(str(name), "no file's name")
    root = source if source.is_dir() else source.parent
    path = root / name
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        dangling = os.path.islink(path) and not os.path.exists(path)
        real = Path(os.path.realpath(path.parent if dangling else path))
    except ValueError:  # a zero byte, or half of a surrogate pair
        raise Unreadable(name, "no file's name") from None
    within = any(real.is_relative_to(os.path.realpath(home)) for home in homes)
    if os.path.isabs(name) or not within:
        raise Unreadable(name, "lies outside of the source")
    if lost := no_file(path):
        raise Unreadable(name, lost if lost == MISSING else f"{MISSING}: {lost}")
    return path


def with_cause(source: Path, problem: Unreadable, files: Sequence[str] = ()) -> Unreadable:
    """A problem with its cause: where the file that it names, or else one of the item's `files`,
    is none of data at all, that is said instead."""
    others = () if problem.name in files else files[:LOOKED_AT]
    for name in (problem.name, *others):
        with suppress(Unreadable):
            if cause := mistaken(inside(source, name)):
                reason = cause if name == problem.name else f"{name} is {cause}"
                return Unreadable(problem.name, reason)
    return problem


def walk(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders of a source with the names of their files, both in natural order. Links to folders
    are followed once, and not out of the source: a loop ends. What is hidden, or neither a folder
    nor a file, is passed by."""
    seen: set[tuple[int, int]] = set()
    root = os.path.realpath(source)
    waiting = [source]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            names = sorted((n for n in os.listdir(folder) if n[0] != "."), key=natural)
        except OSError:  # a file, a folder that may not be read, or one too deep to be named
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = [name for name in names if os.path.isdir(folder / name)]
        folders = [
            name
            for name in folders
            if not os.path.islink(folder / name)
            or Path(os.path.realpath(folder / name)).is_relative_to(root)
        ]
        waiting += [folder / name for name in reversed(folders)]
        yield folder, [name for name in names if os.path.isfile(folder / name)]


def files(source: Path, wanted: Callable[[str], Any]) -> Iterator[Path]:
    """The source's files of wanted names, or the source itself if it is one."""
    folders = [(source.parent, [source.name])] if source.is_file() else walk(source)
    for folder, names in folders:
        yield from (folder / name for name in names if wanted(name))


def no_files(source: Path, wanted: Callable[[str], Any]) -> Iterator[Unreadable]:
    """What in a source has a wanted name and is no file that can be opened."""
    for folder, _ in walk(source):
        for name in sorted(
            (n for n in os.listdir(folder) if n[0] != "." and wanted(n)), key=natural
        ):
            if reason := no_file(folder / name):
                yield Unreadable(relative(source, folder / name), reason)


def looks_like(paths: Iterable[Path], test: Callable[[Path], Any]) -> bool:
    """Whether one of the first files passes a test. An Unreadable one does: it will be told."""
    for path in islice(paths, LOOKED_AT):
        try:
            if test(path):
                return True
        except Unreadable:
            return True
    return False


def natural(name: str) -> list:
    """A key for sorting: runs of digits count as numbers, so that im_9 comes before im_10."""
    parts = re.split(r"([0-9]+)", name)
    numbers = [part.lstrip("0") for part in parts]
    return [(len(n), n, part) if i % 2 else part for i, (n, part) in enumerate(zip(numbers, parts))]


def relative(source: Path, path: Path) -> str:
    """A file's name in its source, with forward slashes."""
    root = source if source.is_dir() else source.parent
    return path.relative_to(root).as_posix()


def needs(package: str, what: str) -> Any:
    """An optional package, imported; the error says how to install it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise MachineError(
            f"{what} needs the package {package.split('.')[0]}: "
            f"pip install --require-hashes -r locks/requirements-import.txt"
        ) from None


def only(keys: Sequence[str], source: Path, what: str) -> str:
    """The only one of some keys. Raises UserError when there are several, or none."""
    if not keys:
        raise UserError(f"{source}: no {what}")
    if len(keys) > 1:
        raise UserError(f"{source}: several cameras; --image_key one of {', '.join(keys)}")
    return keys[0]


def one_of(name: str, value: str, valid) -> None:
    """Raises UserError when an option's value is none of the valid ones."""
    if value not in valid:
        raise UserError(f"--{name} {value}: one of {', '.join(valid)}")
