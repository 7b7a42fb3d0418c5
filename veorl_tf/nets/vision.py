"""Image encoder and decoder of the Dreamer family (64x64 images)."""

import math

import keras
import tensorflow as tf

from veorl_tf.nets.base import Net, flatten_leading
from veorl_tf.nets.dense import ACTIVATIONS, ELU, Dense

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


class Encoder(Net):
    """Four stride-2 convolutions: `[..., 64, 64, 3]` in [-0.5, 0.5] to `[..., 8 * depth * 4]`."""

    KERNELS = (4, 4, 4, 4)

    def __init__(self, name, depth, style=ELU, dtype="float32"):
        super().__init__(name, dtype)
        self.size = 2 * 2 * 8 * depth
        self.convs = [
            keras.layers.Conv2D(
                depth * 2**i,
                kernel,
                2,
                "valid",
                activation=style.activation,
                name=f"conv{i}",
                **self.leaf,
            )
            for i, kernel in enumerate(self.KERNELS)
        ]

    def build(self):
        shape = (None, 64, 64, 3)
        for conv in self.convs:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)

    def call(self, image):
        x, leading = flatten_leading(self.cast(image), 3)
        for conv in self.convs[:-1]:
            x = conv(x)
        last = self.convs[-1]
        x = tf.nn.bias_add(downsample(x, self.value(last.kernel)), self.value(last.bias))
        return tf.reshape(last.activation(x), leading + [self.size])


class Decoder(Net):
    """Mean of a unit-variance Normal over images: `[..., F]` to `[..., 64, 64, 3]`."""

    KERNELS = (5, 5, 6, 6)

    def __init__(self, name, width, depth, style=ELU, dtype="float32"):
        super().__init__(name, dtype)
        self.depth = depth
        self.activation = ACTIVATIONS[style.activation]
        self.dense = Dense("dense", width, 32 * depth, dtype=dtype)
        channels = (4 * depth, 2 * depth, depth, 3)
        self.deconvs = [
            keras.layers.Conv2DTranspose(
                c,
                kernel,
                2,
                "valid",
                name=f"deconv{i}",
                activation=style.activation if i < 3 else None,
                **self.leaf,
            )
            for i, (c, kernel) in enumerate(zip(channels, self.KERNELS))
        ]

    def build(self):
        self.dense.build()
        shape = (None, 1, 1, 32 * self.depth)
        for deconv in self.deconvs:
            deconv.build(shape)
            shape = deconv.compute_output_shape(shape)

    def call(self, features):
        x, leading = flatten_leading(features, 1)
        x = self._first(self.dense(x))
        for deconv in self.deconvs[1:-1]:
            x = deconv(x)
        last = self.deconvs[-1]
        x = upsample(x, self.value(last.kernel), self.value(last.bias))
        return tf.reshape(x, leading + [64, 64, 3])

    def _first(self, x: tf.Tensor) -> tf.Tensor:
        """The first transposed convolution. Its input is one pixel, so it is a matrix product."""
        deconv = self.deconvs[0]
        height, width, channels, fan_in = deconv.kernel.shape
        kernel = tf.reshape(self.value(deconv.kernel), [height * width * channels, fan_in])
        x = tf.reshape(tf.matmul(x, kernel, transpose_b=True), [-1, height, width, channels])
        return self.activation(x + self.value(deconv.bias))


@tf.custom_gradient
def downsample(x: tf.Tensor, kernel: tf.Tensor):
    """Convolution of stride 2: `[N, S, S, C]` to `[N, (S - K) / 2 + 1, ..., D]` by a kernel
    `[K, K, C, D]`.

    Where few pixels with many channels come out, TensorFlow's gradient to the kernel is slow on a
    CPU, in bfloat16 above all (docs/speed.md); here it is one matrix product.
    """

    def gradient(upstream):
        to_input = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(x), 2, "VALID")
        return to_input, windows_gradient(x, upstream, kernel.shape)

    return tf.nn.conv2d(x, kernel, 2, "VALID"), gradient


def windows_gradient(x: tf.Tensor, upstream: tf.Tensor, shape) -> tf.Tensor:
    """The gradient to the kernel, of `shape`, of a convolution of stride 2 without padding, as one
    product of the windows of `x` that the kernel saw."""
    size, _, channels, depth = shape
    starts = range(0, 2 * upstream.shape[1], 2)
    windows = [x[:, i : i + size, j : j + size] for i in starts for j in starts]
    windows = tf.reshape(tf.stack(windows, 1), [-1, size * size * channels])
    product = tf.matmul(windows, tf.reshape(upstream, [-1, depth]), transpose_a=True)
    return tf.reshape(product, shape)


@tf.custom_gradient
def upsample(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor):
    """Transposed convolution of stride 2: `[N, S, S, D]` to `[N, 2 S + K - 2, ..., C]` by a kernel
    `[K, K, C, D]`, K even.

    Few channels come out of a decoder's last layer, and for those TensorFlow's kernel is slow on a
    CPU (docs/speed.md). The four pixels of an output cell see disjoint quarters of the kernel, so
    one dense convolution gives them as channels. The gradients are TensorFlow's own.
    """
    size, _, channels, depth = kernel.shape
    taps = size // 2
    quarters = tf.reverse(tf.reshape(kernel, [taps, 2, taps, 2, channels, depth]), [0, 2])
    quarters = tf.reshape(
        tf.transpose(quarters, [0, 2, 5, 1, 3, 4]), [taps, taps, depth, 4 * channels]
    )
    edge = [taps - 1, taps - 1]
    cells = tf.nn.conv2d(tf.pad(x, [[0, 0], edge, edge, [0, 0]]), quarters, 1, "VALID")
    # Rows of pixels, not pixels of three numbers: TensorFlow's depth_to_space, sums and additions
    # over so few channels are several times slower.
    count, side = cells.shape[0] or tf.shape(cells)[0], cells.shape[1]
    width = 2 * side * channels
    cells = tf.reshape(cells, [count, side, side, 2, 2 * channels])
    rows = tf.reshape(tf.transpose(cells, [0, 1, 3, 2, 4]), [-1, width])
    rows = tf.nn.bias_add(rows, tf.tile(bias, [2 * side]))
    pixels = tf.reshape(rows, [count, 2 * side, 2 * side, channels])

    def gradient(upstream):
        # The transposed convolution is the gradient of this convolution.
        to_input = tf.nn.conv2d(upstream, kernel, 2, "VALID")
        filters = tf.raw_ops.Conv2DBackpropFilter(
            input=upstream,
            filter_sizes=kernel.shape,
            out_backprop=x,
            strides=[1, 2, 2, 1],
            padding="VALID",
        )
        rows = tf.reduce_sum(tf.reshape(upstream, [-1, width]), 0)
        return to_input, filters, tf.reduce_sum(tf.reshape(rows, [-1, channels]), 0)

    return pixels, gradient
