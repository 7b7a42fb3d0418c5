"""Encoder, decoder, and the likelihood of images (invariants 1, 4 and 29 of VeoRL's spec)."""

import math

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.vision import (
    LOG_NORMALISER,
    Decoder,
    Encoder,
    image_error,
    preprocess,
)


def count(net) -> int:
    return sum(math.prod(v.shape) for v in net.weights)


def test_encoder_of_the_papers_size(rng, built):
    encoder = built(Encoder("encoder", 32))
    assert count(encoder) == 690_144
    images = tf.constant(rng.uniform(-0.5, 0.5, (2, 3, 64, 64, 3)), tf.float32)
    assert encoder.size == 1024
    embed = encoder(images)
    assert embed.shape == (2, 3, 1024)
    x, sizes = images[0], []
    for conv in encoder.convs:
        x = conv(x)
        sizes.append(tuple(x.shape[1:3]))
        assert tf.reduce_min(x) >= -1, "ELU follows every layer, the last one too"
    assert sizes == [(31, 31), (14, 14), (6, 6), (2, 2)]
    np.testing.assert_allclose(embed[0], tf.reshape(x, [3, 1024]), atol=1e-5)
    assert tf.reduce_min(embed) < 0


def test_decoder_of_the_papers_size(rng, built):
    decoder = built(Decoder("image", 250, 32))
    assert count(decoder) == 3_816_035
    features = tf.constant(rng.normal(size=(2, 3, 250)), tf.float32)
    mean = decoder(features)
    assert mean.shape == (2, 3, 64, 64, 3)
    x = tf.reshape(decoder.dense(features), [6, 1, 1, 1024])
    sizes = [1]
    for deconv in decoder.deconvs:
        x = deconv(x)
        sizes.append(x.shape[1])
    assert sizes == [1, 5, 13, 30, 64]
    np.testing.assert_allclose(mean, tf.reshape(x, mean.shape), atol=1e-4)


def test_decoders_first_and_last_layers_are_linear(rng, built):
    """The dense layer has no activation ("thin"), and means are not squashed."""
    decoder = built(Decoder("image", 6, 2))
    x = tf.constant(rng.normal(size=(3, 6)), tf.float32)
    np.testing.assert_allclose(decoder.dense(-x), -decoder.dense(x), atol=1e-6)
    last = decoder.deconvs[-1]
    y = tf.constant(rng.normal(size=(1, 30, 30, 2)), tf.float32)
    np.testing.assert_allclose(last(-y), -last(y), atol=1e-5)


def test_preprocessed_images_lie_between_plus_and_minus_a_half():
    values = preprocess(tf.constant([0, 51, 255], tf.uint8))
    np.testing.assert_allclose(values, [-0.5, -0.3, 0.5], atol=1e-7)
    assert values.dtype == tf.float32


def test_image_error_is_the_likelihood_without_its_constant(rng):
    image = tf.constant(rng.uniform(-0.5, 0.5, (2, 64, 64, 3)), tf.float32)
    np.testing.assert_array_equal(image_error(image, image), [0, 0])
    assert 12288 * LOG_NORMALISER == pytest.approx(11291.9, abs=0.1)
    delta = np.zeros(image.shape, np.float32)
    delta[1, 5, 6, 2] = 0.3
    np.testing.assert_allclose(image_error(image + delta, image), [0, 0.3**2 / 2], atol=1e-6)
    mean = tf.constant(rng.normal(size=image.shape), tf.float32)
    residual = mean.numpy().astype(np.float64) - image.numpy()
    exact = -(-0.5 * residual**2 - 0.5 * np.log(2 * np.pi)).sum((1, 2, 3))
    np.testing.assert_allclose(image_error(mean, image) + 12288 * LOG_NORMALISER, exact, rtol=1e-5)
    assert image_error(tf.cast(mean, tf.float16), image).dtype == tf.float32


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_black_and_white_images_are_finite(value, precision, built):
    encoder = built(Encoder("encoder", 4, dtype=precision))
    decoder = built(Decoder("image", encoder.size, 4, dtype=precision))
    image = preprocess(tf.fill([1, 64, 64, 3], tf.constant(value, tf.uint8)))
    variables = [v.value for v in encoder.weights + decoder.weights]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(image_error(decoder(encoder(image)), image))
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, variables):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("net", [lambda: Encoder("e", 4), lambda: Decoder("d", 8, 4)])
def test_leading_axes_may_be_unknown_or_absent(net, built):
    net = built(net())
    shape = [64, 64, 3] if isinstance(net, Encoder) else [8]
    inner = len(shape)
    x = tf.random.stateless_normal([6, *shape], [1, 2])
    expected = net(x)
    traced = tf.function(net, input_signature=[tf.TensorSpec([None, 2, *shape])])
    many = traced(tf.reshape(x, [3, 2, *shape]))
    np.testing.assert_allclose(tf.reshape(many, expected.shape), expected, atol=1e-5)
    assert len(many.shape) == len(expected.shape) + 1
    assert net(x[0]).shape == expected.shape[1:], f"no leading axis before {inner} inner ones"


def test_layers_carry_the_paths_that_checkpoints_use(built):
    paths = [v.path for v in built(Decoder("image", 8, 4)).weights]
    assert paths[:2] == ["image/dense/kernel", "image/dense/bias"]
    assert paths[-1] == "image/deconv3/bias" and len(set(paths)) == 10
    built(Encoder("encoder", 4))  # a second one of the same name gets the same paths
    assert [v.path for v in built(Encoder("encoder", 4)).weights][0] == "encoder/conv0/kernel"
