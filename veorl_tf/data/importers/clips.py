"""Footage becomes clips: a steady rate of frames, cut where the scene changes or nothing moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from veorl_tf.data.importers.base import Frame, Options, Unreadable
from veorl_tf.data.importers.pictures import Fit

HOLD = 10.0  # seconds that a frame is repeated, at most
ROUNDED = 1e-3  # seconds by which containers round times


@dataclass
class Counts:
    """What became of an item's frames."""

    frames: int = 0  # of the steady rate
    clips: int = 0
    kept: int = 0
    still: int = 0  # frames without movement, left out
    short: int = 0  # frames of clips that are too short, left out
    cuts: int = 0


def steady(frames: Iterable[Frame], fps: float) -> Iterator[Frame]:
    """Frames at the times k / fps: for each the newest frame that had begun by then. Slow footage
    repeats frames, but none for longer than `HOLD` seconds, fast footage leaves some out. The last
    frame lasts as long as the one before. 0 keeps all as they are."""
    if not fps:
        yield from frames
        return

    def due(time: float) -> int:
        return math.ceil((time - ROUNDED) * fps)  # the first k that is not before

    def shown(frame: Frame, until: float) -> Iterator[Frame]:
        for k in range(due(frame.time), due(min(until, frame.time + HOLD))):
            yield Frame(k / fps, frame.picture)

    before, lasted, damage = None, 1 / fps, None
    try:
        for frame in frames:
            if before is not None:
                yield from shown(before, frame.time)
                lasted = max(frame.time - before.time, 0) or lasted
            before = frame
    except Unreadable as problem:
        damage = problem
    if before is not None:
        yield from shown(before, before.time + lasted - ROUNDED)
    if damage:
        raise damage


def clips(
    frames: Iterable[Frame], options: Options, counts: Counts, problems: list[Unreadable]
) -> Iterator[np.ndarray]:
    """Clips uint8 `[n, size, size, 3]`, shortest <= n <= clip, of steady frames.

    A picture that cannot be read ends its clip, and damage of the footage ends them all; both are
    added to `problems`.
    """
    clip, last, still = [], None, 0
    patience = max(2, round(options.fps or 10))  # frames without movement until a clip ends

    def finished() -> Iterator[np.ndarray]:
        if len(clip) >= options.shortest:
            counts.clips += 1
            counts.kept += len(clip)
            yield np.stack(clip)
        else:
            counts.short += len(clip)
        clip.clear()

    for picture in _fitted(frames, Fit(options), problems):
        if picture is None:
            yield from finished()
            last = None
            continue
        counts.frames += 1
        change = 1.0 if last is None else difference(last, picture)
        if last is not None and options.cut and change > options.cut:
            counts.cuts += 1
            yield from finished()
        last = picture
        still = still + 1 if change < options.still else 0
        if still < patience:
            clip.append(picture)
            if len(clip) == options.clip:
                yield from finished()
        else:
            # What did not move is no part of the clip, however long it already was.
            moving = max(0, len(clip) - (still - 1))
            counts.still += 1 + len(clip) - moving
            del clip[moving:]
            yield from finished()
    yield from finished()


def _fitted(
    frames: Iterable[Frame], fit: Fit, problems: list[Unreadable]
) -> Iterator[np.ndarray | None]:
    """Frames' pictures, a repeated one made once; None for one that cannot be read. The footage's
    own damage, and a picture that does not fit, end them."""
    source = picture = None
    try:
        for frame in frames:
            if frame.picture is not source:
                source = frame.picture
                try:
                    picture = source()
                except Unreadable as problem:
                    problems.append(problem)
                    picture = None
                else:
                    picture = fit(picture)
            yield picture
    except Unreadable as problem:
        problems.append(problem)


def difference(one: np.ndarray, two: np.ndarray) -> float:
    """Mean distance of two pictures' numbers, of 1."""
    import cv2

    return cv2.norm(one, two, cv2.NORM_L1) / (255 * one.size)
