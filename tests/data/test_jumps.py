"""Behaviour jumps (invariants 8 to 10 of VeoRL's spec; 11, of a compiled compaction, does not
apply: windows are compacted before they reach a graph)."""

import numpy as np
import pytest

from veorl_tf.data.jumps import compact


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


def reference(index, slots):
    """Run after run, as a person would do it: codes, frames, mask `[K]` and the number of runs."""
    runs = []
    for j, code in enumerate(index):
        if runs and runs[-1][0] == code:
            runs[-1][1] = j + 1
        else:
            runs.append([code, j + 1])
    kept = runs[:slots]
    padding = [[0, 0]] * (slots - len(kept))
    codes, frames = zip(*(kept + padding), strict=True)
    return codes, frames, [1] * len(kept) + [0] * len(padding), len(runs)


def check(index, slots):
    jumps = compact(index, slots)
    expected = zip(*(reference(row, slots) for row in index), strict=True)
    for name, actual, right in zip(jumps._fields, jumps, expected, strict=True):
        np.testing.assert_array_equal(actual, right, err_msg=f"{name} of {index}")
    return jumps


def test_the_worked_example():
    jumps = compact(np.array([[3, 3, 7, 7, 7, 3, 9, 9, 9]]), 6)
    np.testing.assert_array_equal(jumps.code, [[3, 7, 3, 9, 0, 0]])
    np.testing.assert_array_equal(jumps.frame, [[2, 5, 6, 9, 0, 0]])
    np.testing.assert_array_equal(jumps.mask, [[1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(jumps.runs, [4])
    assert jumps.code.dtype == jumps.runs.dtype == np.int32
    assert jumps.frame.dtype == np.int64 and jumps.mask.dtype == np.float32


@pytest.mark.parametrize("codes", [1, 2, 3, 50])
@pytest.mark.parametrize(("length", "slots"), [(1, 1), (1, 3), (7, 7), (9, 4), (5, 11), (31, 31)])
def test_against_a_slow_reference(rng, codes, length, slots):
    """All equal, all different, more runs than slots, more slots than transitions."""
    check(rng.integers(0, codes, (20, length)), slots)


def test_all_equal_and_all_different(rng):
    equal = check(np.full((1, 12), 4), 5)
    assert equal.runs == 1 and equal.frame[0, 0] == 12
    different = check(rng.permutation(12)[None], 12)
    np.testing.assert_array_equal(different.frame, [np.arange(1, 13)])


@pytest.mark.parametrize("slots", [3, 8, 15])
def test_properties(rng, slots):
    index = rng.integers(0, 3, (40, 12))
    jumps = compact(index, slots)
    code, frame, mask, runs = jumps
    np.testing.assert_array_equal(mask.sum(1), np.minimum(runs, slots))
    np.testing.assert_array_equal(code[:, 0], index[:, 0])
    assert (np.diff(code, axis=1) != 0)[(mask[:, 1:] == 1)].all()
    assert (np.diff(frame, axis=1) > 0)[(mask[:, 1:] == 1)].all()
    whole = runs <= slots
    last = frame[np.arange(40), mask.sum(1).astype(int) - 1]
    np.testing.assert_array_equal(last[whole], 12)
    assert not code[mask == 0].any() and not frame[mask == 0].any()
    longer = np.repeat(index, 2, 1)
    stretched = compact(longer, slots)
    np.testing.assert_array_equal(stretched.code, code)
    np.testing.assert_array_equal(stretched.frame, 2 * frame)
