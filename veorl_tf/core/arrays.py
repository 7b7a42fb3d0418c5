"""`.npz` archives with bytes that depend on the arrays alone, read without ever unpickling.

NumPy's own writer stamps the archive with the time of day on some versions and takes array names as
keyword arguments (an array called 'file' breaks it). This one gives equal bytes for equal arrays,
so that datasets and checkpoints can be compared by checksum.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold
# What np.load, zipfile and zlib raise on archives that are cut, overwritten or not archives.
READ_ERRORS = (
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    OSError,
    SyntaxError,
    tokenize.TokenError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def write_npz(
    file: IO[bytes] | str | Path, arrays: Mapping[str, np.ndarray], compress: bool = False
) -> None:
    """Write named arrays in the order given. Raises TypeError for an array of Python objects."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method, allowZip64=True) as archive:
        for name, array in arrays.items():
            array = np.asanyarray(array)
            if array.dtype.hasobject:
                raise TypeError(
                    f"array {name!r} holds Python objects (dtype {array.dtype}); numbers expected"
                )
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.compress_type = method
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def npz_headers(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of an archive, without reading the arrays. Members that are
    none are passed by.

    Raises one of READ_ERRORS for a damaged archive.
    """
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            # A damaged length makes of the entries that follow a part of this one.
            if b"PK" in info.extra + info.comment:
                raise ValueError(f"its list of arrays is damaged at {name!r}")
            with archive.open(name) as member:
                if not name.endswith(".npy"):
                    if member.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                        raise ValueError(f"its list of arrays is damaged at {name!r}")
                    continue
                version = np.lib.format.read_magic(member)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                elif version == (2, 0):
                    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
                else:
                    raise ValueError(f"{name}: npy format {version} is not supported")
            headers[name.removesuffix(".npy")] = (shape, dtype)
    return headers
