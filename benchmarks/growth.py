"""How the time of an update grows with the batch, with the windows, and with the data.

    python -m benchmarks.growth --configs metaworld veorl --json FILE --plot FILE.png

Every point of the first two is a process of `benchmarks.update`, the third what `benchmarks.data`
says of drawing a batch. The plot wants matplotlib (`requirements-dev.txt`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
BATCH, LENGTH = 16, 32


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--stages", nargs="+", default=["abstraction", "model", "behavior"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--plot", help="picture to draw, .png or .svg")
    parser.add_argument("--redraw", help="only draw what an earlier --json holds")
    options = parser.parse_args()
    if options.redraw:
        draw(json.loads(Path(options.redraw).read_text())["ms"], Path(options.plot))
        return 0
    growth = {"batch": {}, "length": {}, "frames": {}}
    for stage in options.stages:
        measured = {}  # by batch and length: the two axes cross in one point
        for axis, values in (("batch", options.batches), ("length", options.lengths)):
            times = growth[axis].setdefault(stage, {})
            for value in values:
                sizes = {"batch": BATCH, "length": LENGTH} | {axis: value}
                point = tuple(sizes.values())
                if point not in measured:
                    measured[point] = update_ms(options, stage, **sizes)
                times[value] = measured[point]
            print(f"{stage:12} {axis:7} {times}  exponent {exponent(times):.2f}", flush=True)
    for frames in options.frames:
        growth["frames"].setdefault("drawing a batch", {})[frames] = draw_ms(frames)
    print("frames", growth["frames"], flush=True)
    exponents = {
        f"{stage}/{axis}": round(exponent(times), 2)
        for axis in ("batch", "length")
        for stage, times in growth[axis].items()
    }
    record.save(options.json, "growth", {"exponents": exponents, "ms": growth})
    if options.plot:
        draw(growth, Path(options.plot))
    return 0


def update_ms(options, stage: str, batch: int, length: int) -> float:
    """Median time of a stage's update, in milliseconds."""
    sizes = {"batch": batch, "length": length, "large": 2 * length, "source": 25}
    command = [sys.executable, "-m", "benchmarks.update", "--configs", *options.configs]
    command += [f for key, value in sizes.items() for f in (f"--{key}", str(value))]
    command += ["--precision", options.precision, "--stage", stage, "--uncounted"]
    command += ["--updates", "9"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])["ms"]


def draw_ms(frames: int) -> float:
    """Time to draw and gather a batch from a store of so many frames, in milliseconds."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "benchmarks.data", "--frames", str(frames)]
        subprocess.run(
            [*command, "--json", file.name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        return json.loads(Path(file.name).read_text())["windows_ms"]


def exponent(times: dict[int, float]) -> float:
    """Slope of a line through the points in logarithms: 1 is linear, less is better."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def draw(growth: dict[str, dict[str, dict]], path: Path) -> None:
    """Three plots side by side; dotted lines are linear growth from the first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "batch": f"windows per batch (of {LENGTH} frames)",
        "length": f"frames per window (batches of {BATCH})",
        "frames": "frames of the dataset",
    }
    # What JSON gives back has text for keys.
    growth = {
        axis: {name: {int(x): y for x, y in times.items()} for name, times in lines.items()}
        for axis, lines in growth.items()
    }
    drawing = growth["frames"]["drawing a batch"]
    for stage, times in growth["batch"].items():
        growth["frames"][stage] = {x: times[BATCH] + y for x, y in drawing.items()}
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name in [*growth["batch"], *(["drawing a batch"] if key == "frames" else [])]:
            times = growth[key][name]
            (line,) = axis.plot(list(times), list(times.values()), "o-", label=name)
            if key != "frames":
                first, value = next(iter(times.items()))
                straight = [value * x / first for x in times]
                axis.plot(list(times), straight, ":", color=line.get_color(), linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="ms an update")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(frameon=False)
        ticks = list(next(iter(growth[key].values())))
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xticks([], minor=True)
        if key != "frames":
            axis.set_yticks([100, 200, 500, 1000, 2000])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
