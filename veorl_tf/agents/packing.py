"""Key frames without their padding."""

import tensorflow as tf


class Packing:
    """The valid slots of `mask [B, K]`, packed, so that padding costs nothing.

    With `bucket` > 0 the packed length is the number of valid slots rounded up to a multiple of
    it (few distinct shapes, known only when the graph runs: for CPUs without XLA); with 0 it is
    B * K, static, and packing changes nothing.
    """

    def __init__(self, mask: tf.Tensor, bucket: int):
        self.leading = [int(n) for n in mask.shape]
        flat = tf.reshape(mask, [-1])
        total = self.leading[0] * self.leading[1]
        if bucket:
            count = tf.cast(tf.reduce_sum(flat), tf.int32)
            length = tf.minimum(total, (count + bucket - 1) // bucket * bucket)
            self.order = tf.argsort(flat, direction="DESCENDING", stable=True)[:length]
        else:
            self.order = tf.range(total)

    def pack(self, x: tf.Tensor) -> tf.Tensor:
        """`[B, K, ...]` to `[n, ...]`."""
        return tf.gather(tf.reshape(x, [-1, *x.shape[2:]]), self.order)

    def unpack(self, x: tf.Tensor) -> tf.Tensor:
        """`[n, ...]` to `[B, K, ...]`, zero where nothing was packed."""
        total = self.leading[0] * self.leading[1]
        spread = tf.scatter_nd(self.order[:, None], x, [total, *x.shape[1:]])
        return tf.reshape(spread, [*self.leading, *x.shape[1:]])
