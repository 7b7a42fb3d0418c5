"""What the data path costs: opening a frame store, memory, and windows, against an update.

    python -m benchmarks.data --frames 1000000 --json FILE
    python -m benchmarks.data --video 6000 --json FILE
    python -m benchmarks.data --clips 10000 --json FILE

The first makes episodes whose frames are one colour (so that a million of them fit on the disk
twice), builds their store, opens it in a fresh process, and draws the batches of both algorithms'
stages. The others measure imports of videos: what they add to decoding, and their memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
EPISODE = 500  # frames


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--draws", type=int, default=50, help="batches timed")
    parser.add_argument("--place", help="folder for the episodes and the store; default: temporary")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--video", type=int, help="frames of a video that is imported instead")
    parser.add_argument("--clips", type=int, help="short videos that are imported instead")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.video or options.clips:
        with tempfile.TemporaryDirectory(prefix="benchmark-import-") as folder:
            measured = import_video if options.video else import_clips
            return told(measured(Path(folder), options.video or options.clips), options.json)
    if options.open:
        print(json.dumps(measure(Path(options.open), options)))
        return 0
    place = Path(options.place or tempfile.mkdtemp(prefix="benchmark-data-"))
    try:
        made = make(place / "episodes", options.frames)
        built = timed(open_store, place)[1]
        command = [sys.executable, "-m", "benchmarks.data", *sys.argv[1:], "--open", str(place)]
        out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        result = json.loads(out) | {"make_s": round(made, 1), "build_s": round(built, 1)}
    finally:
        if not options.place:
            shutil.rmtree(place)
    return told(result, options.json)


def told(result: dict, file: str | None) -> int:
    for key, value in result.items():
        print(f"{key:24} {value:,}")
    record.save(file, "data", result)
    return 0


def make(folder: Path, frames: int) -> float:
    """Episodes of 500 frames in all; returns the seconds it took. Those that are there stay."""
    from veorl_tf.data.episodes import save_episode

    began = time.perf_counter()
    for i in range(-(-frames // EPISODE)):
        name = f"{i:06d}.npz"
        if (folder / name).exists():
            continue
        rng = np.random.Generator(np.random.Philox(i))
        colour = rng.integers(0, 256, (EPISODE, 1, 1, 1), np.uint8)
        episode = {
            "image": np.broadcast_to(colour, (EPISODE, 64, 64, 3)),
            "action": rng.uniform(-1, 1, (EPISODE, 4)).astype(np.float32),
            "reward": np.zeros(EPISODE, np.float32),
        }
        save_episode(folder, episode, name)
    return time.perf_counter() - began


def open_store(place: Path):
    from veorl_tf.data.store import FrameStore

    return FrameStore.build_or_open(place / "episodes", place / "stores")


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began


def measure(place: Path, options) -> dict:
    """In a fresh process: opening, and batches of every frame and of key frames alone."""
    from veorl_tf.data.windows import WindowSampler

    before = anonymous_mb()
    store, opened = timed(open_store, place)
    after = anonymous_mb()
    codes = (np.arange(len(store)) // 7 % 50).astype(np.int32)
    size = (2 * options.length, options.batch)
    samplers = {
        "windows": WindowSampler(store, store.episodes, options.length, options.batch),
        "key_frames": WindowSampler(
            store, store.episodes, *size, False, ("image",), {"code": codes}, options.length
        ),
    }
    result = {
        "frames": len(store),
        "open_s": round(opened, 2),
        "anonymous_mb": round(after),
        "of_which_opening_mb": round(after - before),
    }
    for name, sampler in samplers.items():
        rng = np.random.Generator(np.random.Philox(0))
        times = [timed(sampler.sample, rng)[1] for _ in range(options.draws)]
        result[f"{name}_ms"] = round(1e3 * float(np.median(times)), 2)
    return result


def write_video(path: Path, frames: int) -> None:
    """H.264 of 320x240 pixels: noise under a square that wanders."""
    import av

    rng = np.random.Generator(np.random.Philox(0))
    ground = rng.integers(60, 120, (240, 320, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
        for i in range(frames):
            picture = np.roll(ground, i, 1)
            left = 3 * i % 260
            picture[60 + i % 100 : 120 + i % 100, left : left + 60] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def import_video(folder: Path, frames: int) -> dict:
    """Frames per second of decoding and shrinking alone, of an import without its compression (that
    order twice, the better of each), and of a whole import."""
    import io

    from veorl_tf.core.arrays import write_npz
    from veorl_tf.data.importers.base import Options
    from veorl_tf.data.importers.clips import Counts, clips, steady
    from veorl_tf.data.importers.video import decode
    from veorl_tf.run.importing import import_source

    path, options = folder / "videos" / "video.mp4", Options(fps=0)
    path.parent.mkdir()
    write_video(path, frames)

    def reduced() -> list[np.ndarray]:
        return list(clips(steady(decode(path, "video"), options.fps), options, Counts(), []))

    times = [(timed(alone, path)[1], timed(reduced)[1]) for _ in range(2)]
    bare, own = np.min(times, 0)
    made = reduced()
    seconds = sum(timed(write_npz, io.BytesIO(), {"image": c}, True)[1] for c in made)
    whole = timed(import_source, folder / "videos", folder / "out", options)[1]
    return {
        "frames": frames,
        "decode_and_shrink_fps": round(frames / bare),
        "import_fps": round(frames / own),
        "share": round(bare / own, 3),
        "compression_fps": round(frames / seconds),
        "whole_command_fps": round(frames / whole),
    }


def alone(path: Path) -> None:
    """What importing a video cannot do without: PyAV's decoding and OpenCV's INTER_AREA."""
    import av
    import cv2

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")[:, 40:280]
            cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)


def import_clips(folder: Path, count: int) -> dict:
    """Memory of an import of many short videos, and its rate."""
    import resource

    from veorl_tf.data.importers.base import Options
    from veorl_tf.run.importing import import_source

    (folder / "videos").mkdir()
    write_video(folder / "videos" / "0.mp4", 30)
    data = (folder / "videos" / "0.mp4").read_bytes()
    for i in range(1, count):  # another file each: what follows the last box is not read
        free = len(tail := str(i).encode()) + 8
        box = free.to_bytes(4, "big") + b"free" + tail
        (folder / "videos" / f"{i}.mp4").write_bytes(data + box)
    seconds = timed(import_source, folder / "videos", folder / "out", Options(fps=0))[1]
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {
        "clips": count,
        "clips_per_s": round(count / seconds, 1),
        "peak_rss_mb": round(peaks[0] / 1024),
        "peak_rss_worker_mb": round(peaks[1] / 1024),
    }


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    sys.exit(main())
