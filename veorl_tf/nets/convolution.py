"""Convolutions whose gradients are faster, or more exact, than TensorFlow's own.

Pictures are square, `[N, S, S, C]`; a kernel `[K, K, C, D]` has C channels on the side of the
larger picture, D on that of the smaller one.
"""

import tensorflow as tf

from veorl_tf.nets.products import add_bias, added_in_float32, product


def convolve(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """`[N, S, S, C]` to `[N, S', S', D]`; `padding` is TensorFlow's, SAME or VALID."""

    @tf.custom_gradient
    def function(x, kernel):
        def gradient(upstream):
            back = lambda y, k: tf.nn.conv2d_transpose(y, k, tf.shape(x), stride, padding)
            to_kernel = kernel_gradient(x, upstream, kernel.shape, stride, padding)
            return added_in_float32(back, upstream, kernel), to_kernel

        forward = lambda x, k: tf.nn.conv2d(x, k, stride, padding)
        return added_in_float32(forward, x, kernel), gradient

    return function(x, kernel)


def transposed(x: tf.Tensor, kernel: tf.Tensor, padding: str) -> tf.Tensor:
    """The transpose of a convolution of stride 2: `[N, S, S, D]` to `[N, 2 S, 2 S, C]` (SAME) or
    `[N, 2 S + K - 2, ..., C]` (VALID)."""
    side = 2 * x.shape[1] + (kernel.shape[0] - 2 if padding == "VALID" else 0)
    shape = [tf.shape(x)[0], side, side, kernel.shape[2]]

    @tf.custom_gradient
    def function(x, kernel):
        def gradient(upstream):
            back = lambda y, k: tf.nn.conv2d(y, k, 2, padding)
            to_kernel = kernel_gradient(upstream, x, kernel.shape, 2, padding)
            return added_in_float32(back, upstream, kernel), to_kernel

        forward = lambda x, k: tf.nn.conv2d_transpose(x, k, shape, 2, padding)
        return added_in_float32(forward, x, kernel), gradient

    return function(x, kernel)


def kernel_gradient(large: tf.Tensor, small: tf.Tensor, shape, stride: int, padding: str):
    """The gradient to the kernel, of `shape`, of a convolution from `large` to `small`.

    TensorFlow's is slow where few pixels with many channels come out, in bfloat16 above all
    (docs/speed.md): there it is one matrix product.
    """
    few = 8 if padding == "SAME" and small.dtype == tf.bfloat16 else 2
    if stride == 2 and small.shape[1] <= few:
        edge = [shape[0] // 2 - 1] * 2 if padding == "SAME" else [0, 0]
        return windows_gradient(tf.pad(large, [[0, 0], edge, edge, [0, 0]]), small, shape)
    how = {"filter_sizes": shape, "strides": [1, stride, stride, 1], "padding": padding}
    filters = lambda x, y: tf.raw_ops.Conv2DBackpropFilter(input=x, out_backprop=y, **how)
    return added_in_float32(filters, large, small)


def windows_gradient(x: tf.Tensor, upstream: tf.Tensor, shape) -> tf.Tensor:
    """The gradient to the kernel, of `shape`, of a convolution of stride 2 without padding, as one
    product of the windows of `x` that the kernel saw."""
    size, _, channels, depth = shape
    starts = range(0, 2 * upstream.shape[1], 2)
    windows = [x[:, i : i + size, j : j + size] for i in starts for j in starts]
    windows = tf.reshape(tf.stack(windows, 1), [-1, size * size * channels])
    kernel = product(windows, tf.reshape(upstream, [-1, depth]), transpose_a=True)
    return tf.reshape(kernel, shape)


def upsample(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | tf.Variable) -> tf.Tensor:
    """`transposed` without padding and with a float32 `bias [C]`, for few channels C and even K."""
    rows, channels = _upsampled_rows(x, kernel), kernel.shape[2]
    side = rows.shape[-1] // channels
    return tf.reshape(add_bias(rows, tf.tile(bias, [side])), [-1, side, side, channels])


@tf.custom_gradient
def _upsampled_rows(x, kernel):
    """`upsample` without bias, as rows of pixels `[N 2 S', 2 S' C]`.

    Few channels come out of a decoder's last layer, and for those TensorFlow's kernel is slow on a
    CPU (docs/speed.md). The four pixels of an output cell see disjoint quarters of the kernel, so
    one dense convolution gives them as channels. The gradients are TensorFlow's own. Rows, not
    pixels of three numbers: its depth_to_space, sums and additions over so few are several times
    slower.
    """
    size, _, channels, depth = kernel.shape
    taps = size // 2
    quarters = tf.reverse(tf.reshape(kernel, [taps, 2, taps, 2, channels, depth]), [0, 2])
    quarters = tf.reshape(
        tf.transpose(quarters, [0, 2, 5, 1, 3, 4]), [taps, taps, depth, 4 * channels]
    )
    edge = [taps - 1, taps - 1]
    dense = lambda x, k: tf.nn.conv2d(tf.pad(x, [[0, 0], edge, edge, [0, 0]]), k, 1, "VALID")
    cells = added_in_float32(dense, x, quarters)
    side = cells.shape[1]
    cells = tf.reshape(cells, [-1, side, side, 2, 2 * channels])
    rows = tf.reshape(tf.transpose(cells, [0, 1, 3, 2, 4]), [-1, 2 * side * channels])

    def gradient(upstream):
        # The transposed convolution is the gradient of this convolution.
        pixels = tf.reshape(upstream, [-1, 2 * side, 2 * side, channels])
        back = lambda y, k: tf.nn.conv2d(y, k, 2, "VALID")
        to_kernel = kernel_gradient(pixels, x, kernel.shape, 2, "VALID")
        return added_in_float32(back, pixels, kernel), to_kernel

    return rows, gradient
