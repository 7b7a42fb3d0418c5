"""TFRecord files of tf.train.Example, read without TensorFlow. A file is a row of

    length uint64, checksum of the length, record, checksum of the record

with masked CRC32C checksums; all of it may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from veorl_tf.data.importers.base import Unreadable
from veorl_tf.data.importers.checks import damage

MAX_RECORD = 1 << 31  # bytes; protocol buffers are no larger
GZIP, ZLIB = b"\x1f\x8b\x08", (b"\x78\x01", b"\x78\x9c", b"\x78\xda")


def records(path: Path, name: str) -> Iterator[tuple[int, int]]:
    """Offset and length of every record's data. Raises Unreadable where the framing breaks."""
    at, number = 0, 0
    if not path.stat().st_size:
        raise Unreadable(name, "empty file")
    with damage(name), opened(path) as file:
        while head := file.read(12):
            if len(head) < 12:
                raise Unreadable(name, f"cut within the head of record {number}")
            if not _begins_record(head):
                raise Unreadable(name, _no_record(head, number))
            (length,) = struct.unpack_from("<Q", head)
            if length > MAX_RECORD:
                raise Unreadable(name, f"record {number} says that it has {length:,} bytes")
            end = at + 16 + length
            file.seek(end - 1)
            if not file.read(1):
                raise Unreadable(name, f"cut within record {number}")
            yield at + 12, length
            at, number = end, number + 1


def read_record(path: Path, name: str, offset: int, length: int) -> bytes:
    """A record's data, whose checksum is right."""
    with damage(name), opened(path) as file:
        file.seek(offset)
        data = file.read(length + 4)
    if len(data) < length + 4:
        raise Unreadable(name, "cut")
    data, check = data[:-4], data[-4:]
    if masked(data) != struct.unpack("<I", check)[0]:
        raise Unreadable(name, "damaged (checksum)")
    return data


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file of records, unpacked if it is a gzip file: those are TFRecords' own way to be
    compressed."""
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        if head.startswith(GZIP) and not _begins_record(head):
            with gzip.open(file) as unpacked:
                yield unpacked
        else:
            yield file


def _begins_record(head: bytes) -> bool:
    """Whether the 12 bytes are a length and its checksum."""
    return len(head) == 12 and masked(head[:8]) == struct.unpack_from("<I", head, 8)[0]


def _no_record(head: bytes, number: int) -> str:
    if not number and head.startswith(ZLIB):
        return "zlib-compressed; write it anew with gzip or without compression"
    return f"the length of record {number} is damaged (checksum)"


def masked(data: bytes) -> int:
    """The checksum of some bytes as it is stored."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
