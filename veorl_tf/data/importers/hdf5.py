"""Logs in HDF5 files: V-D4RL at 84 px, and Minari.

Of a file only what hard links lead to is read: soft and external links, virtual datasets and those
kept in other files could name anything on the machine. Strings and objects are not read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    ARRIVING,
    MAX_BYTES,
    Alignment,
    Item,
    Log,
    Options,
    Unreadable,
    inside,
    natural,
    needs,
    relative,
)
from veorl_tf.data.importers.npz import (
    LOOKED_AT,
    MAX_CLASSES,
    MAX_ROWS,
    check_size,
    damage,
    files,
    finite,
    one_hot,
    rgb,
)
from veorl_tf.data.importers.pictures import check_pixels, decode_picture

SUFFIXES = (".hdf5", ".h5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_DEPTH = 8  # of groups in groups
MAX_TABLE = 1 << 26  # bytes of a table of metadata


class VD4RL(Log):
    """V-D4RL's shards: `observation` uint8 `[N, 3, 84, 84]`, `action [N, A]`, `reward`, `discount`
    and `step_type` (0 first, 1 middle, 2 last) `[N]`, the rows of all episodes one after the other.
    A shard that begins within an episode begins with a stretch of one.

    Rows are dm_env time steps with the action that led to them, as its replay buffer pairs row t's
    action with the observation of row t - 1. The suite's actions are in [-1, 1]."""

    name = "vd4rl"
    about = "V-D4RL 84 px: .hdf5 shards"
    alignment = ARRIVING

    KEYS = ("observation", "action", "reward", "discount", "step_type")

    def detect(self, source):
        looked_at = 0
        for path in files(source, *SUFFIXES):
            if not has_signature(path):
                continue
            try:
                with opened(path, path.name) as file:
                    if all(is_hard(file, key) for key in self.KEYS):
                        return True
            except Unreadable:
                return True
            looked_at += 1
            if looked_at == LOOKED_AT:
                return False
        return False

    def items(self, source, options, leave_out):
        for path in files(source, *SUFFIXES):
            name = relative(source, path)
            try:
                edges = self._edges(source, name)
            except Unreadable as problem:
                leave_out(problem)
                continue
            for number, (start, stop) in enumerate(pairwise(edges)):
                yield Item(f"{name}-{number}", (name,), {"rows": [start, stop]})

    def episode(self, source, item, options):
        rows = slice(*item.spec["rows"])
        with opened(inside(source, item.files[0]), item.name) as file:
            pictures = dataset(file, "observation", item.name)
            if layout(pictures) not in ("first", "last"):
                raise Unreadable(item.name, f"{told('observation', pictures)} is no picture")
            out = {
                "image": read_pictures(pictures, item.name, rows),
                "reward": column(file, "reward", item.name, rows),
                "terminal": column(file, "discount", item.name, rows) == 0,
                **self._actions(file, item, rows),
            }
        return same_length(item.name, out, rows.stop - rows.start)

    def numbers(self, source, item, options):
        with opened(inside(source, item.files[0]), item.name) as file:
            return self._actions(file, item, slice(*item.spec["rows"]))

    def _edges(self, source: Path, name: str) -> list[int]:
        """Rows where the episodes of a shard begin, and the end."""
        with opened(inside(source, name), name) as file:
            for key in self.KEYS:
                if not is_hard(file, key):
                    raise Unreadable(name, f"no shard of V-D4RL: {key!r} is missing")
            steps = dataset(file, "step_type", name)
            if steps.ndim != 1 or not 0 < len(steps) <= MAX_ROWS:
                raise Unreadable(
                    name, f"{told('step_type', steps)}; 1 to {MAX_ROWS:,} rows expected"
                )
            count = len(steps)
            for key in self.KEYS:
                if dataset(file, key, name).shape[:1] != (count,):
                    what = told(key, file[key])
                    raise Unreadable(name, f"{what} for {count} rows of step_type")
            firsts = np.flatnonzero(read(steps, name) == 0).tolist()
        return sorted({0, *firsts, count})

    def _actions(self, file, item: Item, rows: slice) -> dict[str, Any]:
        action = dataset(file, "action", item.name)
        if action.ndim != 2 or not action.shape[1]:
            raise Unreadable(item.name, f"{told('action', action)}; [N, A] expected")
        action = finite(item.name, "action", read(action, item.name, rows))
        ones = np.ones(action.shape[1], np.float32)
        return {"action": action, "bounds": (-ones, ones)}


class Minari(Log):
    """Minari datasets: `<dataset>/data/main_data.hdf5` and, beside it, `metadata.json` with the
    spaces. Groups episode_0, episode_1, ... hold `observations` (n + 1), `actions`, `rewards`,
    `terminations` and `truncations` (n); Dict and Tuple spaces are groups in groups. Pictures are
    arrays uint8 `[n + 1, H, W, 3]`, or JPEG files, as the library stores those of 32 pixels and
    more by default.

    Row t holds what was done at observation t and what came of it: all leaves. Of actions, a Box
    gives the bounds; discrete ones become one-hot."""

    name = "minari"
    about = "Minari datasets with pictures (HDF5)"
    alignment = Alignment("leaving", "leaving", "leaving")

    FILE, TABLE = "main_data.hdf5", "metadata.json"

    def detect(self, source):
        return any(path.name == self.FILE for path in files(source, self.FILE))

    def items(self, source, options, leave_out):
        for path in files(source, self.FILE):
            if path.name != self.FILE:
                continue
            name = relative(source, path)
            folder = name.removesuffix(self.FILE)
            try:
                groups, spec = self._contents(source, name, options)
            except Unreadable as problem:
                leave_out(problem)
                continue
            for group in groups:
                yield Item(folder + group, (name,), {"group": group, **spec})

    def episode(self, source, item, options):
        with opened(inside(source, item.files[0]), item.name) as file:
            group = hard(file, item.spec["group"], item.name)
            pictures = dataset(group, item.spec["image"], item.name, coded=True)
            terminal = column(group, "terminations", item.name) > 0
            count = len(terminal)
            if pictures.shape[:1] != (count + 1,):
                what = told(item.spec["image"], pictures)
                raise Unreadable(item.name, f"{what} for {count} steps; {count + 1} expected")
            out = {
                "reward": column(group, options.reward_key or "rewards", item.name),
                "terminal": terminal,
                **self._actions(group, item, options),
            }
            same_length(item.name, out, count)
            return {"image": read_pictures(pictures, item.name), **out}

    def numbers(self, source, item, options):
        with opened(inside(source, item.files[0]), item.name) as file:
            return self._actions(hard(file, item.spec["group"], item.name), item, options)

    def _contents(self, source: Path, name: str, options: Options) -> tuple[list[str], dict]:
        """A dataset's groups of episodes, and what they have in common."""
        path = inside(source, name)
        with opened(path, name) as file:
            found = (key for key in file.keys() if re.fullmatch(r"episode_[0-9]{1,12}", key))
            groups = sorted(found, key=natural)
            if not groups:
                raise Unreadable(name, "no group of an episode")
            image = self._image(file, groups[:LOOKED_AT], name, options.image_key)
        action = "/".join(filter(None, ("actions", options.action_key)))
        spec = {"image": image, "action": action}
        table = path.with_name(self.TABLE)
        if table.exists():
            text = self._table(source, table).get("action_space")
            spec["space"] = action_space(text, options.action_key, name)
        return groups, spec

    def _image(self, file, groups: list[str], name: str, wanted: str) -> str:
        """The key of the pictures in a group of an episode: of the first that can be read."""
        problem = None
        for group in groups:
            try:
                with damage(f"{name}: {group}"):
                    arrays = leaves(hard(file, group, name), "observations", name)
                    pictures = [key for key, array in arrays.items() if layout(array)]
            except Unreadable as error:
                problem = problem or error
                continue
            if wanted:
                pictures = [k for k in pictures if wanted in (k, k.removeprefix("observations/"))]
            if len(pictures) == 1:
                return pictures[0]
            if pictures:
                raise UserError(
                    f"{name}: several pictures; name one with --image_key: {', '.join(pictures)}"
                )
            there = ", ".join(told(key, array) for key, array in arrays.items()) or "nothing"
            if wanted:
                raise UserError(f"{name}: --image_key {wanted}: no pictures; found: {there}")
            raise Unreadable(name, f"no pictures uint8 [n, H, W, 3]; found: {there}")
        raise problem

    def _table(self, source: Path, table: Path) -> dict[str, Any]:
        """A dataset's metadata."""
        try:
            if inside(source, relative(source, table)).stat().st_size > MAX_TABLE:
                raise UserError(f"{table}: more than {MAX_TABLE:,} bytes")
            content = json.loads(table.read_bytes())
        except (OSError, ValueError, RecursionError, Unreadable) as error:
            raise UserError(f"{table}: no table of metadata ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{table}: no table of metadata")
        return content

    def _actions(self, group, item: Item, options: Options) -> dict[str, Any]:
        space = item.spec.get("space")
        if space is None:  # old datasets keep it in the file
            text = group.file.attrs.get("action_space")
            space = action_space(text, options.action_key, item.files[0])
        action = read(dataset(group, item.spec["action"], item.name), item.name)
        if action.ndim < 1 or not action.size:
            raise Unreadable(item.name, f"action is {list(action.shape)}")
        flat = action.reshape(len(action), -1)
        if "classes" in space:
            if flat.shape[1] != len(space["classes"]) or flat.dtype.kind not in "iu":
                raise Unreadable(
                    item.name,
                    f"action is {action.dtype} {list(action.shape)}; {len(space['classes'])} "
                    f"integers a step expected",
                )
            moved = flat.astype(np.int64) - np.asarray(space["start"], np.int64)
            columns = zip(moved.T, space["classes"], strict=True)
            return {"action": np.concatenate([one_hot(item.name, *c) for c in columns], 1)}
        if flat.dtype.kind != "f" and "low" not in space:
            raise Unreadable(item.name, "action holds integers, and no metadata tell of how many")
        out: dict[str, Any] = {"action": finite(item.name, "action", flat)}
        if "low" in space:
            low, high = (np.asarray(space[key], np.float32) for key in ("low", "high"))
            if len(low) != flat.shape[1]:
                raise Unreadable(
                    item.name, f"action is {list(action.shape)}; its space has {len(low)} numbers"
                )
            if np.isfinite(low).all() and np.isfinite(high).all():
                out["bounds"] = (low, high)
        return out


def action_space(text: Any, key: str, name: str) -> dict[str, list]:
    """`low` and `high`, flat, of a Box, or the numbers of `classes` and their `start`, of a space
    in Minari's JSON; {} for none. `key` leads into Dict and Tuple spaces."""
    try:
        space = json.loads(text) if isinstance(text, str) else {}
        for part in filter(None, key.split("/")):
            below = space["subspaces"]
            space = below[int(part.removeprefix("_index_")) if isinstance(below, list) else part]
        kind = space.get("type")
        if kind == "Box":
            low, high = (np.array(space[side], np.float64).reshape(-1) for side in ("low", "high"))
            if low.shape != high.shape:
                raise ValueError("low and high differ in size")
            return {"low": low.tolist(), "high": high.tolist()}
        if kind == "MultiBinary":
            count = min(int(np.prod(space["n"])), MAX_CLASSES)
            return {"low": [0.0] * count, "high": [1.0] * count}
        if kind not in ("Discrete", "MultiDiscrete"):
            return {}
        classes = np.array(space["n" if kind == "Discrete" else "nvec"], np.int64).reshape(-1)
        start = np.array(space.get("start", 0), np.int64).reshape(-1)
        start = np.broadcast_to(start, classes.shape)
    except Exception:
        raise UserError(f"{name}: its metadata hold no space of actions {key}".rstrip()) from None
    if classes.min(initial=1) < 1 or classes.sum() > MAX_CLASSES:
        raise UserError(f"{name}: 1 to {MAX_CLASSES} discrete actions expected")
    return {"classes": classes.tolist(), "start": start.tolist()}


def has_signature(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """An HDF5 file. What the library raises within, here or while arrays are read, is damage."""
    h5py = needs("h5py", "reading HDF5 files")
    with damage(name, "no whole HDF5 file"), h5py.File(path, "r", locking=False) as file:
        yield file


def is_hard(group, key: str) -> bool:
    """Whether a group has something of that name, and not by a link that may lead elsewhere."""
    import h5py

    link = key.encode("utf-8", "surrogateescape")
    links = group.id.links
    return links.exists(link) and links.get_info(link).type == h5py.h5l.TYPE_HARD


def hard(group, key: str, name: str):
    """What is at `key`, a/b/c, in a group."""
    import h5py

    for part in key.split("/"):
        if not isinstance(group, h5py.Group) or part in ("", ".") or not is_hard(group, part):
            raise Unreadable(name, f"{key!r} is missing, or a link that is not followed")
        group = group[part]
    return group


def own(array) -> bool:
    """Whether it is an array whose numbers lie in this file."""
    import h5py

    if not isinstance(array, h5py.Dataset) or array.shape is None:
        return False
    return not array.is_virtual and not array.external


def dataset(group, key: str, name: str, coded: bool = False):
    """An array of numbers, which is not read yet, or with `coded` of picture files."""
    array = hard(group, key, name)
    if not own(array):
        raise Unreadable(name, f"{key!r} is no array of this file")
    if array.dtype.kind not in "fiub" and not (coded and layout(array)):
        raise Unreadable(name, f"{told(key, array)}; numbers expected")
    return array


def leaves(group, key: str, name: str) -> dict[str, Any]:
    """All arrays at and below `key` by their path; each group is visited once."""
    import h5py

    out, seen, todo = {}, set(), [(key, hard(group, key, name))]
    while todo:
        path, found = todo.pop(0)
        if own(found):
            out[path] = found
        elif isinstance(found, h5py.Group) and path.count("/") < MAX_DEPTH:
            address = h5py.h5o.get_info(found.id).addr
            if address not in seen:
                seen.add(address)
                names = sorted(name for name in found.keys() if is_hard(found, name))
                todo += [(f"{path}/{name}", found[name]) for name in names]
    return out


def layout(array) -> str | None:
    """How an array holds pictures: channels `first` or `last`, `coded` as files; None if not."""
    import h5py

    if array.ndim == 1 and h5py.check_vlen_dtype(array.dtype) == np.uint8:
        return "coded"
    if array.dtype != np.uint8:
        return None
    if array.ndim == 2 and len(array) and array.shape[1] > len(JPEG):
        check_size(array.name, "a row", array.chunks or (), array.dtype)
        return "coded" if array[0, : len(JPEG)].tobytes() == JPEG else None
    if array.ndim != 4:
        return None
    return "last" if array.shape[3] in (1, 3) else "first" if array.shape[1] in (1, 3) else None


def told(key: str, array) -> str:
    """An array in a message."""
    return f"{key} {array.dtype} {list(array.shape)}"


def read(array, name: str, rows: slice | None = None) -> np.ndarray:
    """Rows of an array of numbers, or all of it."""
    key = array.name.rsplit("/", 1)[-1]
    shape = array.shape
    if rows is not None:
        if not shape or shape[0] < rows.stop:
            raise Unreadable(name, f"{told(key, array)}; {rows.stop} rows expected")
        shape = (rows.stop - rows.start, *shape[1:])
    for part in (shape, array.chunks or ()):
        check_size(name, key, part, array.dtype)
    return array[()] if rows is None else array[rows]


def column(group, key: str, name: str, rows: slice | None = None) -> np.ndarray:
    """Rows of an array of one number per row, float32 `[n]`."""
    array = dataset(group, key, name)
    if not array.ndim or array.shape[1:] not in ((), (1,)):
        raise Unreadable(name, f"{told(key, array)}; [n] expected")
    return finite(name, key, read(array, name, rows).reshape(-1))


def read_pictures(array, name: str, rows: slice | None = None) -> np.ndarray | list[np.ndarray]:
    """Pictures `[H, W, 3]` of an array that has a `layout`."""
    order = layout(array)
    if order == "coded":
        return _decoded(array, name)
    height, width = array.shape[2:] if order == "first" else array.shape[1:3]
    check_pixels(name, width, height)
    pictures = read(array, name, rows)
    if order == "first":
        pictures = np.ascontiguousarray(np.moveaxis(pictures, 1, -1))
    return rgb(pictures)


def _decoded(array, name: str) -> list[np.ndarray]:
    check_size(name, "pictures", array.chunks or (), array.dtype)
    out, size = [], 0
    for row in range(len(array)):
        out.append(decode_picture(io.BytesIO(array[row].tobytes()), f"{name}, picture {row}"))
        size += out[-1].nbytes
        if size > MAX_BYTES:
            raise Unreadable(name, f"pictures of more than {MAX_BYTES:,} bytes")
    return out


def same_length(name: str, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    """The arrays. Raises Unreadable unless all of them have `count` rows."""
    for key, array in arrays.items():
        if key != "bounds" and len(array) != count:
            raise Unreadable(name, f"{key} has {len(array)} rows, not {count}")
    return arrays
