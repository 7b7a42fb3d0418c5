"""Which axes of arrays that others wrote are which, and how large they may be."""

from __future__ import annotations

import math

import numpy as np

MAX_PIXELS = 1 << 26  # of one picture: 8192 x 8192
MAX_BYTES = 1 << 32  # of one array of an episode
MAX_ROWS = 1 << 22  # of one file
SMALLEST = 16  # pixels of a side, of pictures without channels: [64, 64, 3] is none of those


def channels(shape: tuple[int, ...]) -> str | None:
    """Where an array of pictures has its one (grey) or three (RGB) channels: `last` `[n, H, W, C]`,
    `first` `[n, C, H, W]`, or `none` `[n, H, W]`, grey. None for what is no array of pictures."""
    if len(shape) == 3:
        return "none" if min(shape[1:]) >= SMALLEST else None
    if len(shape) != 4:
        return None
    return "last" if shape[3] in (1, 3) else "first" if shape[1] in (1, 3) else None


def picture_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an array of pictures."""
    return shape[2:] if channels(shape) == "first" else shape[1:3]


def rgb(pictures: np.ndarray) -> np.ndarray:
    """An array of pictures as `[n, H, W, 3]`."""
    where = channels(pictures.shape)
    if where == "none":
        pictures = pictures[..., None]
    if where == "first":
        pictures = np.ascontiguousarray(np.moveaxis(pictures, 1, -1))
    return np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures


def absurd(key: str, shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Why an array of that shape is not read; None if it may be."""
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) >= 0 and max(shape[:1], default=0) <= MAX_ROWS and size <= MAX_BYTES:
        return None
    return (
        f"{key} is {dtype} {list(shape)}; at most {MAX_ROWS:,} rows and {MAX_BYTES:,} bytes are "
        f"read"
    )
