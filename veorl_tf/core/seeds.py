"""One random number, one place: every draw derives from the key (seed, stage, stream, index).

`index` counts updates (or episodes) on and on over the repeats of a stage, so a run that was killed
and resumed draws the same numbers as one that was not. Nothing here keeps state.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def generator(seed: int, stage: str, stream: str, index: int = 0) -> np.random.Generator:
    """A NumPy generator that belongs to one draw.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a keyed function
    of a counter. The 128-bit key is a hash of (seed, stage, stream); `index` is the counter's
    highest word, so each index owns a segment of 2^192 blocks that no other index reaches.

    Args:
        seed: the run's seed.
        stage: name of the stage, e.g. 'model'.
        stream: name of what is drawn, e.g. 'target'.
        index: how often this stream was drawn before, 0 <= index < 2^64.
    """
    if not 0 <= index < 2**64:
        raise ValueError(f"index {index} is outside [0, 2^64)")
    key = np.frombuffer(_digest(16, seed, stage, stream), dtype="<u8")
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def graph_seed(seed: int, stage: str) -> np.ndarray:
    """Base seed of a stage for TensorFlow's stateless operations: int32 [2].

    The graph folds the update's index and the name of each draw into it.
    """
    return np.frombuffer(_digest(8, seed, stage, "graph"), dtype="<i4").astype(np.int32)


def _digest(size: int, *parts: int | str) -> bytes:
    """The same on every machine and Python; JSON keeps ('a', 'bc') and ('ab', 'c') apart."""
    parts = [int(part) if not isinstance(part, str) else part for part in parts]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=size).digest()
