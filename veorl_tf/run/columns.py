"""Derived columns: what a frozen part of an agent says of every frame, computed once a stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from veorl_tf.agents.agent import Agent
from veorl_tf.agents.stage import Column, Stage
from veorl_tf.core.files import require_free
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.progress import progress
from veorl_tf.data.store import FrameStore

BLOCK = 512  # frames per call

Columns = dict[str, dict[str, np.ndarray]]  # dataset -> name -> memory map [N, ...]


def derive(agent: Agent, stage: Stage, stores: dict[str, FrameStore]) -> Columns:
    """The columns of a stage, for each dataset of which one of its streams reads them.

    They stand in the frame store under a hash of the weights they were made with, so that a run
    that continues finds them.

    Raises:
        MachineError: too little disk, naming the bytes.
        Interrupted: a signal came; nothing half-written remains.
    """
    return {
        dataset: {
            column.name: _derive(agent, column, key, stores[dataset], dataset)
            for column, key in wanted
        }
        for dataset, wanted in _wanted(agent, stage).items()
    }


def remove(agent: Agent, stage: Stage, stores: dict[str, FrameStore]) -> None:
    """Deletes what `derive` wrote; maps that are open stay readable."""
    for dataset, wanted in _wanted(agent, stage).items():
        for column, key in wanted:
            stores[dataset].remove_column(column.name, key)


def _wanted(agent: Agent, stage: Stage) -> dict[str, list[tuple[Column, str]]]:
    found: dict[str, list[tuple[Column, str]]] = {}
    for column in stage.columns:
        key = weights_key(agent, column)
        datasets = {s.dataset for s in stage.streams.values() if column.name in s.reads}
        for dataset in sorted(datasets):
            found.setdefault(dataset, []).append((column, key))
    return found


def weights_key(agent: Agent, column: Column) -> str:
    """Hash of the weights, and the precision, that a column is computed with."""
    digest = hashlib.blake2b(agent.config.precision.encode(), digest_size=8)
    for path, variable in sorted(agent.weights(*column.nets).items()):
        digest.update(path.encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _derive(agent: Agent, column: Column, key: str, store: FrameStore, dataset: str) -> np.ndarray:
    array = store.column(column.name, key)
    if array is not None:
        return array
    compute = tf.function(
        lambda image: _stored(column.compute(image)),
        jit_compile=agent.config.compiler == "xla",
        autograph=False,
    )
    spec = tf.TensorSpec([column.context + BLOCK, *store.image_shape], tf.uint8)
    row = compute.get_concrete_function(spec).structured_outputs
    need = len(store) * row.dtype.size * int(np.prod(row.shape[1:]))
    what = f"{column.name} of {len(store):,} {dataset} frames"
    require_free(store.directory, need, f"the column {what}")
    print(f"computing {what}: {need / 1e6:.0f} MB in {store.directory}", flush=True)
    return store.add_column(column.name, key, _blocks(column, compute, store, dataset))


def _stored(rows: tf.Tensor) -> tf.Tensor:
    """NumPy has no bfloat16 that a file can name: half precision is stored as float32."""
    return tf.cast(rows, tf.float32) if rows.dtype.is_floating else rows


def _blocks(column: Column, compute, store: FrameStore, dataset: str) -> Iterator[np.ndarray]:
    """Rows in blocks; every call sees `BLOCK` frames, the last ones repeated at the end."""
    image, total = np.asarray(store.arrays["image"]), len(store)
    first = np.zeros(total + 1, bool)
    for i in range(column.context):
        first[np.minimum(store.episodes.starts + i, total)] = True
    with (
        StopRequest() as stop,
        progress(total, 0, f"{column.name} of {dataset}", "frames") as bar,
    ):
        for start in range(0, total, BLOCK):
            rows = np.arange(start - column.context, start + BLOCK)
            block = compute(tf.constant(image[np.clip(rows, 0, total - 1)])).numpy()
            block = block[: total - start]
            block[first[start : start + len(block)]] = 0
            bar.update(len(block))
            stop.raise_if_requested()
            yield block
