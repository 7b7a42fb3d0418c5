"""Pictures and videos as files and bytes. Frames are uint8 RGB throughout."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import MachineError
from veorl_tf.core.files import atomic_write

WATCHABLE = 256  # pixels on the shorter side to which small frames are enlarged


def write_mp4(path: str | Path, frames: np.ndarray, fps: float, size: int = WATCHABLE) -> Path:
    """Write an H.264 video that browsers and TensorBoard's users can play.

    Args:
        frames: uint8 [T, H, W, 3], T >= 1.
        fps: frames per second.
        size: frames are enlarged by the largest whole factor that keeps the shorter side within it.
    Raises:
        MachineError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise MachineError("videos need the package av: pip install av") from None
    frames = _enlarged(_checked(frames, 4), size)
    # yuv420p halves both sides, so they must be even.
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), "edge"
    )
    path, buffer = Path(path), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )
        container.mux(stream.encode())
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
    return path


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write a picture, uint8 [H, W, 3]."""
    with atomic_write(path) as file:
        file.write(png_bytes(image))
    return Path(path)


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(_checked(image, 3))).save(buffer, "PNG")
    return buffer.getvalue()


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] as an animated GIF that repeats, each frame with its own 256 colours."""
    from PIL import Image

    images = [
        Image.fromarray(np.ascontiguousarray(frame)).quantize(
            256, Image.Quantize.FASTOCTREE, dither=0
        )
        for frame in _checked(frames, 4)
    ]
    buffer = io.BytesIO()
    # GIF counts in hundredths of a second, and players take anything under two for ten.
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        loop=0,
        optimize=False,
        duration=max(20, round(100 / fps) * 10),
    )
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] laid out row by row, dark lines between: uint8 [H', W', 3]."""
    images = _checked(images, 4)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 24, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _enlarged(frames: np.ndarray, size: int) -> np.ndarray:
    factor = max(1, size // min(frames.shape[1:3]))
    return frames.repeat(factor, 1).repeat(factor, 2)


def _checked(array: np.ndarray, rank: int) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != rank or array.shape[-1] != 3 or not array.size:
        raise ValueError(
            f"{array.dtype} {list(array.shape)} instead of uint8 "
            f"{'[T, H, W, 3]' if rank == 4 else '[H, W, 3]'}"
        )
    return array
