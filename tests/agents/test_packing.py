"""Key frames without their padding."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.packing import Packing


@pytest.mark.parametrize(("bucket", "length"), [(0, 20), (1, 7), (4, 8), (10, 10), (64, 20)])
def test_packing_keeps_every_valid_slot_and_rounds_up(rng, bucket, length):
    mask = np.zeros((4, 5), np.float32)
    for row, runs in enumerate((3, 1, 2, 1)):
        mask[row, :runs] = 1
    packing = Packing(tf.constant(mask), bucket)
    x = rng.normal(size=(4, 5, 2)).astype(np.float32)
    packed = packing.pack(tf.constant(x)).numpy()
    assert packed.shape == (length, 2)
    np.testing.assert_array_equal(packed[packing.pack(mask) == 1], x[mask == 1])
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
