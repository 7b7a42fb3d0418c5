"""Behaviour jumps: a sequence of per-step codes compacted to the frames where a code ends."""

from typing import NamedTuple

import tensorflow as tf


class Jumps(NamedTuple):
    code: tf.Tensor  # [B, K] int32, the code of run r (0 where not valid)
    frame: tf.Tensor  # [B, K] int32, the frame in which run r ends (0 where not valid)
    mask: tf.Tensor  # [B, K] float32, 1 for r < number of runs
    runs: tf.Tensor  # [B] int32, the number of runs before any were dropped


def compact(index: tf.Tensor, slots: int) -> Jumps:
    """Compacts codes `index [B, M]`, where code j labels the transition frame j -> j + 1.

    A run is a maximal block of equal consecutive codes. Slot r holds run r's code and frame j + 1
    for its last position j; runs beyond `slots` are dropped. Example, M = 9, K = 6:

        index   3 3 7 7 7 3 9 9 9      runs |-3-| |--7--| 3 |--9--|
        code    3 7 3 9 . .            frame 2 5 6 9 . .           mask 1 1 1 1 0 0

    Nothing but `index` is looked at: no test of pixels or code values. Static shapes, no loops.
    """
    length = index.shape[1]
    change = tf.not_equal(index[:, 1:], index[:, :-1])
    edge = tf.ones_like(index[:, :1], tf.bool)
    starts = tf.concat([edge, change], 1)
    ends = tf.concat([change, edge], 1)
    runs = tf.reduce_sum(tf.cast(starts, tf.int32), 1)
    valid = tf.range(slots) < runs[:, None]
    keep = lambda x: tf.where(valid, x, 0)
    start = _first(starts, slots, length)
    end = _first(ends, slots, length)
    code = tf.gather(index, start, batch_dims=1)
    return Jumps(keep(code), keep(end + 1), tf.cast(valid, tf.float32), runs)


def _first(flags: tf.Tensor, slots: int, length: int) -> tf.Tensor:
    """Positions of the first `slots` true flags `[B, M]`, in order; any position after those."""
    position = tf.range(length)
    key = tf.where(flags, position, position + length)
    order = tf.argsort(key, 1)[:, :slots]
    missing = slots - length
    return tf.pad(order, [[0, 0], [0, missing]]) if missing > 0 else order


def take_frames(image: tf.Tensor, jumps: Jumps) -> tf.Tensor:
    """Key frames `[B, K, ...]` of `image [B, M + 1, ...]`, still in the stored type."""
    return tf.gather(image, jumps.frame, batch_dims=1)


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
        self.mask = tf.gather(flat, self.order)

    def pack(self, x: tf.Tensor) -> tf.Tensor:
        """`[B, K, ...]` to `[n, ...]`."""
        return tf.gather(tf.reshape(x, [-1, *x.shape[2:]]), self.order)

    def unpack(self, x: tf.Tensor) -> tf.Tensor:
        """`[n, ...]` to `[B, K, ...]`, zero where nothing was packed."""
        total = self.leading[0] * self.leading[1]
        spread = tf.scatter_nd(self.order[:, None], x, [total, *x.shape[1:]])
        return tf.reshape(spread, [*self.leading, *x.shape[1:]])
