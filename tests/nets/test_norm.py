"""Norms against Keras and against automatic differentiation, whole and in pieces."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.norm import Norm, tiles


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


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_the_gradient_of_norm_and_activation(kind, activation, dtype, built, rng):
    """The closed form against automatic differentiation of the formula."""
    norm = built(Norm("norm", 6, kind, activation, 1e-3, dtype))
    for variable in norm.weights:
        variable.assign(rng.normal(0.1, 0.3, variable.shape))
    x = tf.constant(rng.normal(1, 2, (4, 5, 6)), tf.float32)
    weight = tf.constant(rng.normal(size=(4, 5, 6)), tf.float32)
    parameters = [v.value for v in norm.weights]

    def formula(x):
        centred = x - tf.reduce_mean(x, -1, keepdims=True) if kind == "layer" else x
        y = centred / tf.sqrt(tf.reduce_mean(centred**2, -1, keepdims=True) + 1e-3)
        y = y * parameters[0] + (parameters[1] if kind == "layer" else 0)
        return tf.nn.silu(y) if activation == "silu" else y

    results = []
    for function in (norm, formula):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = tf.cast(function(x), tf.float32)
            loss = tf.reduce_sum(out * weight)
        results.append([out, *tape.gradient(loss, [x, *parameters])])
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for one, two in zip(*results, strict=True):
        scale = np.abs(two).max()
        np.testing.assert_allclose(one / scale, two / scale, atol=tolerance)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_tiled_norm_is_the_whole_one(kind, dtype, built, rng, monkeypatch):
    """In three pieces: outputs and gradients, but for the order of sums."""
    monkeypatch.setattr("veorl_tf.nets.norm.TILE", 4 * 5 * 6)
    x = tf.constant(rng.normal(1, 2, (12, 5, 6)), tf.float32)
    weight = tf.constant(rng.normal(size=(12, 5, 6)), tf.float32)
    assert tiles(x.shape) == 3
    results = []
    for tiled in (False, True):
        norm = built(Norm("norm", 6, kind, "silu", 1e-3, dtype, tiled))
        for i, variable in enumerate(norm.weights):
            variable.assign(np.linspace(0.5, 1.5, 6) - i)
        parameters = [v.value for v in norm.weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = tf.cast(norm(x), tf.float32)
            loss = tf.reduce_sum(out * weight)
        results.append([out, *tape.gradient(loss, [x, *parameters])])
    for whole, pieces in zip(*results, strict=True):
        np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-4)


def test_tiles_divide_the_first_axis():
    shape = tf.TensorShape
    assert tiles(shape([512, 32, 32, 32])) == 16
    assert tiles(shape([3 * 7, 2**19])) == 21  # 11 would do, were it a divisor
    assert tiles(shape([2, 2**21])) == 2  # frames larger than a tile stay whole
    assert tiles(shape([8, 4])) == 1
    assert tiles(shape([None, 2**21])) == 1
