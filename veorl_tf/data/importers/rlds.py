"""RLDS episodes in TFRecord files: TensorFlow Datasets' builder directories (BridgeData V2, Open
X-Embodiment, RL Unplugged) or any folder of such files.

    NAME/1.0.0/features.json, dataset_info.json
    NAME/1.0.0/NAME-train.tfrecord-00000-of-00002

A record is a tf.train.Example, one episode of n steps, which lists the values of all steps under
keys such as steps/observation/image (n PNG or JPEG files), steps/action (n * A numbers),
steps/reward and steps/is_terminal (n numbers). No TensorFlow is loaded to read them.

Alignment, as RLDS defines it: a step's action is taken at its observation and its reward follows;
is_terminal speaks of the observation itself; the last step's action and reward mean nothing.
Demonstrations of Open X (BridgeData V2 too) have a reward on the last step alone: it marks the last
observation and counts as received on arriving there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    Alignment,
    Item,
    Log,
    Unreadable,
    files,
    inside,
    natural,
    one_of,
    only,
    relative,
)
from veorl_tf.data.importers.pictures import Encoded
from veorl_tf.data.importers.tfrecord import parse, read_record, records
from veorl_tf.data.mistaken import TFRECORD

SHARD = re.compile(r"(?P<stem>(.*-)?(?P<split>[^-]+)\.tfrecord)-(?P<index>\d+)-of-(?P<total>\d+)")
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


class RLDS(Log):
    """An item is a record."""

    name = "rlds"
    about = "TFDS builder directories and TFRecords of RLDS episodes (BridgeData V2, Open X)"
    alignment = Alignment("leaving", "leaving", "arriving")

    def detect(self, source):
        return any(True for _ in record_files(source))

    def items(self, source, options, leave_out):
        files = [relative(source, path) for path in record_files(source)]
        if options.split:
            splits = {name: match["split"] for name in files if (match := _shard(name))}
            one_of("split", options.split, sorted({*splits.values()}))
            files = [name for name in files if splits.get(name) == options.split]
        for problem in _missing(files):
            leave_out(problem)
        keys = self._keys(source, files, options)
        counts = _Counts(source, leave_out)
        for name in files:
            number = 0
            try:
                for offset, length in records(inside(source, name), name):
                    spec = {"offset": offset, "length": length, **keys}
                    yield Item(f"{name}-{number:05d}", (name,), spec)
                    number += 1
                counts.check(name, number)
            except Unreadable as problem:
                leave_out(problem)
            except OSError as error:
                leave_out(Unreadable(name, error.strerror or str(error)))

    def episode(self, source, item, options):
        where, spec = item.name, item.spec
        data = read_record(inside(source, item.files[0]), where, spec["offset"], spec["length"])
        features = parse(data, where)
        pictures = _pictures(features, spec["image"], where)
        count = len(pictures)
        if count < 2:
            raise Unreadable(where, f"{count} steps; 2 or more expected")
        arrays: dict[str, Any] = {"image": Encoded(pictures, where)}
        if spec["action"]:
            parts = [_rows(features, key, count, where)[:-1] for key in spec["action"]]
            arrays["action"] = _finite(np.concatenate(parts, 1), "steps/action", where)
        if spec["reward"]:
            reward = _rows(features, spec["reward"], count, where, width=1)[:, 0]
            mark = np.isfinite(reward[-1]) and reward[-1] and not reward[:-1].any()
            arrays["reward"] = _finite(reward if mark else reward[:-1], spec["reward"], where)
        if "steps/is_terminal" in features:
            terminal = _rows(features, "steps/is_terminal", count, where, width=1)[:, 0]
            arrays["terminal"] = terminal > 0
        return arrays

    def _keys(self, source, files, options) -> dict[str, Any]:
        """Keys of image, actions and reward: of all records those of the first that is whole."""
        for name in files:
            try:
                path = inside(source, name)
                for offset, length in records(path, name):
                    try:
                        features = parse(read_record(path, name, offset, length), name)
                    except Unreadable:
                        continue
                    return chosen(features, source, options)
            except (Unreadable, OSError):
                continue
        return {"image": "", "action": [], "reward": ""}


def chosen(features: Mapping[str, Any], source: Path, options) -> dict[str, Any]:
    """The options' keys, or the obvious ones. Raises UserError that lists what there is."""
    images, numbers = [], []
    for key in sorted((key for key in features if key.startswith("steps/")), key=natural):
        files = features[key].bytes_list.value
        if files and files[0].startswith(PICTURES):
            images.append(key)
        elif not files:
            numbers.append(key)
    if not images and not numbers:
        there = ", ".join(sorted(features)[:20]) or "none"
        raise UserError(f"{source}: its records hold no steps of RLDS; their keys: {there}")
    action = [_named("action_key", key, numbers) for key in options.action_key.split(",") if key]
    if not action and "steps/action" in numbers:
        action = ["steps/action"]
    parts = [key for key in numbers if key.startswith("steps/action/")]
    if not action and parts:
        raise UserError(
            f"{source}: the action has parts; name those to join, with commas, by --action_key: "
            f"{', '.join(parts)}"
        )
    reward = "steps/reward" if "steps/reward" in numbers else ""
    if options.reward_key:
        reward = _named("reward_key", options.reward_key, numbers)
    if options.image_key:
        image = _named("image_key", options.image_key, images)
    else:
        image = only(images, source, "PNG or JPEG pictures under steps/")
    return {"image": image, "action": action, "reward": reward}


def _named(option: str, key: str, valid: Sequence[str]) -> str:
    """The key of that name, or of that end: observation/image, or image where there is one such."""
    ends = [full for full in valid if f"/{full}".endswith(f"/{key.strip()}")]
    if len(ends) != 1:
        one_of(option, key, valid)
    return ends[0]


def record_files(source: Path) -> Iterator[Path]:
    """All TFRecord files of a source, by name."""
    return files(source, TFRECORD.fullmatch)


def _shard(name: str) -> re.Match | None:
    return SHARD.fullmatch(name.rsplit("/", 1)[-1])


def _missing(files: Iterable[str]) -> Iterator[Unreadable]:
    """Of files that are numbered parts of a whole: what lacks."""
    wholes: dict[tuple[str, int], set[int]] = {}
    for name in files:
        if match := _shard(name):
            whole = name[: len(name) - len(match[0])] + match["stem"], int(match["total"])
            wholes.setdefault(whole, set()).add(int(match["index"]))
    for (stem, total), found in wholes.items():
        if len(found) < total:
            yield Unreadable(stem, f"{total - len(found):,} of its {total:,} files are missing")


class _Counts:
    """How many records each file should have, as the dataset_info.json beside it says."""

    def __init__(self, source: Path, leave_out):
        self.source, self.leave_out = source, leave_out
        self.folders: dict[str, dict[str, list[int]]] = {}

    def check(self, name: str, number: int) -> None:
        """Raises Unreadable for a file that has another number of records."""
        match, folder = _shard(name), name.rpartition("/")[0]
        if folder not in self.folders:
            self.folders[folder] = self._lengths(f"{folder}/dataset_info.json".lstrip("/"))
        lengths = self.folders[folder].get(match["split"], []) if match else []
        if match and len(lengths) == int(match["total"]) > int(match["index"]):
            expected = lengths[int(match["index"])]
            if number != expected:
                raise Unreadable(name, f"{number} records, where dataset_info.json says {expected}")

    def _lengths(self, name: str) -> dict[str, list[int]]:
        try:
            path = inside(self.source, name)
        except Unreadable:
            return {}
        try:
            info = json.loads(path.read_bytes())
            return {
                split["name"]: [int(length) for length in split.get("shardLengths", [])]
                for split in info.get("splits", [])
            }
        except (
            OSError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            self.leave_out(Unreadable(name, f"no table of TensorFlow Datasets ({error})"))
            return {}


def _pictures(features: Mapping[str, Any], key: str, name: str) -> Sequence[bytes]:
    """The encoded pictures under a key."""
    camera = key.rpartition("/")[2]
    has = features.get(f"episode_metadata/has_{camera}")
    if has is not None and list(has.int64_list.value) == [0]:
        raise Unreadable(name, f"was recorded without {camera}")
    if key not in features:
        raise Unreadable(name, f"has no {key}")
    return features[key].bytes_list.value


def _rows(features: Mapping[str, Any], key: str, count: int, name: str, width=None) -> np.ndarray:
    """Numbers under a key as float32 `[count, width]`."""
    if key not in features:
        raise Unreadable(name, f"has no {key}")
    feature = features[key]
    floats = feature.HasField("float_list")
    values = np.array((feature.float_list if floats else feature.int64_list).value, np.float32)
    if not len(values) or len(values) % count or width not in (None, len(values) // count):
        raise Unreadable(name, f"{key} has {len(values)} numbers for {count} steps")
    return values.reshape(count, -1)


def _finite(rows: np.ndarray, key: str, name: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise Unreadable(name, f"{key} holds a number that is not finite")
    return rows
