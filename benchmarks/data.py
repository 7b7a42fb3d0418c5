"""What the data path costs: opening a frame store, memory, and windows, against an update.

    python -m benchmarks.data --frames 1000000 --json FILE

Makes episodes whose frames are one colour (so that a million of them fit on the disk twice),
builds their store, opens it in a fresh process, and draws the batches of both algorithms' stages.
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
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
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
    for key, value in result.items():
        print(f"{key:24} {value:,}")
    record.save(options.json, "data", result)
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


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    sys.exit(main())
