"""Pictures and videos can be read back by others."""

import io

import numpy as np
import pytest

from veorl_tf.core.media import gif_bytes, grid, png_bytes, write_mp4, write_png


def film(count=10, height=64, width=64):
    """A bright square that moves to the right over a dark gradient."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 2] = np.arange(width) % 100
    for t in range(count):
        frames[t, 8:24, 3 * t : 3 * t + 16] = (220, 180, 40)
    return frames


@pytest.mark.parametrize(
    "height, width, expected",
    [(64, 64, (256, 256)), (64, 128, (256, 512)), (33, 21, (396, 252)), (301, 333, (302, 334))],
)
def test_mp4(tmp_path, height, width, expected):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    frames = film(10, height, width)
    path = write_mp4(tmp_path / "deep" / "film.mp4", frames, fps=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and float(stream.average_rate) == 12.5
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert read.shape == (10, *expected, 3)
    factor = expected[0] // height
    shown = frames.repeat(factor, 1).repeat(factor, 2)
    error = np.abs(read[:, : height * factor, : width * factor].astype(float) - shown).mean()
    assert error < 6  # compressed, but the same film
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_png_and_gif(tmp_path):
    from PIL import Image

    frames = film(4)
    write_png(tmp_path / "a.png", frames[0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), frames[0])
    animation = Image.open(io.BytesIO(gif_bytes(frames, 20)))
    assert (
        animation.n_frames == 4 and animation.info["duration"] == 50 and animation.info["loop"] == 0
    )
    for t in range(4):
        animation.seek(t)
        error = np.abs(np.asarray(animation.convert("RGB")).astype(float) - frames[t])
        assert error.mean() < 12


def test_a_gif_of_equal_frames_keeps_its_length():
    from PIL import Image

    animation = Image.open(io.BytesIO(gif_bytes(np.repeat(film(1), 5, 0), 10)))
    total = 0
    for t in range(animation.n_frames):
        animation.seek(t)
        total += animation.info["duration"]
    assert total == 500


def test_grid():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 3, 3), np.uint8)
    sheet = grid(images, 3, gap=1)
    assert sheet.shape == (2 * 5 - 1, 3 * 4 - 1, 3)
    assert sheet[::5, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 24]]
    assert (sheet[4] == 24).all() and (sheet[:, 3] == 24).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(bad, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(bad)
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "a.mp4", bad[None], 10)
    assert not list(tmp_path.iterdir())
