"""Dense layers in parts, MLPs, and weights that depend on a seed and a path alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.base import (
    ELU,
    MLP,
    RELU,
    Dense,
    Norm,
    Style,
    flatten_leading,
    frozen,
    initialise,
)
from veorl_tf.nets.quantizer import Codebook
from veorl_tf.nets.vision import Encoder


def test_dense_in_parts_is_one_dense_over_the_concatenation(rng, built):
    layer = built(Dense("dense", (3, 5), 4, ELU))
    layer.bias.assign(rng.normal(size=4))
    left, right = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 5))
    x = np.concatenate([left, right], -1).astype(np.float32)
    linear = x @ layer.kernel.numpy() + layer.bias.numpy()
    expected = np.where(linear > 0, linear, np.expm1(linear))
    np.testing.assert_allclose(layer(tf.constant(x)), expected, atol=1e-5)
    np.testing.assert_allclose(layer(tf.constant(left), tf.constant(right)), expected, atol=1e-5)
    parts = layer.part(layer.rows(0), tf.constant(left))
    parts += layer.part(layer.rows(1), tf.constant(right))
    np.testing.assert_allclose(layer.with_bias(parts), linear, atol=1e-5)


def test_mlp_has_the_layers_asked_for(rng, built):
    net = built(MLP("net", 7, 5, 2, 3, RELU))
    shapes = {v.path: tuple(v.shape) for v in net.weights}
    assert shapes == {
        "net/hidden0/kernel": (7, 5),
        "net/hidden0/bias": (5,),
        "net/hidden1/kernel": (5, 5),
        "net/hidden1/bias": (5,),
        "net/out/kernel": (5, 3),
        "net/out/bias": (3,),
    }
    x = rng.normal(size=(4, 2, 7)).astype(np.float32)
    hidden = x
    for i in range(2):
        hidden = np.maximum(hidden @ net.hidden[i].kernel.numpy(), 0)
    np.testing.assert_allclose(net(tf.constant(x)), hidden @ net.out.kernel.numpy(), atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_weights_and_outputs_in_float32(precision, built):
    net = built(MLP("net", 7, 5, 1, 3, dtype=precision))
    assert {v.dtype for v in net.weights} == {"float32"}
    assert net.hidden[0](tf.zeros([2, 7])).dtype.name == precision.removeprefix("mixed_")
    assert net(tf.zeros([2, 7])).dtype == tf.float32


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


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_layer_norm_is_keras_with_its_gradient(rng, built, dtype):
    """The closed form against automatic differentiation, to input, gain and offset."""
    own = built(Norm("norm", 6, dtype=dtype))
    reference = keras.layers.LayerNormalization(epsilon=1e-5)
    reference.build((None, 6))
    for one, two in zip(own.weights, reference.weights, strict=True):
        one.assign(rng.normal(size=6))
        two.assign(one)
    x = tf.constant(rng.normal(2, 3, (4, 5, 6)), tf.float32)
    weight = tf.constant(rng.normal(size=(4, 5, 6)), tf.float32)
    results = []
    for layer in (own, reference):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
            loss = tf.reduce_sum(tf.cast(out, tf.float32) * weight)
        results.append([out, *tape.gradient(loss, [x, *(v.value for v in layer.weights)])])
    assert results[0][0].dtype == own.compute_dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for one, two in zip(*results, strict=True):
        scale = np.abs(two).max()
        np.testing.assert_allclose(tf.cast(one, tf.float32), two, atol=tolerance * scale)


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


@pytest.mark.parametrize("rows", [3, 50])
def test_a_kernel_centred_for_layer_norm_gives_what_its_outputs_centred_give(rows, built, rng):
    """Whichever of the two is smaller is centred."""
    layer = built(Dense("dense", 8, 6, Style("silu", "layer", 1e-3, biased=False)))
    assert layer.centres(rows) == (rows > 8)
    x = rng.normal(size=(rows, 8))
    y = x @ layer.kernel.numpy()
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(
        layer(tf.constant(x, tf.float32)), y / (1 + np.exp(-y)), rtol=1e-3, atol=1e-5
    )
