"""The devices, and the processes, that share a run's batches.

`mirrored` are all accelerators of this machine (without one: its logical CPUs), `multi_worker` is
one process a machine that `TF_CONFIG` connects. Each process reads its own rows of every batch from
its own copy of the data; the first one (the chief) logs, evaluates and saves for all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from veorl_tf.core.errors import Interrupted, MachineError, UserError, warn
from veorl_tf.core.interrupt import StopRequest


class Replicas:
    """A `tf.distribute` strategy by name, and what a loop needs of it.

    Everything that a run creates belongs inside `with replicas.scope():`. With `multi_worker` every
    process must make its object before TensorFlow's first operation, and afterwards create the same
    variables and make the same calls of updates, `gather`, `agree`, `require_same` and
    `chief_first` in the same order: what the chief does alone creates no variables and asks nothing
    of the others. All processes have equally many devices.

    Attributes:
        count: replicas, over all processes.
        chief: whether this process logs, evaluates and saves.
    Raises:
        UserError: `multi_worker` without a `TF_CONFIG` that names this process.
    """

    def __init__(self, kind: str = "none"):
        self.processes, self.chief = 1, True
        if kind == "none":
            self.strategy = tf.distribute.get_strategy()
        elif kind == "mirrored":
            self.strategy = tf.distribute.MirroredStrategy()
        else:
            self.processes, self.chief = _cluster()
            warn(
                "--distribute multi_worker: TensorFlow listens on all interfaces, for whoever "
                "comes; let only your machines reach the ports of TF_CONFIG"
            )
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self.count = self.strategy.num_replicas_in_sync
        if self.count == 1:  # nothing to share: plain variables
            self.strategy = tf.distribute.get_strategy()
        local = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(context.replica_id_in_sync_group)
        )
        self._ids = [int(i) for i in self.strategy.experimental_local_results(local)]
        self._sum = tf.function(self._sum_replicas, autograph=False)

    def scope(self):
        return self.strategy.scope()

    # ----- batches -----------------------------------------------------------------------------

    def rows(self, batch: int) -> slice:
        """Which rows of a global batch this process reads.

        Raises UserError when the replicas cannot share it equally.
        """
        if batch % self.count:
            raise UserError(
                f"--data.batch {batch}: {self.count} devices share it, so it has to be a multiple "
                f"of {self.count}"
            )
        share = batch // self.count
        return slice(self._ids[0] * share, (self._ids[-1] + 1) * share)

    def tensors(self, batches: dict, axis: int = 0) -> dict:
        """Arrays, whose entries along `axis` are the rows of `rows()`, as tensors; each replica of
        this process gets its share of them."""
        if self.count == 1:
            return tf.nest.map_structure(tf.constant, batches)
        parts = len(self._ids)

        def own(context):
            part = self._ids.index(context.replica_id_in_sync_group)
            with tf.device(self.strategy.extended.worker_devices[part]):
                return tf.nest.map_structure(
                    lambda x: tf.constant(np.split(x, parts, axis)[part]), batches
                )

        return self.strategy.experimental_distribute_values_from_function(own)

    # ----- agreement of processes --------------------------------------------------------------

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """Every process's `numbers`: float64 `[processes, n]`. Waits for all of them."""
        if self.processes == 1:
            return np.array([numbers], np.float64)
        own = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                np.eye(self.count)[context.replica_id_in_sync_group][:, None] * np.array(numbers)
            )
        )
        return self._sum(own).numpy()[:: self.count // self.processes]

    def _sum_replicas(self, value):
        add = lambda x: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(x))
        return self.strategy.experimental_local_results(self.strategy.run(add, (value,)))[0]

    def agree(self, stop: StopRequest) -> bool:
        """Whether any process had been asked to stop when this was called; then all of them are.
        The answer is the same in all, so it decides, and not `stop.requested`, which may be later.
        """
        leave = bool(self.gather([float(stop.requested)]).any())
        if leave:
            stop.request()
        return leave

    def require_same(self, what: str, numbers: Sequence[float]) -> None:
        """Raises UserError in every process when their `numbers` differ."""
        table = self.gather(numbers)
        if (table != table[0]).any():
            rows = "; ".join(f"process {i}: {row.tolist()}" for i, row in enumerate(table))
            raise UserError(
                f"--distribute multi_worker: {what} differs ({rows}); give all processes the same "
                f"flags, data, and a --logdir that all of them see"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which the processes depend on each other.

        Raises MachineError when one of the others is gone.
        """
        try:
            yield
        except tf.errors.UnavailableError:
            if self.processes == 1:
                raise
            raise MachineError(
                "another process of the run is gone; start all of them again with the same command "
                "to continue from the last checkpoint"
            ) from None

    @contextmanager
    def chief_first(self) -> Iterator[None]:
        """The chief runs the block, then the others do, who find what it made.

        Raises in the others, when the chief's block failed, Interrupted or MachineError.
        """
        if not self.chief:
            failure = int(self.gather([0.0]).sum())
            if failure > 0:
                raise Interrupted(failure)
            if failure:
                raise MachineError("the first process of the run stopped; its output says why")
            yield
            return
        try:
            yield
        except BaseException as error:
            self.gather([float(getattr(error, "signum", -1))])
            raise
        self.gather([0.0])


def _cluster() -> tuple[int, bool]:
    """Number of processes in `TF_CONFIG`, and whether this is the chief."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
        index = int(task["index"])
        if not 0 <= index < len({"chief": chiefs, "worker": workers}[task["type"]]):
            raise IndexError(index)
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(
            f"--distribute multi_worker: the environment's TF_CONFIG is {text!r}; set it to "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": i}}'
        ) from None
    first = task["type"] == "chief" or (not chiefs and index == 0)
    return len(chiefs) + len(workers), first
