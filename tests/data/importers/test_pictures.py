"""Pictures to one size, against numpy; and picture files of all kinds, whole and hostile."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import MAX_PIXELS, Options, Unreadable
from veorl_tf.data.importers.pictures import (
    Fit,
    check_pixels,
    decode_picture,
    load_picture,
    resized,
)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def areas(picture, height, width):
    """Means of equal rectangles `[height, width, 3]`, not rounded."""
    h, w = picture.shape[0] // height, picture.shape[1] // width
    return picture.reshape(height, h, width, w, 3).mean((1, 3))


def assert_near(picture, expected, most=0.51):
    assert picture.dtype == np.uint8 and picture.shape == expected.shape
    assert np.abs(picture - expected).max() <= most


def fitted(picture, fit, size=8, **options):
    return Fit(Options(size=size, fit=fit, **options))(picture)


def test_crop_takes_the_middle():
    wide, high = noise(16, 24), noise(24, 16)
    assert_near(fitted(wide, "crop"), areas(wide[:, 4:20], 8, 8))
    assert_near(fitted(high, "crop"), areas(high[4:20], 8, 8))
    assert_near(fitted(noise(16, 16), "crop"), areas(noise(16, 16), 8, 8))


def test_letterbox_keeps_all_on_black():
    wide, high = noise(16, 32), noise(32, 16)
    out = fitted(wide, "letterbox")
    assert_near(out[2:6], areas(wide, 4, 8))
    assert not out[:2].any() and not out[6:].any()
    out = fitted(high, "letterbox")
    assert_near(out[:, 2:6], areas(high, 8, 4))
    assert not out[:, :2].any() and not out[:, 6:].any()
    assert_near(fitted(noise(16, 16), "letterbox"), areas(noise(16, 16), 8, 8))
    assert fitted(np.full((1, 1000, 3), 9, np.uint8), "letterbox")[3:5].any()  # thin ones stay


def test_stretch_and_box():
    picture = noise(24, 40)
    assert_near(fitted(picture, "stretch"), areas(picture, 8, 8))
    assert_near(fitted(picture, "3,2,16,8"), areas(picture[2:10, 3:19], 8, 8))
    np.testing.assert_array_equal(fitted(picture, "32,16,8,8"), picture[16:, 32:])


def test_mirror_and_flip():
    picture = noise(16, 32)
    for fit in ("crop", "letterbox", "stretch", "8,0,16,16"):
        plain = fitted(picture, fit)
        for mirror, flip in ((True, False), (False, True), (True, True)):
            turned = fitted(picture, fit, mirror=mirror, flip=flip)
            expected = plain[:, ::-1] if mirror else plain
            np.testing.assert_array_equal(turned, expected[::-1] if flip else expected)
            assert turned.flags.c_contiguous


def test_a_picture_of_that_size_stays():
    picture = noise(8, 8)
    for fit in ("crop", "letterbox", "stretch", "0,0,8,8"):
        np.testing.assert_array_equal(fitted(picture, fit), picture)


@pytest.mark.parametrize("fit", ["0,0,41,8", "33,0,8,8", "0,17,8,8", "999999999,0,1,1"])
def test_a_box_outside_is_unreadable(fit):
    with pytest.raises(Unreadable, match="is not within 40x24 pixels"):
        fitted(noise(24, 40), fit)


@pytest.mark.parametrize(
    "fit", ["", "cover", "1,2,3", "1,2,3,4,5", "-1,0,8,8", "1,1,0,8", "9" * 99]
)
def test_wrong_fits(fit):
    with pytest.raises(UserError, match="--fit"):
        Fit(Options(fit=fit))


def test_resized_averages_what_shrinks_and_blends_what_grows():
    picture = noise(4, 64)
    tall = resized(picture, 8, 8)
    narrow = resized(picture, 4, 8)
    assert_near(narrow, areas(picture, 4, 8))
    np.testing.assert_array_equal(tall, resized(narrow, 8, 8))
    ramp = np.repeat(np.array([[0], [200]], np.uint8)[..., None], 3, -1)
    assert resized(ramp, 4, 1)[:, 0, 0].tolist() == [0, 50, 150, 200]


@pytest.mark.parametrize("shape", [(1, 1), (1, 70000), (70000, 1), (2, 3), (65, 63)])
def test_any_shape_fits(shape):
    for fit in ("crop", "letterbox", "stretch"):
        assert fitted(noise(*shape), fit, 64).shape == (64, 64, 3)


# -- files


def written(path, image, **how):
    image.save(path, **how)
    return load_picture(path, path.name)


def test_colour_and_grey(tmp_path):
    picture = noise(6, 9)
    out = written(tmp_path / "a.png", Image.fromarray(picture))
    np.testing.assert_array_equal(out, picture)
    assert out.dtype == np.uint8
    grey = picture[..., 0]
    out = written(tmp_path / "b.png", Image.fromarray(grey))
    np.testing.assert_array_equal(out, np.repeat(grey[..., None], 3, -1))
    bits = grey > 100
    out = written(tmp_path / "c.png", Image.fromarray(bits))
    np.testing.assert_array_equal(out[..., 1], 255 * bits)


def test_jpeg(tmp_path):
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    out = written(tmp_path / "a.jpg", Image.fromarray(flat), quality=95)
    assert_near(out, flat.astype(float), 3)
    out = written(tmp_path / "b.jpg", Image.fromarray(flat).convert("L"), quality=95)
    assert out.shape == (16, 16, 3) and np.ptp(out, -1).max() == 0


def test_cmyk_jpeg(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8) + np.array([0, 155, 205, 0], np.uint8)
    out = written(tmp_path / "a.jpg", Image.fromarray(ink, "CMYK"), quality=95)
    assert_near(out, np.zeros((16, 16, 3)) + [255, 100, 50], 6)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    out = written(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_array_equal(out[..., 0], [[0, 0, 1, 156, 255]])
    assert out.shape == (1, 5, 3)


def test_palette_and_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    np.testing.assert_array_equal(written(tmp_path / "a.png", image), colours)
    out = written(tmp_path / "b.png", image, transparency=1)
    np.testing.assert_array_equal(out, [[[10, 20, 30], [0, 0, 0], [70, 80, 90]]])


def test_alpha_lies_on_black(tmp_path):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    out = written(tmp_path / "a.png", Image.fromarray(rgba))
    np.testing.assert_array_equal(out, [[[200, 100, 50], [0, 0, 0], [100, 50, 25]]])
    out = written(tmp_path / "b.png", Image.fromarray(rgba[..., 2:], "LA"))
    np.testing.assert_array_equal(out[..., 0], [[50, 0, 25]])


@pytest.mark.parametrize("suffix", ("png", "jpg"))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_exif_says(tmp_path, orientation, suffix):
    """Bright where the upright picture's left top is."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    turns = {  # from upright to stored: the inverse of what EXIF asks for
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = written(tmp_path / f"a.{suffix}", stored, exif=exif)
    assert_near(out, upright.astype(float), 12)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG")
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height, data=b""):
    """A tiny PNG file that declares that many pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif():
    file = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(file, "GIF")
    return file.getvalue()


HOSTILE = {
    "empty.png": b"",
    "text.jpg": b"this is no picture\n" * 9,
    "renamed.png": gif(),
    "half.png": png(noise(16, 16))[:400],
    "half.jpg": jpeg(noise(32, 32))[:900],
    "head.png": png(noise(16, 16))[:20],
    "bomb.png": bomb(50000, 50000),
    "large.png": bomb(10000, 10000),
    "line.png": bomb(MAX_PIXELS + 1, 1),
    "none.png": bomb(0, 5),
    "cut.png": bomb(64, 64, b"\0" * 100),
    "pickle.jpg": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_unreadable(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(Unreadable) as error:
        load_picture(tmp_path / name, f"folder/{name}")
    assert error.value.name == f"folder/{name}" and error.value.reason
    assert "\n" not in error.value.reason and str(tmp_path) not in error.value.reason


def test_files_that_are_not_there_are_unreadable(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(Unreadable, match="a.png: "):
            load_picture(path, "a.png")
    if os.geteuid():
        (tmp_path / "closed.png").touch(0o000)
        with pytest.raises(Unreadable):
            load_picture(tmp_path / "closed.png", "closed.png")


@pytest.mark.parametrize("encode", (png, jpeg))
def test_truncation_is_noticed_everywhere(encode):
    whole = encode(noise(8, 8))
    for length in range(len(whole) - 12):  # the last twelve bytes of a PNG file hold nothing
        with pytest.raises(Unreadable):
            decode_picture(io.BytesIO(whole[:length]), "a")


def test_flipped_bits_of_png_are_noticed():
    """All chunks have checksums, so that no flip goes by with other pixels."""
    picture = np.tile(np.arange(24, dtype=np.uint8)[:, None, None], (1, 24, 3))
    whole = png(picture)
    for at in range(len(whole)):
        for bit in (0x01, 0x10, 0x80):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            try:
                out = decode_picture(io.BytesIO(damaged), "a")
            except Unreadable:
                continue
            np.testing.assert_array_equal(out, picture)


def test_damaged_jpeg_never_crashes():
    r = np.random.default_rng(0)
    whole = jpeg(noise(16, 16))
    for _ in range(200):
        damaged = bytearray(whole)
        for at in r.integers(0, len(whole), 3):
            damaged[at] = r.integers(256)
        try:
            out = decode_picture(io.BytesIO(damaged), "a")
        except Unreadable:
            continue
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3


def test_check_pixels():
    check_pixels("a", 8192, 8192)
    for width, height in ((8192, 8193), (0, 1), (1, 0), (-1, -1)):
        with pytest.raises(Unreadable, match=f"{width}x{height} pixels"):
            check_pixels("a", width, height)
