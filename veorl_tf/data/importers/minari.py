"""Minari datasets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    LOOKED_AT,
    Alignment,
    Item,
    Log,
    Options,
    Unreadable,
    files,
    inside,
    natural,
    relative,
)
from veorl_tf.data.importers.checks import (
    MAX_CLASSES,
    damage,
    finite,
    one_hot,
)
from veorl_tf.data.importers.hdf5 import (
    column,
    dataset,
    hard,
    layout,
    leaves,
    opened,
    read,
    read_pictures,
    same_length,
    told,
)
from veorl_tf.data.mistaken import mistaken

MAX_TABLE = 1 << 26  # bytes of a table of metadata


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
        return any(True for _ in files(source, self.FILE.__eq__))

    def items(self, source, options, leave_out):
        for path in files(source, self.FILE.__eq__):
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
            group = hard(file, item.spec["group"], item.name)
            if parts := self._parts(group, item):  # of all episodes: said once
                raise UserError(f"{item.files[0]}: {parts}")
            return self._actions(group, item, options)

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
                    # Of arrays without channels some are masks and maps.
                    sure = [key for key in pictures if layout(arrays[key]) != "none"]
                    pictures = pictures if wanted else sure or pictures
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
            reason = mistaken(table) or f"no table of metadata ({error})"
            raise UserError(f"{table}: {reason}") from None
        if not isinstance(content, dict):
            raise UserError(f"{table}: no table of metadata")
        return content

    def _parts(self, group, item: Item) -> str | None:
        """What is said where the action has parts, of a Dict or Tuple space; None if it has not."""
        key = item.spec["action"]
        arrays = leaves(group, key, item.name)
        if key in arrays:
            return None
        parts = ", ".join(path.removeprefix("actions/") for path in arrays) or "none"
        return f"{key} is no array but has parts; name one with --action_key: {parts}"

    def _actions(self, group, item: Item, options: Options) -> dict[str, Any]:
        space = item.spec.get("space")
        if space is None:  # old datasets keep it in the file
            text = group.file.attrs.get("action_space")
            space = action_space(text, options.action_key, item.files[0])
        if parts := self._parts(group, item):
            raise Unreadable(item.name, parts)
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
