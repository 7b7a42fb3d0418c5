"""RLDS episodes in TFRecord files: TensorFlow Datasets' builder directories (BridgeData V2, Open
X-Embodiment, RL Unplugged) or any folder of such files.

    NAME/1.0.0/features.json, dataset_info.json
    NAME/1.0.0/NAME-train.tfrecord-00000-of-00002

A record is a tf.train.Example, one episode of n steps, which lists the values of all steps under
keys such as steps/observation/image (n PNG or JPEG files), steps/action (n * A numbers),
steps/reward and steps/is_terminal (n numbers). A file is a row of

    length uint64, checksum of the length, record, checksum of the record

with masked CRC32C checksums. No TensorFlow is loaded to read them.

Alignment, as RLDS defines it: a step's action is taken at its observation and its reward follows;
is_terminal speaks of the observation itself; the last step's action and reward mean nothing.
Demonstrations of Open X (BridgeData V2 too) have a reward on the last step alone: it marks the last
observation and counts as received on arriving there.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    Alignment,
    Item,
    Log,
    Unreadable,
    inside,
    natural,
    one_of,
    relative,
    walk,
)
from veorl_tf.data.importers.pictures import decode_picture

FILE = re.compile(r".*\.tfrecords?(-\d+-of-\d+)?")
SHARD = re.compile(r"(?P<stem>(.*-)?(?P<split>[^-]+)\.tfrecord)-(?P<index>\d+)-of-(?P<total>\d+)")
MAX_RECORD = 1 << 31  # bytes; protocol buffers are no larger
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
CHUNK = 1 << 22  # bytes that a checksum looks at in one go
# The word that brings a checksum's register from 0 to where it begins, all ones.
ALL_ONES = np.array([0x641F6454], "<u4").view(np.uint8)


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
        data = _record(inside(source, item.files[0]), where, spec["offset"], spec["length"])
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
            if reward[-1] and not reward[:-1].any():
                reward[-2] = reward[-1]
            arrays["reward"] = _finite(reward[:-1], spec["reward"], where)
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
                        features = parse(_record(path, name, offset, length), name)
                    except Unreadable:
                        continue
                    return chosen(features, source, options)
            except (Unreadable, OSError):
                continue
        return {"image": "", "action": [], "reward": ""}


class Encoded(Sequence):
    """Pictures `[H, W, 3]` of encoded ones, decoded when asked for. Raises Unreadable then."""

    def __init__(self, files: Sequence[bytes], name: str):
        self.files, self.name = files, name

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_picture(io.BytesIO(self.files[index]), f"{self.name}, picture {index}")


def chosen(features: Mapping[str, Any], source: Path, options) -> dict[str, Any]:
    """The options' keys, or the obvious ones. Raises UserError that lists what there is."""
    images, numbers = [], []
    for key in sorted((key for key in features if key.startswith("steps/")), key=natural):
        files = features[key].bytes_list.value
        if files and files[0].startswith(PICTURES):
            images.append(key)
        elif not files:
            numbers.append(key)
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


def only(keys: Sequence[str], source: Path, what: str) -> str:
    """The only one of some keys. Raises UserError when there are several, or none."""
    if not keys:
        raise UserError(f"{source}: no {what}")
    if len(keys) > 1:
        raise UserError(f"{source}: several cameras; --image_key one of {', '.join(keys)}")
    return keys[0]


def _named(option: str, key: str, valid: Sequence[str]) -> str:
    """The key of that name, or of that end: observation/image, or image where there is one such."""
    ends = [full for full in valid if f"/{full}".endswith(f"/{key.strip()}")]
    if len(ends) != 1:
        one_of(option, key, valid)
    return ends[0]


def record_files(source: Path) -> Iterator[Path]:
    """All TFRecord files of a source, by name."""
    if source.is_file():
        yield from [source] if FILE.fullmatch(source.name) else []
        return
    for folder, names in walk(source):
        yield from (folder / name for name in names if FILE.fullmatch(name))


def records(path: Path, name: str) -> Iterator[tuple[int, int]]:
    """Offset and length of every record's data. Raises Unreadable where the framing breaks."""
    size, at, number = path.stat().st_size, 0, 0
    if not size:
        raise Unreadable(name, "empty file")
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(12)
            if len(head) < 12:
                raise Unreadable(name, f"cut within the head of record {number}")
            length, check = struct.unpack("<QI", head)
            if masked(crc32c(head[:8])) != check:
                raise Unreadable(name, f"the length of record {number} is damaged (checksum)")
            if length > MAX_RECORD:
                raise Unreadable(name, f"record {number} says that it has {length:,} bytes")
            if at + 16 + length > size:
                raise Unreadable(name, f"cut within record {number}")
            yield at + 12, length
            at, number = at + 16 + length, number + 1


def _record(path: Path, name: str, offset: int, length: int) -> bytes:
    """A record's data, whose checksum is right."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length + 4)
    if len(data) < length + 4:
        raise Unreadable(name, "cut")
    if masked(crc32c(memoryview(data)[:-4])) != struct.unpack("<I", data[-4:])[0]:
        raise Unreadable(name, "damaged (checksum)")
    return data[:-4]


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
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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


def parse(data: bytes, name: str) -> dict[str, Any]:
    """Features of a serialized tf.train.Example by key. Raises Unreadable."""
    from google.protobuf.message import DecodeError

    example = _example_class()()
    try:
        example.ParseFromString(data)
    except DecodeError:
        raise Unreadable(name, "no tf.train.Example") from None
    return {entry.key: entry.value for entry in example.features.feature}


@cache
def _example_class():
    """tf.train.Example, declared without TensorFlow; its map of features as the list of entries
    that it is in the file."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    messages = {
        "BytesList": [("value", many, kind.TYPE_BYTES)],
        "FloatList": [("value", many, kind.TYPE_FLOAT)],
        "Int64List": [("value", many, kind.TYPE_INT64)],
        "Feature": [
            ("bytes_list", one, "BytesList"),
            ("float_list", one, "FloatList"),
            ("int64_list", one, "Int64List"),
        ],
        "Entry": [("key", one, kind.TYPE_STRING), ("value", one, "Feature")],
        "Features": [("feature", many, "Entry")],
        "Example": [("features", one, "Features")],
    }
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (field, label, type_) in enumerate(fields, 1):
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(type_, str):
                added.type, added.type_name = kind.TYPE_MESSAGE, f".t.{type_}"
            else:
                added.type = type_
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def masked(crc: int) -> int:
    """A checksum as TFRecords store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data) -> int:
    """Castagnoli's checksum of some bytes.

    The register r after a word w is S(r ^ w), with S linear: what four bytes of zeros do to it. So
    a row of words folds, a b c d -> S(a) ^ b, S(c) ^ d -> SS(first) ^ second, and S of the last one
    is the register. Words of zeros ahead of all others change nothing.
    """
    data = np.frombuffer(data, np.uint8)
    head = len(data) % CHUNK
    register = _folded(
        np.concatenate([np.zeros(-head % 4, np.uint8), ALL_ONES, data[:head]]).view("<u4")
    )
    for at in range(head, len(data), CHUNK):
        words = data[at : at + CHUNK].copy().view("<u4")
        words[0] ^= register
        register = _folded(words)
    return int(register) ^ 0xFFFFFFFF


def _folded(words: np.ndarray) -> np.uint32:
    level = 0
    while len(words) > 1:
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, np.uint32), words])
        words = _passed(_zeros(level), words[::2]) ^ words[1::2]
        level += 1
    return _passed(_zeros(0), words)[0]


def _passed(table: np.ndarray, words: np.ndarray) -> np.ndarray:
    """A linear map of words, given as its values `[4, 256]` at each byte."""
    out = table[0][words & 255]
    for byte in (1, 2, 3):
        out ^= table[byte][words >> np.uint32(8 * byte) & 255]
    return out


@cache
def _zeros(level: int) -> np.ndarray:
    """What 4 * 2^level bytes of zeros do to the register, `[4, 256]`."""
    if level:
        half = _zeros(level - 1)
        return np.stack([_passed(half, row) for row in half])
    words = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(32):
        words = words >> np.uint32(1) ^ np.uint32(0x82F63B78) * (words & 1)
    return words
