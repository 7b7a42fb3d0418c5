"""Arithmetic of a batch that several devices share, giving the numbers of one device.

The replicas of a `tf.distribute` strategy each hold consecutive rows of the global batch and a copy
of every variable. They agree on every average (`total`), so that all compute one loss, and each
takes its own rows of the noise that one device would draw (`own_rows`). Outside a replica, and with
only one, nothing here adds an operation.
"""

from collections.abc import Callable

import tensorflow as tf


def replicas() -> int:
    """How many share the batch that is being computed."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def total(x: tf.Tensor) -> tf.Tensor:
    """The sum of `x` over the replicas, in each of them.

    Its gradient is the identity: a replica differentiates the one global loss with respect to its
    own share, and the shares' gradients are added afterwards (`add_up`).
    """
    if replicas() == 1:
        return x
    return _total(x)


@tf.custom_gradient
def _total(x):
    return tf.distribute.get_replica_context().all_reduce("SUM", x), lambda upstream: upstream


def add_up(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The sums of many tensors over the replicas, in one exchange; no gradient."""
    if replicas() == 1:
        return tensors
    summed = tf.distribute.get_replica_context().all_reduce("SUM", list(tensors.values()))
    return dict(zip(tensors, summed, strict=True))


def everywhere(x: tf.Tensor) -> tf.Tensor:
    """Every replica's `x`, one after the other along a new first axis, in each of them; no
    gradient."""
    if replicas() == 1:
        return x[None]
    gathered = tf.distribute.get_replica_context().all_gather(x[None], axis=0)
    gathered.set_shape([replicas(), *x.shape])
    return gathered


def own_rows(draw: Callable[[list], tf.Tensor], leading: list) -> tf.Tensor:
    """`draw(leading)`, a stateless draw `[*leading, ...]` whose last leading axis is this replica's
    share of a global batch: its rows of what is drawn for the whole."""
    count = replicas()
    if count == 1:
        return draw(leading)
    *before, rows = leading
    start = _index() * rows
    whole = draw([*before, count * rows])
    return whole[(slice(None),) * len(before) + (slice(start, start + rows),)]


def own(variable: tf.Variable) -> tf.Variable:
    """This replica's copy of a variable. What is assigned to it here, every replica assigns."""
    if replicas() == 1:
        return variable
    context = tf.distribute.get_replica_context()
    copies = context.strategy.experimental_local_results(variable)
    return copies[_index() % len(copies)]


def _index() -> int:
    """Which replica this is, of all."""
    context = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group))
