"""Weights that depend on a seed and a path alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.base import flatten_leading, frozen, initialise
from veorl_tf.nets.dense import MLP, Dense
from veorl_tf.nets.quantizer import Codebook
from veorl_tf.nets.vision import Encoder


def test_flatten_leading_handles_unknown_batch_sizes():
    @tf.function(input_signature=[tf.TensorSpec([None, 3, 2])])
    def merged(x):
        flat, leading = flatten_leading(x, 1)
        return tf.reshape(flat, leading + [2]), tf.shape(flat)

    x = tf.random.stateless_normal([5, 3, 2], [0, 1])
    same, shape = merged(x)
    np.testing.assert_array_equal(same, x)
    assert shape.numpy().tolist() == [15, 2]


def test_initial_weights_depend_on_seed_and_path_alone(built):
    alone = built(MLP("net", 4, 8, 1, 2))
    built(MLP("other", 4, 8, 1, 2))
    again = built(MLP("net", 4, 8, 1, 2))
    for left, right in zip(alone.weights, again.weights, strict=True):
        np.testing.assert_array_equal(left, right)
    different = built(MLP("net", 4, 8, 1, 2), seed=1)
    assert not np.array_equal(alone.weights[0], different.weights[0])
    assert not np.array_equal(alone.hidden[0].kernel, built(MLP("x", 4, 8, 1, 2)).weights[0])


def test_initial_weights_follow_the_papers(built):
    dense = built(Dense("dense", 30, 50))
    limit = np.sqrt(6 / 80)
    assert 0.98 * limit < np.abs(dense.kernel.numpy()).max() <= limit
    assert abs(dense.kernel.numpy().std() - limit / np.sqrt(3)) < 0.03 * limit
    assert not dense.bias.numpy().any()
    conv = built(Encoder("encoder", 8)).convs[1].kernel.numpy()
    assert 0.98 < np.abs(conv).max() / np.sqrt(6 / (16 * (8 + 16))) <= 1
    codes = built(Codebook("codes", 50, 8)).codebook.numpy()
    assert 0.95 / 50 < np.abs(codes).max() <= 1 / 50


def test_a_weight_of_an_unknown_kind_is_refused():
    odd = keras.layers.LayerNormalization(name="odd")
    odd.build((None, 3))
    with pytest.raises(ValueError, match="odd/gamma"):
        initialise(odd, 0)


def test_frozen_weights_are_constants_that_gradients_pass(built, rng):
    net, other = built(MLP("net", 3, 4, 1, 2)), built(MLP("other", 3, 4, 1, 2))
    x = tf.constant(rng.normal(size=(5, 3)), tf.float32)
    variables = [v.value for v in (*net.weights, *other.weights)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        with frozen(net):
            with frozen(net, other):
                inner = tf.reduce_sum(other(x))
            loss = tf.reduce_sum(net(x)) + inner
        loss += tf.reduce_sum(other(x))
    to_x, *grads = tape.gradient(loss, [x, *variables])
    assert np.abs(to_x).max() > 0
    assert [g is None for g in grads] == [True] * 4 + [False] * 4
    np.testing.assert_allclose(grads[-1], [5, 5], err_msg="once, not twice")
