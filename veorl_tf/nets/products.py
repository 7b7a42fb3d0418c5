"""Products and sums that half precision does not spoil.

A product of half-precision numbers is rounded once, after its sum is made in float32: units that
multiply such numbers work so. Where a processor has none, TensorFlow adds up in the half type or
cuts off what does not fit, and is slow: the product is then one in float32, of the same numbers.
"""

from collections.abc import Callable

import tensorflow as tf

from veorl_tf.core.hardware import multiplies
from veorl_tf.nets.base import flatten_leading


def added_in_float32(operation: Callable, *args: tf.Tensor) -> tf.Tensor:
    """`operation(*args)` of tensors of one type, in this type, rounded once."""
    dtype = args[0].dtype
    if multiplies(dtype.name):
        return operation(*args)
    return tf.cast(operation(*(tf.cast(x, tf.float32) for x in args)), dtype)


def product(left: tf.Tensor, right: tf.Tensor, transpose_a=False, transpose_b=False) -> tf.Tensor:
    """The matrix product of the last two axes."""
    multiply = lambda a, b: tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return added_in_float32(multiply, left, right)


def linear(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`x [..., D] @ kernel [D, U]` as one matrix product over all leading axes."""
    flat, leading = flatten_leading(x, 1)
    return tf.reshape(product(flat, kernel), leading + [kernel.shape[-1]])


def column_sums(x: tf.Tensor) -> tf.Tensor:
    """Sums of float32 `x [..., D]` over all leading axes, as a product: faster than a reduction."""
    x, _ = flatten_leading(x, 1)
    return tf.matmul(tf.ones([1, tf.shape(x)[0]], x.dtype), x)[0]


def add_bias(x: tf.Tensor, bias: tf.Tensor | tf.Variable) -> tf.Tensor:
    """`x [..., D]` plus a float32 `bias [D]`, in the type of `x`.

    The bias's gradient is summed in float32. TensorFlow's own, on a CPU, is summed in the type of
    `x`: of 360,000 ones in bfloat16 it makes 256.
    """
    return _add_bias(x, tf.convert_to_tensor(bias))


@tf.custom_gradient
def _add_bias(x, bias):
    gradient = lambda upstream: (upstream, leading_sums(upstream))
    return tf.nn.bias_add(x, tf.cast(bias, x.dtype)), gradient


def leading_sums(x: tf.Tensor) -> tf.Tensor:
    """Sums of `x [..., D]` over all leading axes, float32 as they are added up: TensorFlow does so
    with bfloat16 by itself, with float16 not."""
    x = x if x.dtype == tf.bfloat16 else tf.cast(x, tf.float32)
    return tf.cast(tf.reduce_sum(x, list(range(len(x.shape) - 1))), tf.float32)
