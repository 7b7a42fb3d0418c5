"""LeRobot datasets, versions 2.0, 2.1 and 3.0; `lerobot_meta.py` tells how they lie on disk.

Pictures are frames of videos, found by the rows' timestamps, or lie in the table as PNG files.

Alignment: a row holds what was observed, the action then chosen, and next.reward, next.done and
next.success, which followed. Of a plain `reward` the same is assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.data.importers.base import Alignment, Frame, Item, Log, Unreadable, inside
from veorl_tf.data.importers.lerobot_meta import INFO, Info, episodes, whole
from veorl_tf.data.importers.parquet import column, encoded, read
from veorl_tf.data.importers.pictures import Encoded


class LeRobot(Log):
    """An item is an episode."""

    name = "lerobot"
    about = "LeRobot datasets 2.0, 2.1 and 3.0 (parquet and mp4)"
    alignment = Alignment("leaving", "leaving", "leaving")

    def detect(self, source):
        try:
            with open(source / INFO, "rb") as file:
                return b'"codebase_version"' in file.read(1 << 16)
        except OSError:
            return False

    def items(self, source, options, leave_out):
        info = Info.read(source, options, leave_out)
        seen: set[int] = set()
        for episode in episodes(source, info, leave_out):
            if episode.index in seen:
                leave_out(Unreadable(episode.name, "is listed twice"))
                continue
            seen.add(episode.index)
            if not info.has(episode.index):
                continue
            files = [info.path("data_path", **episode.data)]
            if info.video:
                files.append(info.path("video_path", video_key=info.image, **episode.video))
            try:
                for name in files:
                    inside(source, name)
            except Unreadable as problem:
                leave_out(problem)
                continue
            spec = {"episode": episode.index, "length": episode.length}
            spec |= {"begin": episode.begin, "end": episode.end}
            yield Item(episode.name, tuple(files), {**spec, **info.spec})
        if whole(info.episodes) and len(seen) != info.episodes:
            leave_out(
                Unreadable(INFO, f"tells of {info.episodes} episodes, where {len(seen)} are listed")
            )

    def episode(self, source, item, options):
        spec, where = item.spec, _where(item)
        video = len(item.files) > 1
        table = _rows(source, item, [*spec["columns"].values(), _shown_by(item)])
        arrays = _numbers(table, item, where)
        if not video:
            return {**arrays, "image": Encoded(encoded(table.column(spec["image"]), where), where)}
        times = _times(table, where)
        times, left_out = times[_within(times, item)], _outside(times, item)
        path = inside(source, item.files[1])
        pictures = _Shown(path, item.files[1], times, spec["begin"], 0.5 / spec["fps"])
        return {**arrays, "image": pictures, "left_out": left_out}

    def numbers(self, source, item, options):
        action = [key for what, key in item.spec["columns"].items() if what == "action"]
        if not action:
            return {}
        times = ["timestamp"] if len(item.files) > 1 else []
        return _numbers(_rows(source, item, [*action, *times]), item, _where(item))


def _where(item: Item) -> str:
    return f"{item.files[0]}, {item.name}"


def _shown_by(item: Item) -> str:
    """The column that tells which pictures belong to the rows."""
    return "timestamp" if len(item.files) > 1 else item.spec["image"]


def _times(table, where: str) -> np.ndarray:
    """Growing seconds `[n]` since the episode's begin in its video. Raises Unreadable."""
    times = column(table, "timestamp", where, 1)[:, 0].astype(np.float64)
    if (np.diff(times) <= 0).any():
        raise Unreadable(where, "its timestamps do not grow")
    return times


def _within(times: np.ndarray, item: Item) -> np.ndarray:
    """Which rows `[n]` lie in the episode's part of its video: what goes before or comes after
    shows another one."""
    spec, slack = item.spec, 0.5 / item.spec["fps"]
    last = np.inf if spec["end"] is None else spec["end"] - spec["begin"] - slack
    return (times > -slack) & (times < last)


def _outside(times: np.ndarray, item: Item) -> list[Unreadable]:
    """What is told of rows that do not lie in it. Raises Unreadable when none does."""
    count, spec = int((~_within(times, item)).sum()), item.spec
    if not count:
        return []
    end = "its end" if spec["end"] is None else f"{spec['end']:.3f} s"
    span = f"outside of {spec['begin']:.3f} s to {end} of {item.files[1]}"
    problem = Unreadable(_where(item), f"{count} of {len(times)} rows lie {span}")
    if count == len(times):
        raise problem
    return [problem]


def _rows(source: Path, item: Item, columns: Iterable[str]) -> Any:
    """An episode's rows of some columns, a pyarrow.Table."""
    name, spec = item.files[0], item.spec
    names = list(dict.fromkeys(["episode_index", *columns]))
    table = read(inside(source, name), name, names, spec["episode"])
    if len(table) != spec["length"]:
        found = f"{len(table)} rows, where {spec['length']} are listed"
        raise Unreadable(f"{name}, {item.name}", found)
    return table


def _numbers(table, item: Item, where: str) -> dict[str, Any]:
    """All of an episode but the pictures, of the rows that have some."""
    kept: Any = slice(None)
    if len(item.files) > 1:
        kept = _within(_times(table, where), item)
    arrays: dict[str, Any] = {}
    for what, key in item.spec["columns"].items():
        if key not in table.column_names:
            continue
        rows = column(table, key, where, None if what == "action" else 1)[kept]
        arrays[what] = rows if what == "action" else rows[:, 0]
    bounds = item.spec.get("bounds")
    if bounds and "action" in arrays:
        if len(bounds[0]) != arrays["action"].shape[1]:
            raise Unreadable(where, "its actions are no such as the statistics tell of")
        arrays["bounds"] = tuple(np.array(bounds, np.float64))
    return arrays


class _Shown(Sequence):
    """Pictures `[H, W, 3]` that a video shows at growing times, decoded anew whenever they are gone
    through. Raises Unreadable then.

    Args:
        times: seconds since `begin`, an instant of the video.
        slack: how far a frame's time may be from a row's.
    """

    def __init__(self, path: Path, name: str, times: np.ndarray, begin: float, slack: float):
        self.path, self.name, self.slack = path, name, slack
        self.times, self.begin = times, begin

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[np.ndarray]:
        from veorl_tf.data.importers.video import decode

        begin = max(0.0, self.begin - 3 * self.slack)  # what goes before shows, and is too far
        end = self.begin + self.times[-1] + 2 * self.slack
        frames = decode(self.path, self.name, begin, end)
        for picture in nearest(frames, self.times + (self.begin - begin), self.slack, self.name):
            yield picture()

    def __getitem__(self, index: int) -> np.ndarray:
        return next(itertools.islice(iter(self), range(len(self))[index], None))


def nearest(
    frames: Iterator[Frame], times: np.ndarray, slack: float, name: str
) -> Iterator[Callable[[], np.ndarray]]:
    """For each of growing times the picture of the nearest frame. Raises Unreadable where none is
    near enough."""
    here, ahead = None, next(frames, None)
    for time in times:
        while ahead is not None and (
            here is None or abs(ahead.time - time) <= abs(here.time - time)
        ):
            here, ahead = ahead, next(frames, None)
        if here is None or abs(here.time - time) > slack + 1e-4:
            raise Unreadable(name, f"no frame within {slack:.3f} s of {time:.3f} s")
        yield here.picture
