"""What the benchmarks count as an operation."""

import pytest

from veorl_tf.core.quiet import load_tensorflow

load_tensorflow()

import tensorflow as tf  # noqa: E402

from benchmarks import flops  # noqa: E402


def counted(function, *shapes):
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return flops.count(tf.function(function, autograph=False).get_concrete_function(*specs))


def test_products():
    assert counted(lambda a, b: a @ b, [3, 4], [4, 5]) == 2 * 3 * 4 * 5
    assert counted(lambda a, b: tf.matmul(a, b, transpose_a=True), [4, 3], [4, 5]) == 120
    assert counted(lambda a, b: tf.matmul(a, b), [7, 3, 4], [7, 4, 5]) == 7 * 120


def test_convolutions_and_their_gradients_cost_the_same():
    forward = 2 * 2 * 9 * 9 * (4 * 4 * 3) * 8  # per output: kernel height, width and channels
    conv = lambda x, w: tf.nn.conv2d(x, w, 2, "VALID")
    assert counted(conv, [2, 20, 20, 3], [4, 4, 3, 8]) == forward
    transposed = lambda x, w: tf.nn.conv2d_transpose(x, w, [2, 20, 20, 3], 2, "VALID")
    assert counted(transposed, [2, 9, 9, 8], [4, 4, 3, 8]) == forward

    def trained(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            loss = tf.reduce_sum(conv(x, w))
        return tape.gradient(loss, [x, w])

    # The value itself is not needed for the gradients of a sum.
    assert counted(trained, [2, 20, 20, 3], [4, 4, 3, 8]) == 2 * forward


def test_what_nobody_needs_is_not_counted():
    def function(a, b):
        _ = a @ b
        return a + 1

    assert counted(function, [3, 4], [4, 5]) == 0


def test_what_cannot_be_counted_is_refused():
    loop = lambda a: tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x @ x), (0, a))
    with pytest.raises(ValueError, match="cannot be counted"):
        counted(loop, [3, 3])
    with pytest.raises(ValueError, match="only known when it runs"):
        counted(lambda a: a @ a, [None, 3])
