"""One loop over time for everything that has one."""

import tensorflow as tf


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
