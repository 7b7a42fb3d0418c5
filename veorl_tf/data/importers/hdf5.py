"""HDF5 files of strangers.

Only what hard links lead to is read: soft and external links, virtual datasets and those kept in
other files could name anything on the machine. Strings and objects are not read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.data.importers.base import MAX_BYTES, Unreadable
from veorl_tf.data.importers.checks import check_size, damage, finite
from veorl_tf.data.importers.pictures import check_pixels, decode_picture
from veorl_tf.data.layout import channels, picture_size, rgb

SUFFIXES = (".hdf5", ".h5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_DEPTH = 8  # of groups in groups


def has_signature(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """An HDF5 file. What the library raises within, here or while arrays are read, is damage."""
    import h5py

    with damage(name, "no whole HDF5 file"), h5py.File(path, "r", locking=False) as file:
        yield file


def is_hard(group, key: str) -> bool:
    """Whether a group has something of that name, and not by a link that may lead elsewhere."""
    import h5py

    link = key.encode("utf-8", "surrogateescape")
    links = group.id.links
    return links.exists(link) and links.get_info(link).type == h5py.h5l.TYPE_HARD


def hard(group, key: str, name: str):
    """What is at `key`, a/b/c, in a group."""
    import h5py

    for part in key.split("/"):
        if not isinstance(group, h5py.Group) or part in ("", ".") or not is_hard(group, part):
            raise Unreadable(name, f"{key!r} is missing, or a link that is not followed")
        group = group[part]
    return group


def own(array) -> bool:
    """Whether it is an array whose numbers lie in this file."""
    import h5py

    if not isinstance(array, h5py.Dataset) or array.shape is None:
        return False
    return not array.is_virtual and not array.external


def dataset(group, key: str, name: str, coded: bool = False):
    """An array of numbers, which is not read yet, or with `coded` of picture files."""
    array = hard(group, key, name)
    if not own(array):
        raise Unreadable(name, f"{key!r} is no array of this file")
    if array.dtype.kind not in "fiub" and not (coded and layout(array)):
        raise Unreadable(name, f"{told(key, array)}; numbers expected")
    return array


def leaves(group, key: str, name: str) -> dict[str, Any]:
    """All arrays at and below `key` by their path; each group is visited once."""
    import h5py

    out, seen, todo = {}, set(), [(key, hard(group, key, name))]
    while todo:
        path, found = todo.pop(0)
        if own(found):
            out[path] = found
        elif isinstance(found, h5py.Group) and path.count("/") < MAX_DEPTH:
            address = h5py.h5o.get_info(found.id).addr
            if address not in seen:
                seen.add(address)
                names = sorted(name for name in found.keys() if is_hard(found, name))
                todo += [(f"{path}/{name}", found[name]) for name in names]
    return out


def layout(array) -> str | None:
    """How an array holds pictures: `coded` as files, or where its `channels` are; None if not."""
    import h5py

    if array.ndim == 1 and h5py.check_vlen_dtype(array.dtype) == np.uint8:
        return "coded"
    if array.dtype != np.uint8:
        return None
    if array.ndim == 2 and len(array) and array.shape[1] > len(JPEG):
        check_size(array.name, "a row", array.chunks or (), array.dtype)
        return "coded" if array[0, : len(JPEG)].tobytes() == JPEG else None
    return channels(array.shape)


def told(key: str, array) -> str:
    """An array in a message."""
    return f"{key} {array.dtype} {list(array.shape)}"


def read(array, name: str, rows: slice | None = None) -> np.ndarray:
    """Rows of an array of numbers, or all of it."""
    key = array.name.rsplit("/", 1)[-1]
    shape = array.shape
    if rows is not None:
        if not shape or shape[0] < rows.stop:
            raise Unreadable(name, f"{told(key, array)}; {rows.stop} rows expected")
        shape = (rows.stop - rows.start, *shape[1:])
    for part in (shape, array.chunks or ()):
        check_size(name, key, part, array.dtype)
    return array[()] if rows is None else array[rows]


def column(group, key: str, name: str, rows: slice | None = None) -> np.ndarray:
    """Rows of an array of one number per row, float32 `[n]`."""
    array = dataset(group, key, name)
    if not array.ndim or array.shape[1:] not in ((), (1,)):
        raise Unreadable(name, f"{told(key, array)}; [n] expected")
    return finite(name, key, read(array, name, rows).reshape(-1))


def read_pictures(array, name: str, rows: slice | None = None) -> np.ndarray | list[np.ndarray]:
    """Pictures `[H, W, 3]` of an array that has a `layout`."""
    if layout(array) == "coded":
        return _decoded(array, name)
    height, width = picture_size(array.shape)
    check_pixels(name, width, height)
    return rgb(read(array, name, rows))


def _decoded(array, name: str) -> list[np.ndarray]:
    check_size(name, "pictures", array.chunks or (), array.dtype)
    out, size = [], 0
    for row in range(len(array)):
        out.append(decode_picture(io.BytesIO(array[row].tobytes()), f"{name}, picture {row}"))
        size += out[-1].nbytes
        if size > MAX_BYTES:
            raise Unreadable(name, f"pictures of more than {MAX_BYTES:,} bytes")
    return out


def same_length(name: str, arrays: dict[str, Any], count: int) -> dict[str, Any]:
    """The arrays. Raises Unreadable unless all of them have `count` rows."""
    for key, array in arrays.items():
        if key != "bounds" and len(array) != count:
            raise Unreadable(name, f"{key} has {len(array)} rows, not {count}")
    return arrays
