"""Behaviour jumps (invariants 8 to 11 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.compaction import Packing, compact, take_frames


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
    jumps = compact(tf.constant(index, tf.int32), slots)
    expected = zip(*(reference(row, slots) for row in index), strict=True)
    for name, actual, right in zip(jumps._fields, jumps, expected, strict=True):
        np.testing.assert_array_equal(actual, right, err_msg=f"{name} of {index}")
    return jumps


def test_the_worked_example():
    jumps = compact(tf.constant([[3, 3, 7, 7, 7, 3, 9, 9, 9]]), 6)
    np.testing.assert_array_equal(jumps.code, [[3, 7, 3, 9, 0, 0]])
    np.testing.assert_array_equal(jumps.frame, [[2, 5, 6, 9, 0, 0]])
    np.testing.assert_array_equal(jumps.mask, [[1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(jumps.runs, [4])
    assert jumps.code.dtype == jumps.frame.dtype == jumps.runs.dtype == tf.int32
    assert jumps.mask.dtype == tf.float32


@pytest.mark.parametrize("codes", [1, 2, 3, 50])
@pytest.mark.parametrize(("length", "slots"), [(1, 1), (1, 3), (7, 7), (9, 4), (5, 11), (31, 31)])
def test_against_a_slow_reference(rng, codes, length, slots):
    """All equal, all different, more runs than slots, more slots than transitions."""
    check(rng.integers(0, codes, (20, length)), slots)


def test_all_equal_and_all_different(rng):
    equal = check(np.full((1, 12), 4), 5)
    assert equal.runs.numpy() == 1 and equal.frame[0, 0].numpy() == 12
    different = check(rng.permutation(12)[None], 12)
    np.testing.assert_array_equal(different.frame, [np.arange(1, 13)])


@pytest.mark.parametrize("slots", [3, 8, 15])
def test_properties(rng, slots):
    index = rng.integers(0, 3, (40, 12))
    jumps = compact(tf.constant(index, tf.int32), slots)
    code, frame, mask, runs = (x.numpy() for x in jumps)
    np.testing.assert_array_equal(mask.sum(1), np.minimum(runs, slots))
    np.testing.assert_array_equal(code[:, 0], index[:, 0])
    assert (np.diff(code, axis=1) != 0)[(mask[:, 1:] == 1)].all()
    assert (np.diff(frame, axis=1) > 0)[(mask[:, 1:] == 1)].all()
    whole = runs <= slots
    last = frame[np.arange(40), mask.sum(1).astype(int) - 1]
    np.testing.assert_array_equal(last[whole], 12)
    assert not code[mask == 0].any() and not frame[mask == 0].any()
    longer = np.repeat(index, 2, 1)
    stretched = compact(tf.constant(longer, tf.int32), slots)
    np.testing.assert_array_equal(stretched.code, code)
    np.testing.assert_array_equal(stretched.frame, 2 * frame)


def test_take_frames_keeps_the_stored_type(rng):
    image = rng.integers(0, 256, (2, 10, 4, 4, 3), dtype=np.uint8)
    image[:, :, 0, 0, 0] = 0  # a first pixel of zero says nothing
    index = np.array([[3, 3, 7, 7, 7, 3, 9, 9, 9], [0] * 9])
    jumps = compact(tf.constant(index, tf.int32), 6)
    frames = take_frames(tf.constant(image), jumps)
    assert frames.dtype == tf.uint8 and frames.shape == (2, 6, 4, 4, 3)
    np.testing.assert_array_equal(frames[0, :4], image[0, [2, 5, 6, 9]])
    np.testing.assert_array_equal(frames[1, 0], image[1, 9])


@pytest.mark.parametrize(("bucket", "length"), [(0, 20), (1, 7), (4, 8), (10, 10), (64, 20)])
def test_packing_keeps_every_valid_slot_and_rounds_up(rng, bucket, length):
    mask = np.zeros((4, 5), np.float32)
    for row, runs in enumerate((3, 1, 2, 1)):
        mask[row, :runs] = 1
    packing = Packing(tf.constant(mask), bucket)
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    packed = packing.pack(tf.constant(x)).numpy()
    assert packed.shape == (length, 2)
    np.testing.assert_array_equal(packed[packing.mask == 1], x[mask == 1])
    restored = packing.unpack(tf.constant(packed)).numpy()
    np.testing.assert_array_equal(restored[mask == 1], x[mask == 1])
    assert (restored == 0).all(-1).sum() == 20 - length
    with tf.GradientTape() as tape:
        source = tf.Variable(x)
        loss = tf.reduce_sum(packing.unpack(packing.pack(source) ** 2) * mask[..., None])
    gradient = tf.convert_to_tensor(tape.gradient(loss, source))
    np.testing.assert_allclose(gradient, 2 * x * mask[..., None], rtol=1e-6)


def test_packing_of_full_slots():
    packing = Packing(tf.ones([3, 4]), 5)
    x = tf.random.stateless_normal([3, 4, 2], [0, 1])
    np.testing.assert_array_equal(packing.unpack(packing.pack(x)), x)


@pytest.mark.parametrize("slots", [4, 12])
def test_compiles_with_static_shapes(rng, slots):
    index = tf.constant(rng.integers(0, 3, (6, 9)), tf.int32)
    image = tf.constant(rng.integers(0, 256, (6, 10, 2, 2, 3), dtype=np.uint8))

    @tf.function(jit_compile=True, autograph=False)
    def run(index, image):
        jumps = compact(index, slots)
        assert all(x.shape.is_fully_defined() for x in jumps)
        return jumps, take_frames(image, jumps)

    compiled, frames = run(index, image)
    plain = compact(index, slots)
    for left, right in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(frames, take_frames(image, plain))
