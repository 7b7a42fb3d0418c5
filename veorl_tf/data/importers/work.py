"""What a worker process does with one item: read it, write its episodes, tell what became of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import MachineError, UserError, one_line
from veorl_tf.core.places import expanded, explained
from veorl_tf.data.episodes import DamagedEpisode, save_episode
from veorl_tf.data.importers.base import (
    Alignment,
    Footage,
    Frame,
    Item,
    Log,
    Options,
    Unreadable,
    aligned,
    scaled,
    with_cause,
)
from veorl_tf.data.importers.clips import Counts, clips, steady
from veorl_tf.data.importers.pictures import Fit
from veorl_tf.data.importers.registry import formats
from veorl_tf.data.inspect import spaced

TOLD = 100  # problems with one item


def import_item(format, source, item, options, out, key, bounds=None) -> dict:
    """Imports one item into the folder `out`.

    Args:
        format, source: name of the reader and path of the source.
        item, options: fields of `Item` and `Options`.
        key: of the item's content; part of the written files' names.
        bounds: the actions' lowest and highest values `[A]`, if they must be scaled.
    Returns:
        `files` written, `counts`, the `problems` with the item (names and reasons), and
        whether it has `numbers`, actions and rewards; discounts `between` 0 and 1 and how often
        each occurs. Or `error`: what ends the whole import.
    """
    reader, item, options = formats()[format], Item(**item), Options(**options)
    write = _Writer(expanded("OUT", out), item, key)
    counts, problems, numbers, between = Counts(), [], False, {}
    try:
        if isinstance(reader, Footage):
            frames = steady(reader.frames(Path(source), item, options), _rate(reader, options))
            for clip in clips(frames, options, counts, problems):
                write({"image": clip})
        else:
            arrays = reader.episode(Path(source), item, options)
            problems += arrays.pop("left_out", [])
            between = arrays.pop("between", {})
            episode = _episode(arrays, reader.alignment, item, options, bounds, counts)
            numbers = {"action", "reward"} <= set(episode)
            if counts.kept:
                write(episode)
    except Unreadable as problem:
        problems.append(problem)
    except DamagedEpisode as problem:
        counts.clips = counts.kept = 0
        problems.append(Unreadable(item.name, problem.reason))
    except (UserError, MachineError) as error:
        return {"error": (type(error).__name__, str(error))}
    except OSError as error:
        known = explained(error)
        if known is None:
            raise
        return {"error": (type(known).__name__, str(known))}
    return {
        "files": write.files,
        "counts": asdict(counts),
        "problems": told(problems, item, source),
        "numbers": numbers,
        "between": list(between.items()),
    }


def split_item(format, source, item, options) -> dict:
    """The pieces of an item of many bytes."""
    return {"pieces": [asdict(p) for p in formats()[format].pieces(Path(source), Item(**item))]}


def measure_actions(format, source, item, options) -> dict:
    """An item's lowest and highest actions `[A]`: `stored` by the format or `measured`. An item
    that cannot be read has neither, but the `size` of its actions, if that is known; one without
    actions has None."""
    reader, item, options = formats()[format], Item(**item), Options(**options)
    try:
        arrays = reader.numbers(Path(source), item, options)
    except Unreadable:
        return _size(reader, source, item)
    except (UserError, MachineError) as error:
        return {"error": (type(error).__name__, str(error))}
    if "bounds" in arrays:
        low, high = arrays["bounds"]
        return {"stored": [np.asarray(low).tolist(), np.asarray(high).tolist()]}
    if "action" not in arrays:
        return {"measured": None}
    action = np.asarray(arrays["action"], np.float64)
    if not len(action) or not np.isfinite(action).all():
        return _size(reader, source, item)
    return {"measured": [action.min(0).tolist(), action.max(0).tolist()]}


def look_at_item(format, source, item, options, pictures=10) -> dict:
    """What importing an item would read, and nothing is written.

    Returns:
        `frames`, how many; `shape` of the first; `seconds` of footage; `counts` of what an import
        would make of it; `pictures`, some evenly spaced ones as they would be stored
        `[n, size, size, 3]`; of a log `keys`, `low` and `high` of the actions `[A]`, `rewards`
        (sum, smallest, largest) or None; the `problems`. Of a log that cannot be read the `size`
        of the actions, if that is known.
    """
    reader, item, options = formats()[format], Item(**item), Options(**options)
    look = _look_at_footage if isinstance(reader, Footage) else _look_at_episode
    try:
        return {"problems": [], **look(reader, Path(source), item, options, pictures)}
    except Unreadable as problem:
        size = _size(reader, source, item) if isinstance(reader, Log) else {}
        return {"problems": told([problem], item, source), **size}
    except (UserError, MachineError) as error:
        return {"error": (type(error).__name__, str(error))}


def _size(reader: Log, source: str, item: Item) -> dict[str, int]:
    """`size` of the actions of an item that cannot be read, if it is known."""
    size = reader.action_size(Path(source), item)
    return {"size": size} if size else {}


class _Writer:
    """Episodes of one item, one after the other."""

    def __init__(self, out: Path, item: Item, key: str):
        self.out, self.files = out, []
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", item.name).strip("._")[-80:]
        self.stem = f"{slug}.{key}"

    def __call__(self, arrays: dict) -> None:
        path = save_episode(self.out, arrays, f"{self.stem}.{len(self.files):04d}.npz")
        self.files.append(path.name)


def _episode(arrays, alignment: Alignment, item, options, bounds, counts: Counts) -> dict:
    """A log's arrays as an episode is stored; one that is too short is counted so."""
    if not len(arrays["image"]):
        raise Unreadable(item.name, "no pictures")
    fit = Fit(options)
    image = np.stack([fit(picture) for picture in arrays["image"]])
    out = {"image": image, **aligned(arrays, alignment)}
    if bounds is not None and "action" in out:
        out["action"] = scaled(out["action"], *bounds)
    _count(len(image), options, counts)
    return out


def _count(frames: int, options: Options, counts: Counts) -> None:
    """An episode is imported whole, or not at all."""
    counts.frames = frames
    if frames < options.shortest:
        counts.short = frames
    else:
        counts.clips, counts.kept = 1, frames


def told(problems: list[Unreadable], item: Item, source: str | Path) -> list[list[str]]:
    """Names and reasons, with their causes, of at most `TOLD`."""
    if len(problems) > TOLD:
        more = Unreadable(item.name, f"{len(problems) - TOLD:,} more like these")
        problems = [*problems[:TOLD], more]
    named = [Unreadable(problem.name or item.name, problem.reason) for problem in problems]
    named = [with_cause(Path(source), problem, item.files) for problem in named]
    return [[problem.name, one_line(problem.reason)] for problem in named]


def _look_at_footage(reader: Footage, source, item, options, pictures) -> dict:
    fit, counts, problems = Fit(options), Counts(), []
    frames, time, shape, kept, every = 0, 0.0, None, [], 1

    def watched() -> Iterator[Frame]:
        nonlocal frames, time, shape, kept, every
        for frame in reader.frames(source, item, options):
            if frames % every == 0:
                with suppress(Unreadable):  # `clips` tells it
                    picture = frame.picture()
                    shape = shape or picture.shape
                    kept.append(fit(picture))
                if len(kept) == 2 * pictures:  # however long it is, evenly spaced ones
                    kept, every = kept[::2], 2 * every
            frames, time = frames + 1, frame.time
            yield frame

    for _ in clips(steady(watched(), _rate(reader, options)), options, counts, problems):
        pass
    return {
        "frames": frames,
        "shape": shape,
        "seconds": time,
        "counts": asdict(counts),
        "pictures": spaced(kept, pictures),
        "problems": told(problems, item, source),
    }


def _rate(reader: Footage, options: Options) -> float:
    """Frames per second of clips."""
    return min(options.fps, reader.rate or options.fps)


def _look_at_episode(reader: Log, source, item, options, pictures) -> dict:
    arrays = reader.episode(source, item, options)
    problems = told(arrays.pop("left_out", []), item, source)
    fit, images, counts = Fit(options), arrays["image"], Counts()
    _count(len(images), options, counts)
    chosen = [fit(picture) for picture in spaced(images, pictures)]
    out = {
        "frames": len(images),
        "shape": np.shape(images[0]) if len(images) else None,
        "counts": asdict(counts),
        "pictures": chosen,
        "keys": sorted(key for key in arrays if key not in ("bounds", "between")),
        "problems": problems,
    }
    if "action" in arrays:
        action = np.asarray(arrays["action"], np.float64)
        out |= {"low": action.min(0).tolist(), "high": action.max(0).tolist()}
        if "bounds" in arrays:
            out["bounds"] = np.asarray(arrays["bounds"], np.float64).tolist()
    if "reward" in arrays:
        reward = np.asarray(arrays["reward"], np.float64)
        out["rewards"] = [float(reward.sum()), float(reward.min()), float(reward.max())]
    return out
