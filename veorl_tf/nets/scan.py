"""One loop over time for everything that has one."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from veorl_tf.nets.products import product as matrix_product


def scan(step, initial, inputs, unroll: bool = True):
    """Runs `carry = step(carry, inputs[t])` over the first axis and stacks every carry.

    `initial` is a nested structure of tensors, `inputs` another with a static first axis T; the
    result has the structure of `initial` with a leading T. Unrolled, the graph holds T copies of
    the step, of which TensorFlow drops what no gradient needs; otherwise it is a `while` loop,
    which compiles in a time that does not grow with T.
    """
    if not unroll:
        return tf.scan(step, inputs, initial)
    columns = [tf.unstack(x) for x in tf.nest.flatten(inputs)]
    carry, carries = initial, []
    for column in zip(*columns):
        carry = step(carry, tf.nest.pack_sequence_as(inputs, column))
        carries.append(carry)
    return tf.nest.map_structure(lambda *x: tf.stack(x), *carries)


Product = Callable[[str, tf.Tensor], tf.Tensor]


def scan_with_products(step, initial, inputs, kernels: Mapping[str, tf.Tensor], dtype, unroll=True):
    """`scan` of `step(carry, inputs[t], product)`, in which `product(name, x)` is the product of
    rows `x [B, ...]` with the kernel of that name; every kernel is used once a step.

    The gradient to a kernel is one product over all steps after the loop, where the loop's own
    would be a small one in each, and a sum as large as the kernel. For that the kernel is a
    constant inside, and zeros are added to what it gives: their gradient, `[T, B, ...]`, is what
    the kernel's needs besides the rows, which the loop returns. A kernel is `[I, O]`, or `[G, I,
    O]` for rows in groups `[B, G, I]`; products run in `dtype`.
    """
    steps = tf.nest.flatten(inputs)[0].shape[0]
    rows = tf.nest.flatten(initial)[0].shape[0] or tf.shape(tf.nest.flatten(initial)[0])[0]
    constants = {name: tf.cast(tf.stop_gradient(k), dtype) for name, k in kernels.items()}
    seen: dict[str, tf.Tensor] = {}
    zeros = {name: _zeros(name, k, steps, rows, dtype, seen) for name, k in kernels.items()}
    blank = {name: tf.zeros([rows, *k.shape[:-1]], dtype) for name, k in kernels.items()}

    def with_rows(carry, inputs):
        zeros, inputs = inputs
        used: dict[str, tf.Tensor] = {}

        def product(name: str, x: tf.Tensor) -> tf.Tensor:
            used[name] = tf.cast(x, dtype)
            return multiply(used[name], constants[name]) + zeros[name]

        carry = step(carry[0], inputs, product)
        return carry, used

    carries, stacked = scan(with_rows, (initial, blank), (zeros, inputs), unroll)
    seen.update(stacked)
    return carries


def time_major(x: tf.Tensor) -> tf.Tensor:
    """Swaps the first two axes, `[B, T, ...]` and `[T, B, ...]`."""
    return tf.transpose(x, [1, 0, *range(2, len(x.shape))])


def multiply(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`[B, I] @ [I, O]`, or for every group `[B, G, I]` and `[G, I, O]`: `[B, G, O]`."""
    if len(kernel.shape) == 2:
        return matrix_product(x, kernel)
    return tf.transpose(matrix_product(tf.transpose(x, [1, 0, 2]), kernel), [1, 0, 2])


def _zeros(name: str, kernel: tf.Tensor, steps, rows, dtype, seen) -> tf.Tensor:
    """Zeros `[T, B, ..., O]` whose gradient is the kernel's, given the rows in `seen[name]`, which
    are there when gradients are asked for."""

    @tf.custom_gradient
    def zeros(kernel):
        def gradient(upstream):
            x = tf.stop_gradient(seen[name])
            flat = lambda x: tf.reshape(x, [-1, *x.shape[2:]])
            if len(kernel.shape) == 2:
                product = matrix_product(flat(x), flat(upstream), transpose_a=True)
            else:
                groups = lambda x: tf.transpose(flat(x), [1, 0, 2])
                product = matrix_product(groups(x), groups(upstream), transpose_a=True)
            return tf.cast(product, kernel.dtype)

        shape = [steps, rows, *kernel.shape[:-2], kernel.shape[-1]]
        return tf.zeros(shape, dtype), gradient

    return zeros(tf.convert_to_tensor(kernel))
