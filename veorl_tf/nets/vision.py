"""Image encoder and decoder of the Dreamer family (64x64 images)."""

import math
from itertools import pairwise

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, flatten_leading, read
from veorl_tf.nets.convolution import convolve, transposed, upsample
from veorl_tf.nets.dense import ACTIVATIONS, ELU, Dense
from veorl_tf.nets.products import add_bias, product

# The part of an image's Gaussian negative log-likelihood that no prediction changes, per number.
LOG_NORMALISER = 0.5 * math.log(2 * math.pi)


def preprocess(image: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """uint8 images to [-0.5, 0.5]."""
    return tf.cast(image, dtype) / 255.0 - 0.5


def image_error(mean: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood of `image` under Normal(mean, 1), summed over the last three axes,
    without its constant (`LOG_NORMALISER` per number): half the squared error, in float32.

    Shapes: `[..., H, W, C]` twice, to `[...]`.
    """
    return _half_square(tf.cast(mean, tf.float32) - tf.cast(image, tf.float32))


@tf.custom_gradient
def _half_square(x):
    """Half the squared norm over the last three axes; its gradient is one product."""
    gradient = lambda upstream: x * upstream[..., None, None, None]
    return 0.5 * tf.reduce_sum(tf.square(x), [-3, -2, -1]), gradient


class Strided(Net):
    """A convolution of stride 2 without padding, `[N, S, S, C]` to `[N, (S - K) / 2 + 1, ..., D]`
    by kernels of K x K pixels, or its transpose to `[N, 2 S + K - 2, ..., D]`; then bias and
    activation.
    """

    def __init__(self, name, channels, depth, size, activation, dtype, transposed=False):
        super().__init__(name, dtype)
        ends = (depth, channels) if transposed else (channels, depth)
        self.shape, self.depth, self.transposed = (size, size, *ends), depth, transposed
        self.activation = ACTIVATIONS[activation]

    def build(self):
        self.kernel = self.add_weight(self.shape, "kernel", initial.glorot_uniform)
        self.bias = self.add_weight((self.depth,), "bias", initial.zeros)

    def call(self, x):
        x, kernel = self.cast(x), self.value(self.kernel)
        if self.transposed:
            return self.finish(transposed(x, kernel, "VALID"))
        return self.finish(convolve(x, kernel, 2, "VALID"))

    def finish(self, x: tf.Tensor) -> tf.Tensor:
        """Bias and activation of what the kernel gives."""
        return self.activation(add_bias(x, read(self.bias)))


class Encoder(Net):
    """Four stride-2 convolutions: `[..., 64, 64, 3]` in [-0.5, 0.5] to `[..., 8 * depth * 4]`."""

    KERNEL = 4

    def __init__(self, name, depth, style=ELU, dtype="float32"):
        super().__init__(name, dtype)
        self.size = 2 * 2 * 8 * depth
        channels = (3, depth, 2 * depth, 4 * depth, 8 * depth)
        self.convs = [
            Strided(f"conv{i}", *ends, self.KERNEL, style.activation, dtype)
            for i, ends in enumerate(pairwise(channels))
        ]

    def build(self):
        for conv in self.convs:
            conv.build()

    def call(self, image):
        x, leading = flatten_leading(self.cast(image), 3)
        for conv in self.convs:
            x = conv(x)
        return tf.reshape(x, leading + [self.size])


class Decoder(Net):
    """Mean of a unit-variance Normal over images: `[..., F]` to `[..., 64, 64, 3]`, float32.

    The last layer is computed in float32: rounded means are the same ones in frame after frame, and
    their errors would add up in its gradient.
    """

    KERNELS = (5, 5, 6, 6)

    def __init__(self, name, width, depth, style=ELU, dtype="float32"):
        super().__init__(name, dtype)
        channels = (32 * depth, 4 * depth, 2 * depth, depth, 3)
        self.dense = Dense("dense", width, channels[0], dtype=dtype)
        kinds = [(style.activation, dtype)] * 3 + [("none", "float32")]
        self.deconvs = [
            Strided(f"deconv{i}", *ends, self.KERNELS[i], *kinds[i], transposed=True)
            for i, ends in enumerate(pairwise(channels))
        ]

    def build(self):
        for layer in (self.dense, *self.deconvs):
            layer.build()

    def call(self, features):
        x, leading = flatten_leading(features, 1)
        x = self._first(self.dense(x))
        for deconv in self.deconvs[1:-1]:
            x = deconv(x)
        last = self.deconvs[-1]
        x = upsample(last.cast(x), last.value(last.kernel), read(last.bias))
        return tf.reshape(x, leading + [64, 64, 3])

    def _first(self, x: tf.Tensor) -> tf.Tensor:
        """The first transposed convolution. Its input is one pixel, so it is a matrix product."""
        deconv = self.deconvs[0]
        height, width, channels, fan_in = deconv.kernel.shape
        kernel = tf.reshape(self.value(deconv.kernel), [height * width * channels, fan_in])
        x = product(x, kernel, transpose_b=True)
        return deconv.finish(tf.reshape(x, [-1, height, width, channels]))
