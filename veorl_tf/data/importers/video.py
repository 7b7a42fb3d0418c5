"""Video files by PyAV, animated pictures by PIL, and lists of clips in longer videos.

Files may be of any size, codec, rate and rotation. They are data: no container may name further
files or addresses (playlists are refused).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    Footage,
    Frame,
    Item,
    Unreadable,
    files,
    inside,
    relative,
)
from veorl_tf.data.importers.pictures import (
    MOVING,
    READ_ERRORS,
    check_pixels,
    composed,
    resized,
)
from veorl_tf.data.mistaken import mistaken

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv")
# Containers that hold their own data; playlists (hls, concat, ...) name other files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg"
SAFE = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
HURRIED = 0.01  # seconds: frames of animated pictures that say this or less ...
LASTS = 0.1  # ... are shown this long by players
DEFAULT = 5_000_000  # pixels that being marked as default outweighs
ANAMORPHIC = (0.1, 10.0)  # widths of a pixel, of its height; other numbers are nonsense
PIECE = 300.0  # seconds of a long video that one worker imports


class Videos(Footage):
    """Video files, one or a tree of them: an item a file."""

    name = "video"
    about = "mp4, mkv, webm, avi, mov, ...; gif, animated webp"

    def detect(self, source):
        return any(True for _ in video_files(source))

    def items(self, source, options, leave_out):
        for path in video_files(source):
            name = relative(source, path)
            if path.stat().st_size == 0:
                leave_out(Unreadable(name, "empty file"))
            else:
                yield Item(name, (name,))

    def frames(self, source, item, options):
        path = inside(source, item.files[0])
        yield from decode(path, item.name, item.spec.get("begin", 0.0), item.spec.get("end"))

    def pieces(self, source, item):
        seconds = length(inside(source, item.files[0]))
        if seconds is None or seconds < 2 * PIECE:
            return [item]
        begins = [PIECE * i for i in range(int(seconds // PIECE))]
        ends = [*begins[1:], None]
        return [
            Item(f"{item.name}#{i:04d}", item.files, {"begin": begin, "end": end})
            for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
        ]


class ClipList(Footage):
    """Parts of videos, listed in a JSON file beside them, as MineDojo's YouTube data are: a list of
    entries (or a dict of them by id), each with the video's `id` or `file`, and `begin` and `end`
    in seconds; or with `clips`, a list of such spans of one video. `<id>.<suffix>` is looked for in
    the list's folder and below."""

    name = "cliplist"
    about = "video files with a JSON of start and end times (MineDojo, YouTube clips)"

    BEGIN, END = ("begin", "start", "start_time"), ("end", "stop", "end_time")
    FILE = ("file", "filename", "video", "id", "video_id", "vid")

    def detect(self, source):
        lists = self.lists(source)
        return len(lists) == 1 and any(None not in entry for entry in self.entries(lists[0]))

    def items(self, source, options, leave_out):
        lists = self.lists(source)
        if len(lists) != 1:
            raise UserError(
                f"{source}: one JSON file of clips expected, found {len(lists)}; name the file"
            )
        videos = {}
        for path in video_files(lists[0].parent):
            videos.setdefault(path.name, path)
            videos.setdefault(path.stem, path)
        used: dict[str, int] = {}
        entries = list(self.entries(lists[0]))
        if not entries:
            raise UserError(f"{lists[0]}: {mistaken(lists[0]) or 'lists no clips'}")
        for number, (file, begin, end) in enumerate(entries):
            where = f"{lists[0].name}, clip {number} ({file})"
            path = videos.get(Path(file).name) if file else None
            if file is None or begin is None or end is None:
                leave_out(Unreadable(where, "names no file, begin or end"))
            elif path is None:
                leave_out(Unreadable(where, "its video is not there"))
            elif not 0 <= begin < end < 1e7:
                leave_out(Unreadable(where, f"begins at {begin:g} s and ends at {end:g} s"))
            else:
                name = relative(source, path)
                used[name] = used.get(name, -1) + 1
                spec = {"begin": begin, "end": end}
                yield Item(f"{name}#{used[name]:04d}", (name,), spec)

    def frames(self, source, item, options):
        path = inside(source, item.files[0])
        yield from decode(path, item.name, item.spec["begin"], item.spec["end"])

    def lists(self, source: Path) -> list[Path]:
        if source.is_file():
            return [source] if source.suffix == ".json" else []
        return sorted(source.glob("*.json"))

    def entries(self, path: Path) -> Iterator[tuple[str | None, float | None, float | None]]:
        """File or id, begin and end of every entry; None where it has none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(data, dict):
            data = [{"id": key, "clips": value} for key, value in data.items()]
        for entry in data if isinstance(data, list) else []:
            if not isinstance(entry, dict):
                yield None, None, None
                continue
            file = _first(entry, self.FILE, str)
            spans = entry.get("clips", [entry])
            for span in spans if isinstance(spans, list) else [spans]:
                if isinstance(span, list) and len(span) == 2:
                    span = dict(zip(("begin", "end"), span))
                if isinstance(span, dict):
                    begin, end = (_seconds(span, keys) for keys in (self.BEGIN, self.END))
                    yield file, begin, end


def _first(entry: dict, keys: tuple[str, ...], kind) -> object:
    values = (entry[key] for key in keys if isinstance(entry.get(key), kind))
    return next((value for value in values if not isinstance(value, bool)), None)


def _seconds(span: dict, keys: tuple[str, ...]) -> float | None:
    number = _first(span, keys, (int, float))
    return None if number is None or not abs(number) < 1e9 else float(number)


def video_files(source: Path) -> Iterator[Path]:
    """All files of a source whose names end like those of videos."""
    return files(source, lambda name: Path(name).suffix.lower() in (*SUFFIXES, *MOVING))


def decode(path: Path, name: str, begin: float = 0.0, end: float | None = None) -> Iterator[Frame]:
    """Frames of a video or an animated picture from `begin` to `end` seconds; times count from
    `begin`. The first frame may have begun before it: then its time is 0.

    Raises Unreadable, after the good frames, where damage shows.
    """
    frames = _animation(path, name) if path.suffix.lower() in MOVING else _video(path, name, begin)
    before = None
    for frame in frames:
        if end is not None and frame.time >= end:
            break
        if frame.time > begin and before is not None:
            yield Frame(0.0, before)
        before = None if frame.time > begin else frame.picture
        if before is None:
            yield Frame(frame.time - begin, frame.picture)
    if before is not None:
        yield Frame(0.0, before)


def length(path: Path) -> float | None:
    """Seconds of a video, if its file says so and can be entered in its midst."""
    import av

    try:
        with av.open(str(path), options=SAFE) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, OSError, ValueError):
        return None


def _video(path: Path, name: str, begin: float) -> Iterator[Frame]:
    import av

    av.logging.set_level(None)
    try:
        with av.open(str(path), options=SAFE, metadata_errors="replace") as container:
            stream = _best(container.streams.video)
            if stream is None:
                raise Unreadable(name, "holds no video that can be decoded")
            check_pixels(name, stream.width, stream.height)
            stream.thread_type = "AUTO"
            _enter(container, stream, begin)
            yield from _frames(container, stream, name)
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise Unreadable(name, f"no whole video ({error})") from None


def _best(streams):
    """The video stream that FFmpeg's command takes: of most pixels, where the mark `default` counts
    for many, and of equals the first. Attached pictures are covers, and no film; None for those
    alone."""
    from av.stream import Disposition

    films = [s for s in streams if s.codec_context and not s.disposition & Disposition.attached_pic]
    marked = {s: bool(s.disposition & Disposition.default) for s in films}
    return max(films, key=lambda s: s.width * s.height + DEFAULT * marked[s], default=None)


def _enter(container, stream, begin: float) -> None:
    """Goes to a place from where decoding gives a frame that is on at `begin` seconds. Containers
    without an index take one too late; then to an earlier one."""
    start, back = float((stream.start_time or 0) * stream.time_base), 0.0
    while begin - back > 1:
        place = int((begin - back + start) / stream.time_base)
        container.seek(place, stream=stream)
        first = next(container.decode(stream), None)
        container.seek(place, stream=stream)
        if first is not None and first.pts is not None and first.time - start <= begin:
            return
        back = 4 * back or 2.0
    if back:
        container.seek(int(start / stream.time_base), stream=stream)


def _frames(container, stream, name: str) -> Iterator[Frame]:
    """All frames from here. In the place of a damaged one, and of those after it up to the next
    that needs no other, stands one whose picture is Unreadable."""
    import av

    start, rate = float((stream.start_time or 0) * stream.time_base), stream.average_rate or 25
    wide = float(stream.sample_aspect_ratio or 1)
    wide = wide if ANAMORPHIC[0] < wide < ANAMORPHIC[1] else 1.0
    count, time, lost = 0, 0.0, False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if not count:
                raise
            if not lost:
                yield Frame(time, _broken(name, time, str(error)))
            lost = True
            continue
        for frame in frames:
            check_pixels(name, frame.width, frame.height)
            count += 1
            time = count / float(rate) if frame.pts is None else frame.time - start
            if frame.is_corrupt or lost and not frame.key_frame:
                if not lost:
                    yield Frame(time, _broken(name, time, "frame"))
                lost = True
            else:
                lost = False
                yield Frame(time, _picture_of(frame, name, wide))


def _broken(name: str, time: float, what: str) -> Callable[[], np.ndarray]:
    def picture() -> np.ndarray:
        raise Unreadable(name, f"damaged at {time:.1f} s ({what})")

    return picture


def _picture_of(frame, name: str, wide: float) -> Callable[[], np.ndarray]:
    """A decoded frame as players show it; a pixel is `wide` times as wide as high."""

    def picture() -> np.ndarray:
        try:
            check_pixels(name, round(frame.width * wide), frame.height)
            return turned(widened(_rgb(frame), wide), _display_matrix(frame))
        except (ValueError, NotImplementedError) as error:
            raise Unreadable(
                name, f"{frame.format.name} pictures cannot be read ({error})"
            ) from None

    return picture


def _rgb(frame) -> np.ndarray:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    return (rgba[..., :3] * rgba[..., 3:] // 255).astype(np.uint8)


def _display_matrix(frame) -> np.ndarray:
    """`[3, 3]`; a pixel (x, y, 1) of the coded picture is shown at its product with this."""
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return np.eye(3) if data is None else np.frombuffer(data, np.int32).reshape(3, 3)


def turned(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A picture turned and mirrored as a display matrix says, to the nearest of the eight ways."""
    (a, b), (c, d) = np.asarray(matrix, np.int64)[:2, :2]
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def widened(picture: np.ndarray, wide: float) -> np.ndarray:
    """A picture whose pixels are `wide` times as wide as high, with square ones."""
    height, width = picture.shape[:2]
    return resized(picture, height, max(1, round(width * wide)))


def _animation(path: Path, name: str) -> Iterator[Frame]:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are refused below
            image = Image.open(path, formats=("GIF", "WEBP"))
        with image:
            check_pixels(name, *image.size)
            time = 0.0
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                picture = composed(ImageOps.exif_transpose(image))
                yield Frame(time, lambda picture=picture: picture)
                lasts = image.info.get("duration", 0) / 1000
                time += lasts if lasts > HURRIED else LASTS
    except READ_ERRORS as error:
        raise Unreadable(name, f"no whole animation ({error})") from None
