"""Training windows: which rows of the store make a batch, and a thread that fetches them in time.

A window is `length` consecutive frames of one episode. The rule is the original's: an episode
counts when it has more than `length` frames, episodes are drawn uniformly (not by their length),
and so are starts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from veorl_tf.core import seeds
from veorl_tf.core.errors import UserError
from veorl_tf.data.jumps import compact
from veorl_tf.data.store import Episodes, FrameStore


class WindowSampler:
    """Draws windows from some episodes of a store.

    Args:
        store: where the frames are.
        episodes: those to draw from, e.g. the training part of `store.split()`.
        length: T, frames per window.
        batch: B, windows per draw.
        oversample_ends: starts are uniform over the whole episode and moved back to the last
            possible one, which then has the share length / n: more terminals and successes are
            seen.
        keys: what `gather` reads; all of the store's arrays by default.
        columns: further arrays [N, ...] by name (derived columns), which `keys` may name.
        slots: K > 0 compacts each window to the at most K frames in which a behaviour of the
            column `code` ends.
    Raises:
        UserError: no episode has more than `length` frames.
    """

    def __init__(
        self,
        store: FrameStore,
        episodes: Episodes,
        length: int,
        batch: int,
        oversample_ends: bool = False,
        keys: Sequence[str] | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        slots: int = 0,
    ):
        if length < 1 or batch < 1:
            raise UserError(
                f"windows of {length} frames in batches of {batch}: both must be at least 1"
            )
        require_length(store, episodes, length)
        self.episodes = episodes[np.flatnonzero(episodes.lengths > length)]
        self.length, self.batch, self.oversample_ends = length, batch, oversample_ends
        known = {**store.arrays, **(columns or {})}
        self.arrays = {key: known[key] for key in (store.arrays if keys is None else keys)}
        self.slots, self.codes = slots, np.asarray(known["code"]) if slots else None

    def indices(self, generator: np.random.Generator) -> np.ndarray:
        """First rows of a batch of windows: int64 [B]."""
        chosen = generator.integers(len(self.episodes), size=self.batch)
        lengths = self.episodes.lengths[chosen]
        last = lengths - self.length
        if self.oversample_ends:
            offsets = np.minimum(generator.integers(lengths), last)
        else:
            offsets = generator.integers(last + 1)
        return self.episodes.starts[chosen] + offsets

    def draw(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """A batch without its frames: `rows [B, T]` of the store, int64.

        With `slots` the rows are key frames `[B, K]` (a window's first frame where not valid), and
        with them come `code [B, K]`, `mask [B, K]`, `runs [B]` (see `jumps.compact`) and the codes
        of all transitions, `index [B, T - 1]`.
        """
        starts = self.indices(generator)[:, None]
        rows = starts + np.arange(self.length)
        if not self.slots:
            return {"rows": rows}
        index = self.codes[rows][:, 1:]
        jumps = compact(index, self.slots)
        return {
            "rows": starts + jumps.frame,
            "code": jumps.code,
            "mask": jumps.mask,
            "runs": jumps.runs,
            "index": index,
        }

    def gather(self, draw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A drawn batch with its frames, copied: every array [..., T or K, ...] in place of
        `rows`."""
        rest = {key: value for key, value in draw.items() if key != "rows"}
        return rest | {key: np.asarray(array)[draw["rows"]] for key, array in self.arrays.items()}

    def sample(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """`gather` of a `draw`."""
        return self.gather(self.draw(generator))


def require_length(store: FrameStore, episodes: Episodes, length: int) -> None:
    """Raises UserError when no episode has more than `length` frames."""
    if not np.any(episodes.lengths > length):
        longest = int(episodes.lengths.max()) if len(episodes) else 0
        raise UserError(
            f"{store.source}: no episode is long enough for windows of {length} frames: "
            f"the longest of {len(episodes)} has {longest} frames, {length + 1} are needed"
        )


class Batches:
    """Iterator over the batches of a stage, fetched ahead by one thread.

    The batch of index i depends on (seed, stage, stream, i) alone: not on where the iteration
    began, how far ahead it fetches, or which other streams there are. Use it in a `with` block, or
    call `close()`.

    Args:
        streams: {name: sampler}.
        seed, stage: key of the random numbers, with the stream's name and the index.
        start: index of the first batch.
        stop: index after the last; endless by default.
        prefetch: batches held ready.
        per_call: K. For K > 1 arrays get a leading axis [K, B, T, ...] that holds the batches of
            the indices from `index` on, one an update.
        ends: where a call that begins at an index has to end at the latest. What a call does not
            use of its K batches repeats the last one it does.
        gather: read the frames; otherwise batches hold their `rows`, int32.
        share: which of a batch's B windows to read; all of them by default.
    Yields:
        {stream: {key: [B, T, ...]}}. What the thread raises is raised here.

    Attributes:
        index: after the last batch, what the next one begins with.
    """

    def __init__(
        self,
        streams: Mapping[str, WindowSampler],
        seed: int,
        stage: str,
        start: int = 0,
        stop: int | None = None,
        prefetch: int = 2,
        per_call: int = 1,
        ends: Callable[[int], int] | None = None,
        gather: bool = True,
        share: slice = slice(None),
    ):
        self.streams, self.seed, self.stage = dict(streams), seed, stage
        self.index, self.stop, self.per_call = start, stop, per_call
        self._ends, self._gather, self._share = ends, gather, share
        self._queue: queue.Queue = queue.Queue(max(1, prefetch))
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._fetch, args=(start,), name=f"batches-{stage}", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[dict[str, dict[str, np.ndarray]]]:
        return self

    def __next__(self) -> dict[str, dict[str, np.ndarray]]:
        if self._closed.is_set():
            raise StopIteration
        index, item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.index = index
        return item

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and let its batches go; may be called twice."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # a full queue would hold the thread for ever
            except queue.Empty:
                self._thread.join(0.01)

    def batch(self, index: int, count: int = 1) -> dict[str, dict[str, np.ndarray]]:
        """The batch of one index (K > 1: those of `count` indices, stacked), without the thread."""
        result = {}
        for name, sampler in self.streams.items():
            draws = [
                draw_windows(sampler, self.seed, self.stage, name, index + k, self._share)
                for k in range(count)
            ]
            draw = draws[0]
            if self.per_call > 1:
                draws += [draws[-1]] * (self.per_call - count)
                draw = {key: np.stack([one[key] for one in draws]) for key in draw}
            result[name] = sampler.gather(draw) if self._gather else _only_rows(draw)
        return result

    def _count(self, index: int) -> int:
        """Updates of the call that begins at `index`."""
        ends = [index + self.per_call, self.stop, self._ends(index) if self._ends else None]
        return max(1, min(end for end in ends if end is not None) - index)

    def _fetch(self, index: int) -> None:
        try:
            while not self._closed.is_set() and (self.stop is None or index < self.stop):
                count = self._count(index)
                item = self.batch(index, count)
                index += count
                self._put((index, item))
            self._put((index, StopIteration()))
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            self._put((index, error))

    def _put(self, entry: tuple) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue


def draw_windows(
    sampler: WindowSampler,
    seed: int,
    stage: str,
    name: str,
    index: int,
    share: slice = slice(None),
) -> dict[str, np.ndarray]:
    """The `share` of batch `index` of stream `name`, without its frames."""
    draw = sampler.draw(seeds.generator(seed, stage, name, index))
    return {key: value[share] for key, value in draw.items()}


def _only_rows(draw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return draw | {"rows": draw["rows"].astype(np.int32)}
