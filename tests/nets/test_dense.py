"""Dense layers, whole and in parts, and MLPs."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.dense import ELU, MLP, RELU, Dense, Style


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
