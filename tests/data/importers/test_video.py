"""Videos that PyAV and PIL write, of many containers, read back frame by frame."""

import io
import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers import video
from veorl_tf.data.importers.base import Item, Options, Unreadable
from veorl_tf.data.importers.video import ClipList, Videos, decode

STEP = 8  # grey level by which a frame is brighter than the one before


def picture(i: int, size=(48, 64)) -> np.ndarray:
    return np.full((*size, 3), min(255, STEP * i), np.uint8)


def write(path, frames=20, codec="h264", fps=10, pix_fmt="yuv420p", make=picture):
    """Frames of growing brightness."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, bit_rate=10_000_000)
        stream.height, stream.width = make(0).shape[:2]
        stream.pix_fmt = pix_fmt
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(make(i), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(frames) -> list[int]:
    """Which frame each one is, by its brightness."""
    return [round(float(frame.picture().mean()) / STEP) for frame in frames]


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.mp4", "h264", "yuv420p"),
        ("a.mkv", "h264", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.ts", "mpeg2video", "yuv420p"),
    ],
)
def test_containers(tmp_path, name, codec, pix_fmt):
    path = write(tmp_path / name, codec=codec, pix_fmt=pix_fmt, fps=25)
    frames = list(decode(path, name))
    assert levels(frames) == list(range(20))
    np.testing.assert_allclose([f.time for f in frames], np.arange(20) / 25, atol=2e-3)
    assert frames[3].picture().shape == (48, 64, 3) and frames[3].picture().dtype == np.uint8


def test_a_part_of_a_video_begins_with_the_frame_that_is_on(tmp_path):
    path = write(tmp_path / "a.mp4", frames=30)
    part = list(decode(path, "a", 1.25, 2.0))
    assert levels(part) == [12, 13, 14, 15, 16, 17, 18, 19]
    np.testing.assert_allclose([f.time for f in part], [0, *np.arange(0.05, 0.7, 0.1)], atol=1e-3)
    assert levels(decode(path, "a", 5.0)) == [29]
    assert levels(decode(path, "a", 0.0, 0.3)) == [0, 1, 2]


def test_colours(tmp_path):
    """Red, green and blue stay what they are, in limited and in full range."""
    colours = np.zeros((48, 48, 3), np.uint8)
    for i in range(3):
        colours[:, 16 * i : 16 * i + 16, i] = 200
    for name, pix_fmt in (("a.mp4", "yuv420p"), ("b.avi", "yuvj420p")):
        codec = "h264" if name == "a.mp4" else "mjpeg"
        path = write(tmp_path / name, 3, codec, pix_fmt=pix_fmt, make=lambda i: colours)
        actual = list(decode(path, name))[1].picture().astype(int)
        for i in range(3):
            patch = actual[16:32, 16 * i + 4 : 16 * i + 12].mean((0, 1))
            np.testing.assert_allclose(patch, 200 * np.eye(3)[i], atol=14)


def test_grey_video(tmp_path):
    """A camera without colours: limited range, as the stream says."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray"
        for i in range(5):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.full((48, 64), 40 * i, np.uint8), format="gray")
                )
            )
        container.mux(stream.encode())
    pictures = [frame.picture() for frame in decode(path, "a")]
    assert all(np.ptp(p.astype(int)) == 0 for p in pictures)
    steps = np.diff([float(p.mean()) for p in pictures])
    assert (steps > 30).all()


def test_variable_rate(tmp_path):
    times = [0, 40, 80, 500, 540, 2000]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = list(decode(path, "a"))
    np.testing.assert_allclose([f.time for f in frames], np.array(times) / 1000, atol=2e-3)
    assert levels(frames) == [0, 1, 2, 3, 4, 5]


def corner(i=0) -> np.ndarray:
    """A picture whose dark corner is larger to the right than down: no two ways of it agree."""
    frame = np.full((48, 64, 3), 220, np.uint8)
    frame[:16, :32] = 10
    return frame


def set_matrix(path, numbers) -> None:
    """Puts a, b, c, d of a display matrix into an mp4's only track."""
    (a, b), (c, d) = numbers
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    data[at : at + 32] = struct.pack(">8i", *(n << 16 for n in (a, b, 0, c, d, 0, 0, 0)))
    path.write_bytes(data)


WAYS = {  # (x, y) is shown at (ax + cy, bx + dy)
    "as it is": ([[1, 0], [0, 1]], lambda p: p),
    "quarter": ([[0, 1], [-1, 0]], lambda p: np.rot90(p, -1)),  # clockwise, as players show it
    "half": ([[-1, 0], [0, -1]], lambda p: np.rot90(p, 2)),
    "three quarters": ([[0, -1], [1, 0]], lambda p: np.rot90(p)),
    "mirrored": ([[-1, 0], [0, 1]], lambda p: p[:, ::-1]),
    "upside down": ([[1, 0], [0, -1]], lambda p: p[::-1]),
    "transposed": ([[0, 1], [1, 0]], lambda p: p.swapaxes(0, 1)),
    "transposed and turned": ([[0, -1], [-1, 0]], lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_turned_and_mirrored_as_the_track_says(tmp_path, way):
    matrix, expected = WAYS[way]
    path = write(tmp_path / "a.mp4", 3, make=corner)
    set_matrix(path, matrix)
    shown = next(decode(path, "a")).picture()
    expected = expected(corner())
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown.astype(int), expected.astype(int), atol=40)


@pytest.mark.parametrize("wide, width", [(Fraction(2), 128), (Fraction(1, 2), 32)])
def test_pixels_that_are_not_square(tmp_path, wide, width):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = wide
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner(), format="rgb24")))
        container.mux(stream.encode())
    shown = next(decode(path, "a")).picture()
    assert shown.shape == (48, width, 3)
    assert shown[:12, : width // 2 - 4].max() < 60 < 180 < shown[:12, width // 2 + 4 :].min()


def streams(path, *kinds) -> None:
    """A video of several streams of width, grey level and whether it is marked as the default."""
    with av.open(str(path), "w") as container:
        made = []
        for width, _, default in kinds:
            stream = container.add_stream("mpeg4", rate=10, bit_rate=4_000_000)
            stream.height, stream.width, stream.pix_fmt = width * 3 // 4, width, "yuv420p"
            stream.disposition = Disposition.default if default else Disposition(0)
            made.append(stream)
        for _ in range(3):
            for stream, (width, level, _) in zip(made, kinds, strict=True):
                frame = np.full((width * 3 // 4, width, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for stream in made:
            container.mux(stream.encode())


@pytest.mark.parametrize(
    "kinds, chosen",
    [
        ([(64, 40, False), (128, 200, False)], 200),
        ([(128, 40, False), (64, 200, False)], 40),
        ([(64, 40, True), (128, 200, False)], 40),
        ([(64, 40, True), (128, 200, True)], 200),
        ([(64, 40, False), (64, 200, False)], 40),
    ],
)
def test_of_several_streams_the_one_that_ffmpeg_takes(tmp_path, kinds, chosen):
    streams(tmp_path / "a.mkv", *kinds)
    frames = list(decode(tmp_path / "a.mkv", "a"))
    assert len(frames) == 3 and abs(float(frames[1].picture().mean()) - chosen) < 8


def add_cover(path, size=(200, 200)) -> None:
    """Puts a large cover picture into an mp4 as music players do: FFmpeg lists it first."""
    jpeg = io.BytesIO()
    Image.new("RGB", size, (200, 99, 0)).save(jpeg, "JPEG")

    def box(kind, *parts):
        return struct.pack(">I", 8 + sum(map(len, parts))) + kind + b"".join(parts)

    data = box(b"data", struct.pack(">II", 13, 0), jpeg.getvalue())
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    cover = box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", data)))
    film = path.read_bytes().replace(b"udta", b"free")
    at = film.index(b"moov") - 4
    assert film.index(b"mdat") < at  # what comes after may move
    (length,) = struct.unpack(">I", film[at : at + 4])
    cover = box(b"udta", cover)
    head = struct.pack(">I", length + len(cover)) + b"moov"
    path.write_bytes(film[:at] + head + cover + film[at + 8 :])


def test_a_cover_is_no_film(tmp_path):
    path = write(tmp_path / "a.mp4")
    add_cover(path)
    with av.open(str(path)) as container:
        assert [s.width for s in container.streams.video] == [200, 64]
    frames = list(decode(path, "a"))
    assert levels(frames) == list(range(20)) and frames[0].picture().shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
@pytest.mark.parametrize("said, shown", [(0, 100), (10, 100), (20, 20), (500, 500)])
def test_hurried_animations_last_as_players_show_them(tmp_path, suffix, said, shown):
    images = [Image.fromarray(picture(i)) for i in range(5)]
    images[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=images[1:], duration=said)
    frames = list(decode(tmp_path / f"a.{suffix}", "a"))
    assert levels(frames) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([f.time for f in frames], np.arange(5) * shown / 1000)


def test_animations_lie_as_their_exif_says(tmp_path):
    images, exif = [Image.fromarray(corner()), Image.fromarray(corner() // 2)], Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    images[0].save(
        tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True, exif=exif
    )
    shown = [frame.picture() for frame in decode(tmp_path / "a.webp", "a")]
    np.testing.assert_array_equal(shown[0], np.rot90(corner(), -1))
    np.testing.assert_array_equal(shown[1], np.rot90(corner() // 2, -1))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations(tmp_path, suffix):
    images = [Image.fromarray(picture(i)) for i in range(4)]
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 200, 100, 50])
    frames = list(decode(path, "a"))
    assert levels(frames) == [0, 1, 2, 3]
    np.testing.assert_allclose([f.time for f in frames], [0, 0.1, 0.3, 0.4])


def test_transparent_animations_lie_on_black(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 4:, 3] = 255
    other = rgba.copy()
    other[..., 1] = 90
    images = [Image.fromarray(x) for x in (rgba, other)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True)
    first = next(decode(tmp_path / "a.webp", "a")).picture()
    assert not first[:, :4].any() and (first[:, 4:] == [200, 0, 0]).all()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"not a video at all", "no whole video"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "no whole video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no whole video"),
    ],
)
def test_no_video_and_playlists(tmp_path, content, words):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=words):
        list(decode(path, "a.mp4"))


def test_a_cut_video_gives_what_it_has(tmp_path):
    whole = write(tmp_path / "a.ts", 60, "mpeg2video").read_bytes()
    (tmp_path / "b.ts").write_bytes(whole[: len(whole) // 2])
    frames = decode(tmp_path / "b.ts", "b.ts")
    assert levels(next(frames) for _ in range(5)) == [0, 1, 2, 3, 4]
    (tmp_path / "c.mp4").write_bytes(write(tmp_path / "x.mp4").read_bytes()[:-200])
    with pytest.raises(Unreadable, match="c.mp4: no whole video"):
        list(decode(tmp_path / "c.mp4", "c.mp4"))


def test_audio_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(Unreadable, match="no video"):
        list(decode(tmp_path / "a.mp4", "a.mp4"))


def items(reader, source, options=None):
    left_out = []
    found = list(reader.items(source, options or Options(), left_out.append))
    return found, [(problem.name, problem.reason) for problem in left_out]


def test_a_tree_of_videos(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b/v10.mp4", "b/v9.mp4", "b/c/a.WEBM", ".hidden/x.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("hello")
    assert Videos().detect(tmp_path) and not Videos().detect(tmp_path / "notes.txt")
    found, left_out = items(Videos(), tmp_path)
    assert [item.name for item in found] == ["b/v9.mp4", "b/v10.mp4", "b/c/a.WEBM"]
    assert left_out == [("empty.mp4", "empty file")]
    assert [item.name for item in items(Videos(), tmp_path / "b" / "v9.mp4")[0]] == ["v9.mp4"]


def test_long_videos_in_pieces(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", 50)
    monkeypatch.setattr(video, "PIECE", 2.0)
    whole = Item("a.mp4", ("a.mp4",))
    pieces = Videos().pieces(tmp_path, whole)
    assert [dict(p.spec) for p in pieces] == [
        {"begin": 0.0, "end": 2.0},
        {"begin": 2.0, "end": None},
    ]
    seen = [levels(Videos().frames(tmp_path, piece, Options())) for piece in pieces]
    assert sum(seen, []) == levels(Videos().frames(tmp_path, whole, Options())) and len(seen) == 2
    monkeypatch.setattr(video, "PIECE", 4.0)
    assert Videos().pieces(tmp_path, whole) == [whole]


@pytest.mark.parametrize(
    "suffix, codec", [("ts", "mpeg2video"), ("mpg", "mpeg1video"), ("mkv", "h264")]
)
def test_parts_of_containers_without_an_index(tmp_path, suffix, codec):
    """Seeking lands too late there; all frames of the part are given all the same."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, bit_rate=4_000_000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.gop_size = 60
        for i in range(200):
            level = np.full((48, 64, 3), 20 + i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode())
    whole = [frame.time for frame in decode(path, "a")]
    part = [frame.time + 5 for frame in decode(path, "a", 5.0, 7.0)]
    expected = [time for time in whole if 5 <= time < 7]
    assert len(expected) >= 49 and len(part) - len(expected) in (0, 1)
    # FFmpeg guesses the times of program streams: within a frame.
    np.testing.assert_allclose(part[-len(expected) :], expected, atol=0.041)


def test_a_damaged_packet_costs_the_frames_that_need_it(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, bit_rate=1_000_000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.gop_size = 10
        rng = np.random.Generator(np.random.Philox(0))
        for _ in range(60):
            noise = rng.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    good, broken = 0, []
    try:
        for frame in decode(path, "a.mkv"):
            try:
                good += frame.picture().shape == (48, 64, 3)
            except Unreadable as problem:
                broken.append(str(problem))
    except Unreadable as problem:
        broken.append(str(problem))
    assert 25 <= good < 60 and broken and all("a.mkv: " in line for line in broken)


def test_lists_of_clips(tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "abc.mp4", 40)
    entries = [
        {"id": "abc", "begin": 1.0, "end": 2.0},
        {"video_id": "abc", "start": 3, "end": 3.5},
        {"id": "gone", "begin": 0, "end": 1},
        {"file": "../../etc/abc.mp4", "begin": 5, "end": 1},
        {"title": "no times"},
    ]
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    assert ClipList().detect(tmp_path) and not ClipList().detect(tmp_path / "videos")
    found, left_out = items(ClipList(), tmp_path)
    assert [item.name for item in found] == ["videos/abc.mp4#0000", "videos/abc.mp4#0001"]
    assert [name for name, _ in left_out] == [
        "clips.json, clip 2 (gone)",
        "clips.json, clip 3 (../../etc/abc.mp4)",
        "clips.json, clip 4 (None)",
    ]
    assert levels(ClipList().frames(tmp_path, found[0], Options())) == list(range(10, 20))
    by_id = {"abc": [[1.0, 2.0], {"begin": 0, "end": 0.5}]}
    (tmp_path / "clips.json").write_text(json.dumps(by_id))
    found, _ = items(ClipList(), tmp_path / "clips.json")
    assert [item.spec["end"] for item in found] == [2.0, 0.5]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="one JSON file"):
        items(ClipList(), tmp_path)
