"""DreamerV3's encoders and decoders against TensorFlow's own layers, and their initial weights."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.dense import PLAIN, Style
from veorl_tf.nets.vision3 import (
    Convolution,
    PooledEncoder,
    StridedDecoder,
    StridedEncoder,
    UpsamplingDecoder,
    doubled,
)

V3 = Style("silu", "layer", 1e-3, biased=False, average_fan=True)
NATURE = Style("silu", "rms", 1e-4, average_fan=False)
NETS = {
    "strided encoder": lambda **k: StridedEncoder("encoder", 4, V3, **k),
    "pooled encoder": lambda **k: PooledEncoder("encoder", 2, NATURE, **k),
    "strided decoder": lambda **k: StridedDecoder("image", 20, 4, V3, **k),
    "upsampling decoder": lambda **k: UpsamplingDecoder("image", 12, 8, 2, 6, NATURE, 4, **k),
}


@pytest.fixture
def image(rng):
    return tf.constant(rng.uniform(-0.5, 0.5, (2, 3, 64, 64, 3)), tf.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * norm.gamma.numpy() + norm.beta.numpy()


def rms_norm(x, norm):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * norm.gamma.numpy()


def randomised(net, rng):
    for variable in net.weights:
        variable.assign(rng.normal(0.1, 0.3, variable.shape))
    return net


def test_strided_encoder(built, rng, image):
    encoder = randomised(built(StridedEncoder("encoder", 4, V3)), rng)
    x = tf.reshape(image, [6, 64, 64, 3])
    for conv, side in zip(encoder.convs, (32, 16, 8, 4), strict=True):
        assert conv.bias is None
        x = tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), conv.kernel, 2, "VALID")
        assert x.shape[1:3] == (side, side)
        x = silu(layer_norm(x.numpy(), conv.norm))
    assert encoder.size == 4 * 4 * 32
    np.testing.assert_allclose(encoder(image), x.reshape(2, 3, -1), rtol=1e-3, atol=1e-3)


def test_pooled_encoder(built, rng, image):
    encoder = randomised(built(PooledEncoder("encoder", 2, NATURE)), rng)
    x = tf.reshape(image, [6, 64, 64, 3])
    for conv, channels in zip(encoder.convs, (4, 6, 8, 8), strict=True):
        x = tf.nn.conv2d(x, conv.kernel, 1, "SAME") + conv.bias
        side = x.shape[1] // 2
        x = x.numpy().reshape(6, side, 2, side, 2, channels).max((2, 4))
        x = silu(rms_norm(x, conv.norm))
    np.testing.assert_allclose(encoder(image), x.reshape(2, 3, -1), rtol=1e-3, atol=1e-3)


def test_strided_decoder(built, rng):
    decoder = randomised(built(StridedDecoder("image", 20, 4, V3)), rng)
    features = tf.constant(rng.normal(size=(2, 3, 20)), tf.float32)
    x = features.numpy().reshape(6, 20) @ decoder.dense.kernel.numpy() + decoder.dense.bias.numpy()
    x = tf.constant(x.reshape(6, 4, 4, 32), tf.float32)
    for i, conv in enumerate(decoder.deconvs):
        assert (conv.bias is not None) == (i == 3)
        shape = [6, 2 * x.shape[1], 2 * x.shape[2], conv.depth]
        x = tf.nn.conv2d_transpose(x, conv.kernel, shape, 2, "SAME")
        x = x + conv.bias if i == 3 else silu(layer_norm(x.numpy(), conv.norm))
    expected = x.numpy().reshape(2, 3, 64, 64, 3)
    np.testing.assert_allclose(decoder(features), expected, rtol=1e-3, atol=1e-3)
    assert np.abs(expected).max() > 1, "nothing bounds it"


def test_upsampling_decoder(built, rng):
    net = randomised(built(UpsamplingDecoder("image", 12, 8, 2, 6, NATURE, 4)), rng)
    features = tf.constant(rng.normal(size=(2, 3, 20)), tf.float32)
    flat = features.numpy().reshape(6, 20)
    stoch, deter = flat[:, :12], flat[:, 12:]
    own = [deter[:, 2 * g : 2 * g + 2] @ net.deter_in.kernel[g].numpy() for g in range(4)]
    own = [x + net.deter_in.bias.numpy()[32 * g : 32 * g + 32] for g, x in enumerate(own)]
    own = np.concatenate([x.reshape(6, 4, 4, 2) for x in own], -1)
    hidden = stoch @ net.stoch_in.kernel.numpy() + net.stoch_in.bias.numpy()
    hidden = silu(rms_norm(hidden, net.stoch_in.norm))
    other = hidden @ net.stoch_out.kernel.numpy() + net.stoch_out.bias.numpy()
    x = silu(rms_norm(own + other.reshape(6, 4, 4, 8), net.norm))
    for conv in (*net.convs, net.out):
        x = np.repeat(np.repeat(x, 2, 1), 2, 2)
        x = (tf.nn.conv2d(tf.constant(x, tf.float32), conv.kernel, 1, "SAME") + conv.bias).numpy()
        x = x if conv is net.out else silu(rms_norm(x, conv.norm))
    expected = (1 / (1 + np.exp(-x)) - 0.5).reshape(2, 3, 64, 64, 3)
    np.testing.assert_allclose(net(features), expected, rtol=1e-3, atol=1e-4)


def test_doubled():
    x = tf.reshape(tf.range(4), [1, 2, 2, 1])
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert doubled(x)[0, :, :, 0].numpy().tolist() == expected


@pytest.mark.parametrize("name", NETS)
def test_half_precision_is_close(name, built, rng, image):
    nets = [built(NETS[name](dtype=dtype)) for dtype in ("float32", "mixed_bfloat16")]
    features = tf.constant(rng.normal(size=(2, 3, 20)), tf.float32)
    x = image if "encoder" in name else features
    full, half = (tf.cast(net(x), tf.float32).numpy() for net in nets)
    np.testing.assert_allclose(half, full, atol=0.08 * np.abs(full).max())


def test_initial_kernels(built):
    """Cut normals: by the average of the fans (2023), or by the inputs' (2025)."""
    for style, fan in ((V3, 25 * 48 / 2), (NATURE, 25 * 16)):
        conv = built(Convolution("conv", 16, 32, 5, style))
        kernel = conv.kernel.numpy()
        assert kernel.std() == pytest.approx(np.sqrt(1 / fan), rel=0.02)
        assert np.abs(kernel).max() <= 2 / 0.8796 * np.sqrt(1 / fan)
    assert built(Convolution("conv", 3, 4, 5, PLAIN)).kernel.shape == (5, 5, 3, 4)
