"""Footage becomes clips: a steady rate of frames, cut where the scene changes or nothing moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from veorl_tf.data.importers.base import Frame, Options
from veorl_tf.data.importers.pictures import Fit

HOLD = 10.0


@dataclass
class Counts:
    """What became of an item's frames."""

    frames: int = 0  # of the steady rate
    clips: int = 0
    kept: int = 0
    still: int = 0  # frames without movement, left out
    short: int = 0  # frames of clips that are shorter than the window
    cuts: int = 0


def steady(frames: Iterator[Frame], fps: float, first: int = 0) -> Iterator[Frame]:
    """Frames at the times k / fps, k >= `first`: for each the newest frame that had begun by then.
    Slow footage repeats frames, but none for longer than `HOLD` seconds, fast footage leaves some
    out; 0 keeps all as they are."""
    if not fps:
        yield from frames
        return
    slack, k, before = 1e-3 / fps, first, None
    for frame in frames:
        if before is None or frame.time - before.time > HOLD:
            k = max(k, math.ceil((frame.time - slack) * fps))
        while before is not None and frame.time > k / fps + slack:
            yield Frame(k / fps, before.picture)
            k += 1
        before = frame
    if before is not None and before.time <= k / fps + slack:
        yield Frame(k / fps, before.picture)


def clips(frames: Iterator[Frame], options: Options, counts: Counts) -> Iterator[np.ndarray]:
    """Clips uint8 `[n, size, size, 3]`, shortest <= n <= clip, of steady frames."""
    fit, clip, last, still = Fit(options), [], None, 0
    patience = max(2, round(options.fps or 10))  # frames without movement until a clip ends

    def finished() -> Iterator[np.ndarray]:
        if len(clip) >= options.shortest:
            counts.clips += 1
            counts.kept += len(clip)
            yield np.stack(clip)
        else:
            counts.short += len(clip)
        clip.clear()

    for frame in frames:
        picture = fit(frame.picture())
        counts.frames += 1
        change = 1.0 if last is None else difference(last, picture)
        if last is not None and options.cut and change > options.cut:
            counts.cuts += 1
            still = 0
            yield from finished()
        last = picture
        still = still + 1 if options.still and change < options.still else 0
        if still >= patience:
            # What did not move is no part of the clip, however long it already was.
            surplus = min(still - 1, len(clip))
            counts.still += 1 + surplus
            del clip[len(clip) - surplus :]
            yield from finished()
            still = 1
            continue
        clip.append(picture)
        if len(clip) == options.clip:
            yield from finished()
    yield from finished()


def difference(one: np.ndarray, two: np.ndarray) -> float:
    """Mean distance of two pictures' numbers, of 1."""
    import cv2

    return cv2.norm(one, two, cv2.NORM_L1) / (255 * one.size)
