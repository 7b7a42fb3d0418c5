"""What the folder `meta` of a LeRobot dataset says: its features, and where its episodes lie.

meta/info.json         version, fps, features (name: dtype, shape), templates of the paths

2.x  meta/episodes.jsonl                          a line per episode: episode_index, length
     meta/stats.json (2.0), meta/episodes_stats.jsonl (2.1)
     data/chunk-000/episode_000000.parquet        a row per frame
     videos/chunk-000/KEY/episode_000000.mp4
3.0  meta/episodes/chunk-000/file-000.parquet     a row per episode: in which files it lies, and
     meta/stats.json                              from when to when in the videos
     data/chunk-000/file-000.parquet              the rows of many episodes
     videos/KEY/chunk-000/file-000.mp4            many episodes, one after the other
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    Unreadable,
    inside,
    one_of,
    only,
    relative,
    walk,
    with_cause,
)
from veorl_tf.data.importers.parquet import plain, read
from veorl_tf.data.mistaken import mistaken

VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO = "meta/info.json"
MAX_TABLE = 1 << 28  # bytes of a JSON file
MAX_LENGTH = 1 << 24  # frames of an episode
MAX_BEGIN = 1e7  # seconds into a video
NUMBER = re.compile(r"u?int\d+|float\d+|bool")
NEXT = {
    "reward": ("next.reward", "reward"),
    "terminal": ("next.done",),
    "success": ("next.success",),
}


@dataclass(frozen=True)
class Info:
    """What meta/info.json says, and what the options choose of it."""

    source: Path
    version: str
    episodes: Any  # how many, if it says so
    chunk: int  # episodes per folder of version 2
    templates: Mapping[str, str]
    image: str  # feature
    video: bool  # whether it is one, or pictures in the table
    range_: range | None  # of the chosen split
    spec: Mapping[str, Any]  # what is the same for all items

    @classmethod
    def read(cls, source: Path, options, leave_out) -> Info:
        """Raises UserError."""
        try:
            info = _json(source, INFO)
        except Unreadable as problem:
            raise UserError(f"{source}: {problem}") from None
        info = info if isinstance(info, dict) else {}
        version, features, fps = (info.get(k) for k in ("codebase_version", "features", "fps"))
        if version not in VERSIONS:
            raise UserError(f"{source}: {INFO}: version {version}; {', '.join(VERSIONS)} are read")
        if not isinstance(features, dict) or not all(
            isinstance(f, dict) and isinstance(f.get("dtype"), str) for f in features.values()
        ):
            raise UserError(f"{source}: {INFO}: `features` is no table of features")
        if not isinstance(fps, (int, float)) or not 0 < fps <= 1e4:
            raise UserError(f"{source}: {INFO}: fps {fps}")
        chunk = info.get("chunks_size", 1000)
        if not whole(chunk, 1):
            raise UserError(f"{source}: {INFO}: chunks_size {chunk}")
        image = _camera(features, source, options)
        columns = _columns(features, source, options)
        spec = {"fps": fps, "image": image, "columns": columns}
        if "action" in columns:
            spec["bounds"] = _bounds(source, columns["action"], leave_out)
        return cls(
            source,
            version,
            info.get("total_episodes"),
            chunk,
            info,
            image,
            features[image]["dtype"] == "video",
            _split(info.get("splits"), source, options),
            spec,
        )

    def has(self, episode: int) -> bool:
        return self.range_ is None or episode in self.range_

    def path(self, key: str, **fields: int | str) -> str:
        """A file's name by a template, in which fields alone may be named. Raises UserError."""
        template = self.templates.get(key)
        wrong = UserError(
            f"{self.source}: {INFO}: {key} {template!r}; text with {', '.join(fields)} expected"
        )
        if not isinstance(template, str):
            raise wrong
        name = ""
        try:
            for text, field, spec, conversion in Formatter().parse(template):
                name += text
                if field is None:
                    continue
                valid = r"" if field == "video_key" else r"(0?\d{1,2}d)?"
                if field not in fields or conversion or not re.fullmatch(valid, spec):
                    raise wrong
                name += format(fields[field], spec)
        except ValueError:
            raise wrong from None
        return name


@dataclass(frozen=True)
class Episode:
    """An episode's place: fields of the templates, and when it begins in its video and, if that is
    stated, ends."""

    index: int
    length: int
    data: Mapping[str, int]
    video: Mapping[str, int]
    begin: float = 0.0
    end: float | None = None

    @property
    def name(self) -> str:
        return f"episode_{self.index:06d}"


def episodes(source: Path, info: Info, leave_out) -> Iterator[Episode]:
    """All that are listed, in order. Raises UserError if there is no list."""
    return (_episodes_v3 if info.version == "v3.0" else _episodes_v2)(source, info, leave_out)


def _episodes_v2(source: Path, info: Info, leave_out) -> Iterator[Episode]:
    table = "meta/episodes.jsonl"
    try:
        entries = list(_json_lines(source, table, leave_out))
    except Unreadable as problem:
        raise UserError(f"{source}: {problem}") from None
    for where, entry in entries:
        index, length = (entry.get(key) for key in ("episode_index", "length"))
        if not whole(index) or not whole(length, 1, MAX_LENGTH):
            leave_out(Unreadable(where, f"episode {index} of {length} frames"))
            continue
        fields = {"episode_chunk": index // info.chunk, "episode_index": index}
        yield Episode(index, length, fields, fields)


def _episodes_v3(source: Path, info: Info, leave_out) -> Iterator[Episode]:
    tables = [
        relative(source, folder / name)
        for folder, names in walk(source / "meta" / "episodes")
        for name in names
        if name.endswith(".parquet")
    ]
    if not tables:
        raise UserError(f"{source}: meta/episodes: no tables of episodes")
    places = ["data/chunk_index", "data/file_index"]
    begin, end = (f"videos/{info.image}/{side}_timestamp" for side in ("from", "to"))
    if info.video:
        places += [f"videos/{info.image}/{key}" for key in ("chunk_index", "file_index")]
    keys = ["episode_index", "length", *places, *([begin] if info.video else [])]
    for name in tables:
        try:
            optional = [end] if info.video else []
            rows = read(inside(source, name), name, keys, optional=optional).to_pylist()
        except Unreadable as problem:
            leave_out(problem)
            continue
        for line, row in enumerate(rows):
            row = {key: plain(value) for key, value in row.items()}
            index, length, *numbers = (row[key] for key in ("episode_index", "length", *places))
            span = row.get(begin, 0), row.get(end)
            if (
                not all(whole(number) for number in (index, *numbers))
                or not whole(length, 1, MAX_LENGTH)
                or not _is_span(*span)
            ):
                leave_out(Unreadable(f"{name}, row {line}", f"tells of no episode ({row})"))
                continue
            pairs = (numbers[:2], numbers[2:])
            data, video = (dict(zip(("chunk_index", "file_index"), pair)) for pair in pairs)
            yield Episode(index, length, data, video, *span)


def _is_span(begin: Any, end: Any) -> bool:
    """Whether these are seconds of a video; an end may lack."""
    known = [begin] if end is None else [begin, end]
    numbers = all(isinstance(x, (int, float)) and 0 <= x < MAX_BEGIN for x in known)
    return numbers and (end is None or begin < end)


def _camera(features: Mapping[str, Any], source: Path, options) -> str:
    """The feature with the pictures: the chosen one, or the only one that is no depth map."""
    cameras = [key for key, f in features.items() if f["dtype"] in ("video", "image")]
    if options.image_key:
        one_of("image_key", options.image_key, cameras)
        return options.image_key
    depths = [key for key in cameras if _depth(features[key])]
    what = f"camera but maps of depth: {', '.join(depths)}" if depths else "camera"
    return only([key for key in cameras if key not in depths], source, what)


def _depth(feature: Mapping[str, Any]) -> bool:
    """Whether a feature, or a table within it, is marked as a map of depths: by `is_depth_map` or,
    as older datasets write it, `video.is_depth_map`."""
    marked = any(v is True for k, v in feature.items() if k.split(".")[-1] == "is_depth_map")
    return marked or any(_depth(v) for v in feature.values() if isinstance(v, dict))


def _columns(features: Mapping[str, Any], source: Path, options) -> dict[str, str]:
    """Names of the columns of action, reward, terminal and success, as far as there are any."""
    numbers = [key for key, f in features.items() if NUMBER.fullmatch(f["dtype"])]
    columns = {}
    for what, chosen in (("action", options.action_key), ("reward", options.reward_key)):
        if chosen:
            one_of(f"{what}_key", chosen, numbers)
            columns[what] = chosen
    if "action" in numbers:
        columns.setdefault("action", "action")
    similar = [key for key in numbers if key.startswith("action")]
    if similar and "action" not in columns:
        raise UserError(f"{source}: no `action`; --action_key one of {', '.join(similar)}")
    for what, names in NEXT.items():
        for name in names:
            if name in numbers:
                columns.setdefault(what, name)
    return columns


def _split(splits: Any, source: Path, options) -> range | None:
    """Episodes of the chosen split, of info.json's "splits": {"train": "0:50"}."""
    if not options.split:
        return None
    splits = splits if isinstance(splits, dict) else {}
    one_of("split", options.split, splits)
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(splits[options.split]))
    if not match:
        raise UserError(f"{source}: {INFO}: split {options.split}: a:b expected")
    return range(int(match[1]), int(match[2]))


def _bounds(source: Path, action: str, leave_out) -> list[list[float]] | None:
    """Lowest and highest actions in the statistics. These are measured: within -1 to 1 they stand
    for that range."""
    name, lines = "meta/stats.json", "meta/episodes_stats.jsonl"
    try:
        if (source / name).is_file():
            tables = [_json(source, name)]
        elif (source / lines).is_file():
            name = lines
            tables = [entry["stats"] for _, entry in _json_lines(source, lines, leave_out)]
        else:
            return None
        low = np.array([np.ravel(table[action]["min"]) for table in tables], np.float64).min(0)
        high = np.array([np.ravel(table[action]["max"]) for table in tables], np.float64).max(0)
        if low.shape != high.shape or not np.isfinite([low, high]).all() or (low > high).any():
            raise ValueError(f"{low} to {high}")
        if max(-low.min(), high.max()) <= 1 + 1e-3:
            low, high = -np.ones_like(low), np.ones_like(high)
        return [low.tolist(), high.tolist()]
    except Unreadable as problem:
        leave_out(problem)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        leave_out(Unreadable(name, f"gives no range of {action} ({error!r})"))
    return None


def _json(source: Path, name: str) -> Any:
    """A JSON file's content. Raises Unreadable."""
    try:
        return json.loads(_bytes(source, name))
    except (ValueError, RecursionError) as error:
        reason = f"cannot be read as JSON ({error})"
        raise with_cause(source, Unreadable(name, reason)) from None


def _json_lines(source: Path, name: str, leave_out) -> Iterator[tuple[str, dict]]:
    """Place and content of every line, of those that are tables. Raises Unreadable."""
    for number, line in enumerate(_bytes(source, name).splitlines(), 1):
        where = f"{name}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            yield where, entry
        elif line.strip():
            if cause := mistaken(inside(source, name)):
                raise Unreadable(name, cause)
            leave_out(Unreadable(where, "no JSON table"))


def _bytes(source: Path, name: str) -> bytes:
    path = inside(source, name)
    try:
        if path.stat().st_size > MAX_TABLE:
            raise Unreadable(name, f"more than {MAX_TABLE:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from None


def whole(number: Any, lowest: int = 0, highest: int = 1 << 31) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and lowest <= number <= highest
