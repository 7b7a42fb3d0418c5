"""V-D4RL at 84 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.data.importers.base import (
    ARRIVING,
    Item,
    Log,
    Unreadable,
    files,
    inside,
    looks_like,
    relative,
)
from veorl_tf.data.importers.checks import finite
from veorl_tf.data.importers.hdf5 import (
    SUFFIXES,
    column,
    dataset,
    has_signature,
    is_hard,
    layout,
    opened,
    read,
    read_pictures,
    same_length,
    told,
)
from veorl_tf.data.layout import MAX_ROWS


def shards(source: Path) -> Iterator[Path]:
    return files(source, lambda name: name.endswith(SUFFIXES))


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
        return looks_like(filter(has_signature, shards(source)), self._is_shard)

    def items(self, source, options, leave_out):
        for path in shards(source):
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
            if layout(pictures) in (None, "coded"):
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

    def _is_shard(self, path: Path) -> bool:
        with opened(path, path.name) as file:
            return all(is_hard(file, key) for key in self.KEYS)

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
