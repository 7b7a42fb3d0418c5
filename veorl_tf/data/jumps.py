"""Behaviour jumps: a sequence of per-step codes compacted to the frames where a code ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Jumps(NamedTuple):
    code: np.ndarray  # [B, K] int32, the code of run r (0 where not valid)
    frame: np.ndarray  # [B, K] int64, the frame in which run r ends (0 where not valid)
    mask: np.ndarray  # [B, K] float32, 1 for r < number of runs
    runs: np.ndarray  # [B] int32, the number of runs before any were dropped


def compact(index: np.ndarray, slots: int) -> Jumps:
    """Compacts codes `index [B, M]`, where code j labels the transition frame j -> j + 1.

    A run is a maximal block of equal consecutive codes. Slot r holds run r's code and frame j + 1
    for its last position j; runs beyond `slots` are dropped. Example, M = 9, K = 6:

        index   3 3 7 7 7 3 9 9 9      runs |-3-| |--7--| 3 |--9--|
        code    3 7 3 9 . .            frame 2 5 6 9 . .           mask 1 1 1 1 0 0

    Nothing but `index` is looked at: no test of pixels or code values.
    """
    index = np.asarray(index)
    ends = np.ones(index.shape, bool)
    ends[:, :-1] = index[:, 1:] != index[:, :-1]
    runs = ends.sum(1, dtype=np.int32)
    valid = np.arange(slots) < runs[:, None]
    row, last = np.nonzero(ends)  # in the order of rows, then of time
    rank = np.arange(len(row)) - np.repeat(np.cumsum(runs) - runs, runs)
    kept = rank < slots
    row, last, rank = row[kept], last[kept], rank[kept]
    code = np.zeros(valid.shape, np.int32)
    frame = np.zeros(valid.shape, np.int64)
    code[row, rank] = index[row, last]
    frame[row, rank] = last + 1
    return Jumps(code, frame, valid.astype(np.float32), runs)
