"""Convolutions and their gradients, against TensorFlow's in float32."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.convolution import convolve, transposed, upsample


def values_and_gradients(function, x, kernel, weight, dtype="float32"):
    """What `function(x, kernel)` gives in a type; the gradients of its product with `weight`."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        out = tf.cast(function(tf.cast(x, dtype), tf.cast(kernel, dtype)), tf.float32)
        loss = tf.reduce_sum(out * weight)
    return [out, *tape.gradient(loss, [x, kernel])]


def assert_close(found, expected, tolerance):
    for one, two in zip(found, expected, strict=True):
        scale = np.abs(two).max()
        np.testing.assert_allclose(one / scale, two / scale, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [
        (32, 4, 2, "SAME"),
        (8, 4, 2, "SAME"),
        (9, 5, 1, "SAME"),
        (6, 4, 2, "VALID"),
        (7, 4, 2, "VALID"),  # a row and a column that no window sees
        (14, 4, 2, "VALID"),
        (13, 5, 2, "VALID"),
    ],
)
def test_convolutions_and_their_transposes(side, size, stride, padding, dtype, rng):
    kernel = tf.constant(rng.normal(size=(size, size, 4, 5)), tf.float32)
    large = tf.constant(rng.normal(size=(3, side, side, 4)), tf.float32)
    plain = lambda x, k: tf.nn.conv2d(x, k, stride, padding)
    ours = lambda x, k: convolve(x, k, stride, padding)
    small = tf.constant(rng.normal(size=plain(large, kernel).shape), tf.float32)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    found = values_and_gradients(ours, large, kernel, small, dtype)
    assert_close(found, values_and_gradients(plain, large, kernel, small), tolerance)
    if stride == 1 or side == 7:
        return
    plain = lambda x, k: tf.nn.conv2d_transpose(x, k, large.shape, 2, padding)
    ours = lambda x, k: transposed(x, k, padding)
    found = values_and_gradients(ours, small, kernel, large, dtype)
    assert_close(found, values_and_gradients(plain, small, kernel, large), tolerance)


@pytest.mark.parametrize("size", [2, 30])
def test_upsample_is_a_transposed_convolution(size, rng):
    """Values, and gradients to input, kernel and bias."""
    x = tf.constant(rng.normal(size=(3, size, size, 5)), tf.float32)
    kernel = tf.constant(rng.normal(size=(6, 6, 3, 5)), tf.float32)
    bias = tf.constant(rng.normal(size=3), tf.float32)
    out = 2 * size + 4
    weight = tf.constant(rng.normal(size=(3, out, out, 3)), tf.float32)
    plain = lambda x, k, b: tf.nn.conv2d_transpose(x, k, [3, out, out, 3], 2, "VALID") + b
    results = []
    for form in (upsample, plain):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel, bias])
            y = form(x, kernel, bias)
            loss = tf.reduce_sum(y * weight)
        results.append([y, *tape.gradient(loss, [x, kernel, bias])])
    assert_close(*results, 1e-5)


def test_kernels_learn_from_sums_in_float32(rng):
    """Windows that all say the same: in half precision their sum would stand still."""
    x, upstream = tf.fill([64, 32, 32, 2], 1.0), tf.fill([64, 16, 16, 3], 1.0)
    kernel = tf.zeros([4, 4, 2, 3])
    exact = values_and_gradients(lambda x, k: convolve(x, k, 2, "SAME"), x, kernel, upstream)[2]
    for dtype in ("bfloat16", "float16"):
        half = lambda x, k: convolve(x, k, 2, "SAME")
        found = values_and_gradients(half, x, kernel, upstream, dtype)[2]
        np.testing.assert_allclose(found, exact, rtol=4e-3)
