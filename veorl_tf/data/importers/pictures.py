"""Pictures of any size to the size that nets take, and picture files that nobody vouches for."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from veorl_tf.core.errors import MACHINE_ERRNOS, UserError
from veorl_tf.data.importers.base import MAX_PIXELS, Options, Unreadable

SUFFIXES = (".jpg", ".jpeg", ".png")
MOVING = (".gif", ".webp")
# What PIL raises on files that are damaged or no pictures.
READ_ERRORS = (
    Image.DecompressionBombError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class Fit:
    """Pictures `[H, W, 3]` uint8 to `[size, size, 3]`: cut or padded, averaged over areas
    (OpenCV's INTER_AREA; enlarged ones bilinearly), then turned."""

    def __init__(self, options: Options):
        self.size, self.fit = options.size, options.fit
        self.mirror, self.flip = options.mirror, options.flip
        self.box = None
        if self.fit not in ("crop", "letterbox", "stretch"):
            if not re.fullmatch(r"\d{1,9}(,\d{1,9}){3}", self.fit):
                raise UserError(f"--fit {self.fit}: crop, letterbox, stretch, or x,y,width,height")
            self.box = tuple(int(number) for number in self.fit.split(","))
            if 0 in self.box[2:]:
                raise UserError(f"--fit {self.fit}: width and height must be at least 1")

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        if self.box is not None:
            x, y, w, h = self.box
            if x + w > width or y + h > height:
                raise Unreadable("", f"--fit {self.fit} is not within {width}x{height} pixels")
            picture = picture[y : y + h, x : x + w]
        elif self.fit == "crop":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            picture = picture[top : top + side, left : left + side]
        if self.fit == "letterbox":
            picture = self._letterboxed(picture)
        else:
            picture = resized(picture, self.size, self.size)
        if self.mirror:
            picture = picture[:, ::-1]
        if self.flip:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)

    def _letterboxed(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = self.size / max(height, width)
        shape = [max(1, round(side * scale)) for side in (height, width)]
        top, left = ((self.size - side) // 2 for side in shape)
        out = np.zeros((self.size, self.size, 3), np.uint8)
        out[top : top + shape[0], left : left + shape[1]] = resized(picture, *shape)
        return out


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """`[H, W, 3]` to `[height, width, 3]`: averaged over areas along the axes that shrink, then
    bilinear along those that grow; the same array if it has that size."""
    import cv2

    smaller = min(height, picture.shape[0]), min(width, picture.shape[1])
    for shape, how in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if picture.shape[:2] != shape:
            picture = cv2.resize(picture, shape[::-1], interpolation=how)
    return picture


def load_picture(path: Path, name: str) -> np.ndarray:
    """A picture file as uint8 `[H, W, 3]`, upright as its EXIF says. Raises Unreadable."""
    try:
        with open(path, "rb") as file:
            return decode_picture(file, name)
    except OSError as error:
        raise Unreadable(name, error.strerror or str(error)) from None


def decode_picture(file, name: str) -> np.ndarray:
    """As `load_picture`, of a binary file object."""
    formats = ("JPEG", "PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as image:
                check_pixels(name, *image.size)
                image.verify()  # checksums of PNG, which decoding passes by
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return composed(image)
    except UnidentifiedImageError:
        raise Unreadable(name, "no whole JPEG or PNG picture") from None
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise
        raise Unreadable(name, f"no whole picture ({error})") from None


def composed(image) -> np.ndarray:
    """A PIL image as RGB; what is transparent lies on black."""
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
    return (rgba[..., :3] * rgba[..., 3:] // 255).astype(np.uint8)


def check_pixels(name: str, width: int, height: int) -> None:
    """Raises Unreadable for a picture of absurd size, before it is decoded."""
    if width * height > MAX_PIXELS or min(width, height) < 1:
        raise Unreadable(name, f"{width}x{height} pixels; at most {MAX_PIXELS:,} are read")


class Encoded(Sequence):
    """Pictures `[H, W, 3]` of encoded ones, decoded when asked for. Raises Unreadable then."""

    def __init__(self, files: Sequence[bytes], name: str):
        self.files, self.name = files, name

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_picture(io.BytesIO(self.files[index]), f"{self.name}, picture {index}")
