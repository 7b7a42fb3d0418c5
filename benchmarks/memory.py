"""Memory of a training process: does it grow, and can its data be larger than memory?

    python -m benchmarks.memory --updates 3000 --json FILE
    python -m benchmarks.memory --larger 6 --limit 3 --json FILE

The first runs `debug` with that many updates of actor and critic, an evaluation every 100 and a
checkpoint every 50, and samples what the process itself holds (RssAnon: without mapped files). The
second makes so many GiB of frames and trains on them where the operating system gives the process
and its file cache only so many GiB; it needs root and a memory controller (cgroup v1 or v2).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, "train.py", "--configs"]
FRAMES = 501  # of an episode
PICTURE = 64 * 64 * 3  # bytes of a frame
CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.failcnt"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl", "debug"])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--larger", type=float, help="GiB of frames")
    parser.add_argument("--limit", type=float, default=3.0, help="GiB of memory")
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.larger:
            result = larger(Path(folder), options.larger, options.limit)
        else:
            result = growth(Path(folder), options.configs, options.updates)
    print(json.dumps(result, indent=1))
    record.save(options.json, "memory", result)
    return 0


def growth(folder: Path, configs: list[str], updates: int) -> dict:
    """MB that the process holds, by update, and how much they grow in the second half."""
    budgets = {"behavior": updates, "joint": updates}
    flags = [f"--stages.{name}.updates={count}" for name, count in budgets.items()]
    flags += ["--log.every=25", "--log.eval_every=100", "--log.checkpoint_every=50"]
    flags += ["--log.video_every=500", "--log.validation_every=100", f"--logdir={folder / 'run'}"]
    process = subprocess.Popen([*TRAIN, *configs, *flags], cwd=ROOT)
    seen, began = [], time.monotonic()
    while process.poll() is None:
        step = last_step(folder / "run" / "metrics.jsonl")
        held = megabytes(process.pid)
        if step is not None and held:
            seen.append((step, held))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(process.returncode)
    steps, held = np.array(seen).T
    later = steps >= steps.max() - updates / 2  # the first half fills caches
    slope = np.polyfit(steps[later], held[later], 1)[0]
    marks = np.linspace(steps.max() - updates, steps.max(), 7)
    return {
        "configs": configs,
        "updates": updates,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "MB": {str(int(m)): round(float(held[np.searchsorted(steps, m)])) for m in marks},
        "MB per 1,000 updates in the second half": round(1000 * slope, 2),
    }


def last_step(path: Path) -> int | None:
    found = re.findall(r'"step": (\d+), "stage": "(?:behavior|joint)"', read(path))
    return int(found[-1]) if found else None


def megabytes(pid: int) -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", read(Path(f"/proc/{pid}/status")))
    return int(found[1]) / 1000 if found else 0.0


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def larger(folder: Path, gib: float, limit: float) -> dict:
    """Trains on more frames than fit into the memory that the process may have."""
    from veorl_tf.data.episodes import save_episode
    from veorl_tf.data.synthetic import random_episode

    count = int(np.ceil(gib * 2**30 / (FRAMES * PICTURE)))
    for i in range(count):
        episode = random_episode(FRAMES, seed=i)
        blocks = episode["image"][:, :8, :8]  # of eight pixels: a file of pictures, not of noise
        episode["image"] = blocks.repeat(8, 1).repeat(8, 2)
        save_episode(folder / "episodes", episode)
    control, key, failures = next((c for c in CGROUPS if (c[0] / c[2]).exists()), CGROUPS[1])
    group = control / "veorl_tf_benchmark"
    group.mkdir(exist_ok=True)
    try:
        (group / key).write_text(str(int(limit * 2**30)))
        flags = ["--task=none", f"--target_dataset={folder / 'episodes'}"]
        flags += [f"--datadir={folder / 'data'}", f"--logdir={folder / 'run'}"]
        flags += ["--stages.model.updates=300", "--stages.behavior.updates=100"]
        command = [*TRAIN, "dreamerv2", "debug", *flags]
        join = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", join, str(group), *command], cwd=ROOT)
        seconds = time.monotonic() - began
        counter = read(group / failures).split()
    finally:
        time.sleep(1)
        group.rmdir()
    if done.returncode:
        raise SystemExit(done.returncode)
    return {
        "frames": count * FRAMES,
        "GiB of frames": round(count * FRAMES * PICTURE / 2**30, 2),
        "GiB of memory": limit,
        "times the limit was met": int(counter[0] if len(counter) == 1 else counter[5]),
        "updates": 400,
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
