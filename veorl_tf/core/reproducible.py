"""Sums whose last bit does not depend on the clock."""

from __future__ import annotations


def order_sums() -> None:
    """Makes TensorFlow add gradients two at a time, in the order of the graph.

    Its `AddN` kernel reuses the first input whose buffer happens to be free as the accumulator, so
    with three inputs or more the order of the sum, and with it the last bit, follows the threads'
    timing. Two numbers have the same sum either way. TensorFlow has no switch for this: all its
    gradient code adds through one generated function, which is replaced here, and the graph
    optimiser that would merge the pairs into one `AddN` again is switched off. Calling it again
    changes nothing.
    """
    import tensorflow as tf
    from tensorflow.python.ops import gen_math_ops

    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    add_n = gen_math_ops.add_n
    if getattr(add_n, "in_order", False):
        return

    def add_pairs(inputs, name=None):
        total, *rest = inputs
        if not rest:
            return add_n([total], name=name)
        for term in rest:
            total = add_n([total, term], name=name)
        return total

    add_pairs.in_order = True
    gen_math_ops.add_n = add_pairs
