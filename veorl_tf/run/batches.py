"""The batches of a stage: its streams' windows, from training and from held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from veorl_tf.agents.stage import Stage
from veorl_tf.core.config import Config
from veorl_tf.data.store import FrameStore
from veorl_tf.data.windows import WindowSampler, draw_windows
from veorl_tf.run.columns import Columns

Samplers = dict[str, WindowSampler]


def samplers(
    config: Config,
    stage: Stage,
    stores: Mapping[str, FrameStore],
    columns: Columns,
    *more: str,
) -> tuple[Samplers, Samplers]:
    """Window samplers of every stream, over training and over held-out episodes; they read the
    stream's keys, and those named here.

    There are no held-out ones when no held-out episode is long enough for a stream's windows.
    """
    training, held_out = {}, {}
    for name, stream in stage.streams.items():
        store = stores[stream.dataset]
        seen, unseen = store.split(config.data.validation)
        windows = (
            stream.length,
            config.data.batch,
            config.data.oversample_ends,
            tuple(dict.fromkeys([*stream.keys, *more])),
            columns.get(stream.dataset),
            stream.slots,
        )
        training[name] = WindowSampler(store, seen, *windows)
        if np.any(unseen.lengths > stream.length):
            held_out[name] = WindowSampler(store, unseen, *windows)
    return training, held_out if len(held_out) == len(training) else {}


def draw_batch(
    streams: Samplers,
    seed: int,
    purpose: str,
    index: int,
    share: slice = slice(None),
) -> dict:
    """One batch of every stream, or a share of it."""
    return {
        name: sampler.gather(draw_windows(sampler, seed, purpose, name, index, share))
        for name, sampler in streams.items()
    }
