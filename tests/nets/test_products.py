"""Sums that low precision would spoil: of bias gradients, of products, of an output's bias."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.dense import MLP
from veorl_tf.nets.products import add_bias, leading_sums, product

HALF = ["bfloat16", "float16"]


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize("shape", [(400, 900, 1), (25, 16, 30, 30, 3), (360_000, 2), (7,)])
def test_many_ones_add_up(shape, dtype):
    """In bfloat16 one more than 256 is 256."""
    sums = leading_sums(tf.ones(shape, dtype))
    assert sums.dtype == tf.float32
    np.testing.assert_allclose(sums, np.prod(shape[:-1]), rtol=4e-3)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_bias_is_added_in_one_type_and_learnt_in_float32(dtype, graph, rng):
    x = tf.constant(rng.normal(size=(300, 40, 40, 3)), dtype)
    bias = tf.Variable(rng.normal(size=3), dtype=tf.float32)
    upstream = tf.constant(rng.normal(0.003, 0.01, size=x.shape), dtype)

    def run():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = add_bias(x, bias)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * tf.cast(upstream, tf.float32))
        return y, *tape.gradient(loss, [x, bias])

    y, to_x, to_bias = tf.function(run)() if graph else run()
    assert (y.dtype, to_bias.dtype) == (x.dtype, tf.float32)
    np.testing.assert_array_equal(to_x, upstream)
    exact = tf.cast(upstream, tf.float64).numpy().sum((0, 1, 2))
    np.testing.assert_allclose(to_bias, exact, rtol=5e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_products_are_rounded_once(dtype, rng):
    """Not cut off, which would shrink every product by a third of a percent."""
    left, right = (tf.constant(rng.uniform(0.5, 1, (2, 60, 60)), dtype) for _ in range(2))
    exact = tf.cast(left, tf.float64) @ tf.cast(right, tf.float64)
    found = tf.cast(product(left, right), tf.float64)
    step = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(found, exact, rtol=1.01 * step)
    assert abs(np.mean(found / exact) - 1) < step / 10


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("value", [700.7, 19.3])
def test_what_a_head_says_is_not_rounded(value, precision, built):
    net = built(MLP("net", 7, 5, 1, 1, dtype=precision))
    net.out.bias.assign([value])
    np.testing.assert_allclose(net(tf.zeros([2, 7])), value, rtol=1e-6)
