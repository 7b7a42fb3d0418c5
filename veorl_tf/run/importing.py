"""`python -m veorl_tf import SOURCE OUT`: foreign data become episodes, each item once.

    source -> items -> keys of their contents -> worker processes -> episodes in OUT
                                                                  -> OUT/.import/journal.jsonl
    at the end: OUT/import.json

An item's key is a hash of what it is made of: its files' contents, the format and the options. The
journal has a line per finished item; the same command goes on where it was, imports what is new,
and removes what the source no longer has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core import errors
from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_write, named_folder
from veorl_tf.core.flags import parse_options
from veorl_tf.core.hardware import cores
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.lock import locked
from veorl_tf.core.progress import progress
from veorl_tf.data.importers.base import Footage, Item, Options, Reader, Unreadable, inside
from veorl_tf.data.importers.journal import LOCK, REPORT, Journal
from veorl_tf.data.importers.pictures import Fit
from veorl_tf.data.importers.registry import beside, find

FORMAT = 1  # of what an import writes; part of every key
SKIPPED = 3  # exit code: something was left out
NOTES = {
    "cuts": "scene changes",
    "still": "frames without movement left out",
    "short": "frames left out in stretches that are too short",
}
RANGES = {
    "size": (1, 1024),
    "fps": (0, 1000),
    "clip": (2, 100_000),
    "shortest": (2, 100_000),
    "cut": (0, 1),
    "still": (0, 1),
}
LARGE = 32 << 20  # bytes of footage that is worth splitting
WORK = "veorl_tf.data.importers.work"
IMPORT = {
    "format": "auto",
    **asdict(Options()),
    "strict": False,
    "workers": 0,
    "timeout": 600.0,
}
IMPORT_HELP = {
    "format": "of the source; auto: detected",
    "size": "pixels of the episodes' pictures, square",
    "fit": "crop (the middle) | letterbox | stretch | x,y,width,height (a fixed box)",
    "mirror": "swap left and right",
    "flip": "swap top and bottom",
    "fps": "frames per second of clips; 0: as they are",
    "clip": "frames per clip, at most",
    "shortest": "frames per clip or episode, at least; shorter ones are left out",
    "cut": "change of a picture, as a share of its range, that ends a clip; 0: none",
    "still": "change of a picture below which it counts as still; still stretches are left out",
    "camera": "nuscenes: channel (CAM_FRONT); bridge: folder (images0)",
    "split": "nuscenes: folder of tables, where there are several",
    "image_key": "name of the pictures, where the data have several",
    "action_key": "name of the actions",
    "reward_key": "name of the rewards",
    "strict": "stop at the first thing that cannot be imported",
    "workers": "processes; 0: one per core",
    "timeout": "seconds after which an item that gives no result is left out",
}


def import_(argv: Sequence[str]) -> int:
    """`import SOURCE OUT`: exit code 3 if something was left out."""
    given, flags = parse_options(
        argv,
        Config(IMPORT),
        IMPORT_HELP,
        "python -m veorl_tf import SOURCE OUT [--key value ...]",
        ["SOURCE", "OUT"],
    )
    if flags.workers < 0:
        raise UserError(f"--workers {flags.workers}: at least 0")
    if not 0 < flags.timeout <= 1e6:
        raise UserError(f"--timeout {flags.timeout}: more than 0 seconds, at most a million")
    result = import_source(
        Path(given["SOURCE"]),
        named_folder("OUT", given["OUT"]),
        options_of(flags),
        flags.format,
        flags.strict,
        flags.workers,
        flags.timeout,
    )
    print(result.text())
    return 0 if result.counts["clips"] and not result.skipped else SKIPPED


def options_of(flags: Mapping[str, Any], prefix: str = "") -> Options:
    """The import's options among a command's flags, which begin with `prefix`. Raises UserError."""
    options = Options(**{key: flags[key] for key in asdict(Options())})
    for key, (lowest, highest) in RANGES.items():
        if not lowest <= getattr(options, key) <= highest:
            raise UserError(f"--{prefix}{key} {getattr(options, key)}: {lowest} to {highest}")
    if options.shortest > options.clip:
        raise UserError(
            f"--{prefix}shortest {options.shortest} is more than --{prefix}clip {options.clip}: "
            f"nothing would stay"
        )
    Fit(options)
    return options


@dataclass
class Result:
    """What an import did, and what `import.json` says."""

    out: Path
    format: str
    counts: dict[str, int] = field(default_factory=dict)
    items: int = 0
    new: int = 0  # items imported by this call
    removed: int = 0  # episodes of what the source no longer holds
    skipped: list[list[str]] = field(default_factory=list)  # name and reason
    bounds: list | None = None  # lowest and highest action, which became -1 and 1
    numbers: bool = False  # whether the episodes have actions and rewards

    def text(self) -> str:
        counts = self.counts
        lines = [
            f"{self.out}: {counts['clips']:,} episodes of {counts['kept']:,} frames from "
            f"{self.items:,} items ({self.format}), {self.new:,} of them new"
        ]
        for key, what in NOTES.items():
            if counts[key]:
                lines.append(f"{counts[key]:,} {what}")
        if self.removed:
            lines.append(f"{self.removed:,} episodes removed: the source has them no longer")
        if self.bounds:
            pairs = ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(*self.bounds))
            lines.append(f"actions scaled to -1 to 1 from {pairs}")
        lines += [f"left out: {name}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


def import_source(
    source: Path,
    out: Path,
    options: Options,
    format: str = "auto",
    strict: bool = False,
    workers: int = 0,
    timeout: float = 600.0,
) -> Result:
    """Imports a source into the folder `out`, or what it lacks of it.

    Raises UserError for a source of no known format, a folder that holds something else, and, if
    `strict`, for the first thing that cannot be read; MachineError; Interrupted.
    """
    source, out = source.absolute(), out.absolute()
    reader = find(source, format)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out}: lies within {source}, and would be imported itself")
    Journal(out)  # refuses a folder that holds something else
    with locked(out / LOCK, f"imports into {out}", wait=True):
        return _import(reader, source, out, options, strict, workers or cores(), timeout)


def _import(
    reader: Reader,
    source: Path,
    out: Path,
    options: Options,
    strict: bool,
    workers: int,
    timeout: float,
) -> Result:
    """`import_source` of one process at a time."""
    journal = Journal(out)
    result = Result(out, reader.name)

    def leave_out(problem: Unreadable) -> None:
        if strict:
            raise UserError(f"{source}: {problem.name}: {problem.reason}")
        result.skipped.append([problem.name, problem.reason])

    with StopRequest(at_once=True):
        for problem in beside(source, reader):
            leave_out(problem)
        items = list(reader.items(source, options, leave_out))
        if not items and not result.skipped:
            raise UserError(f"{source}: nothing to import as {reader.name}")
        run = _Run(reader, source, out, options, journal, workers, timeout)
        keyed = run.keys(run.pieces(items), leave_out)
        if not isinstance(reader, Footage):
            result.bounds = run.bounds(keyed, leave_out)
        journal.begin(source)
        result.new = run.work(keyed, result.bounds, strict)
    result.skipped += run.failed
    final = [run.final(key, result.bounds) for key in keyed]
    entries = [journal.entries[key] for key in final if key in journal.entries]
    result.items = len(entries)
    result.skipped += [problem for entry in entries for problem in entry["problems"]]
    result.skipped.sort()
    result.numbers = any(entry["numbers"] for entry in entries)
    names = ("frames", "clips", "kept", "still", "short", "cuts")
    result.counts = {name: sum(entry["counts"][name] for entry in entries) for name in names}
    result.removed = journal.keep(set(final))
    _write_report(result, source, options)
    return result


@dataclass
class _Run:
    reader: Reader
    source: Path
    out: Path
    options: Options
    journal: Journal
    workers: int
    timeout: float
    failed: list[list[str]] = field(default_factory=list)  # name and reason: no result, this time

    def pieces(self, items: Sequence[Item]) -> list[Item]:
        """The items, those of much footage in pieces."""
        if not isinstance(self.reader, Footage):
            return list(items)
        large = {str(i): item for i, item in enumerate(items) if self._bytes(item) > LARGE}
        split = dict(self._jobs("split_item", large, list(large), "looking at", {}))
        out: list[Item] = []
        for i, item in enumerate(items):
            pieces = split.get(str(i), {}).get("pieces")
            out += [Item(**piece) for piece in pieces] if pieces else [item]
        return out

    def _bytes(self, item: Item) -> int:
        try:
            return sum(inside(self.source, name).stat().st_size for name in item.files)
        except (Unreadable, OSError):
            return 0

    def keys(self, items: Sequence[Item], leave_out) -> dict[str, Item]:
        """Items by a hash of their contents; of equal ones the first."""
        digests: dict[str, str] = {}
        keyed: dict[str, Item] = {}
        with progress(len(items), 0, f"looking through {self.source.name}", "items") as bar:
            for item in items:
                try:
                    for name in item.files:
                        if name not in digests:
                            digests[name] = self._digest(name)
                except Unreadable as problem:
                    leave_out(problem)
                except OSError as error:
                    leave_out(Unreadable(item.name, error.strerror or str(error)))
                else:
                    made_of = [
                        [FORMAT, self.reader.name, asdict(self.options)],
                        [digests[name] for name in item.files],
                        dict(item.spec),
                    ]
                    keyed.setdefault(_hash(made_of), item)
                bar.update()
        return keyed

    def _digest(self, name: str) -> str:
        """Of a file's content; known for files of a size and time that were read before."""
        path = inside(self.source, name)
        status = path.stat()
        stamp = f"{name}|{status.st_size}|{status.st_mtime_ns}"
        if stamp not in self.journal.digests:
            digest = hashlib.blake2b(digest_size=16)
            with open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            self.journal.add("digests", stamp, digest.hexdigest())
        return self.journal.digests[stamp]

    def bounds(self, keyed: dict[str, Item], leave_out) -> list | None:
        """Lowest and highest actions of a log, as stored or, where they leave -1 to 1, as measured;
        None if nothing must be scaled. Items whose actions are unknown, or of another size than
        most, are left out."""
        todo = [key for key in keyed if key not in self.journal.measured]
        for key, range_ in self._jobs("measure_actions", keyed, todo, "measuring actions of", {}):
            self.journal.add("measured", key, range_)
        sizes = {}
        for key, item in list(keyed.items()):
            range_ = self.journal.measured.get(key)
            if range_ is None:
                leave_out(Unreadable(item.name, "its actions could not be read in time"))
                del keyed[key]
            elif low_high := range_.get("stored") or range_.get("measured"):
                sizes[key] = len(low_high[0])
        usual = max(Counter(sizes.values()).items(), key=lambda x: x[1])[0] if sizes else 0
        for key, size in sizes.items():
            if size != usual:
                reason = f"its actions have {size} numbers, those of most have {usual}"
                leave_out(Unreadable(keyed.pop(key).name, reason))
        ranges = [self.journal.measured[key] for key in keyed]
        stored = [r["stored"] for r in ranges if r.get("stored")]
        measured = [r["measured"] for r in ranges if r.get("measured")]
        if any(one != stored[0] for one in stored):
            raise UserError(f"{self.source}: episodes differ in the bounds of their actions")
        if stored:
            low, high = stored[0]
            return None if np.allclose(low, -1) and np.allclose(high, 1) else stored[0]
        if not measured:
            return None
        low = np.min([low for low, _ in measured], 0)
        high = np.max([high for _, high in measured], 0)
        if max(-low.min(), high.max()) <= 1 + 1e-3:
            return None
        return [low.tolist(), high.tolist()]

    def work(self, keyed: dict[str, Item], bounds, strict: bool) -> int:
        """Imports what the journal lacks; returns how many items."""
        final = {self.final(key, bounds): item for key, item in keyed.items()}
        for key in final:
            self._refuse(strict, *self.journal.entries.get(key, {"problems": []})["problems"])
        todo = [key for key in final if key not in self.journal.entries]
        if todo:
            self.journal.reopen()
        more = {"out": str(self.out), "bounds": bounds}
        for key, entry in self._jobs("import_item", final, todo, "importing", more):
            self.journal.add("entries", key, entry)
            self._refuse(strict, *entry["problems"])
        self._refuse(strict, *self.failed)
        return len(todo) - len(self.failed)

    def _refuse(self, strict: bool, *problems) -> None:
        if strict and problems:
            name, reason = problems[0]
            raise UserError(f"{self.source}: {name}: {reason}")

    def final(self, key: str, bounds) -> str:
        """An item's key with the bounds that its actions are scaled by."""
        return _hash([key, bounds])

    def _jobs(self, function, keyed, todo, title, more) -> Iterator[tuple[str, dict]]:
        """Key and result of `function` for the items `todo`, in the order of completion."""
        common = {
            "format": self.reader.name,
            "source": str(self.source),
            "options": asdict(self.options),
            **more,
        }
        jobs = [{**common, "item": asdict(keyed[key])} for key in todo]
        if "out" in more:
            jobs = [{**job, "key": key[:12]} for job, key in zip(jobs, todo, strict=True)]
        title = f"{title} {self.source.name}"
        for index, result in in_workers(
            function, jobs, self.workers, self.timeout, title, len(keyed)
        ):
            if not isinstance(result, Unreadable):
                yield todo[index], result
            elif "out" in more:
                self.failed.append([result.name, result.reason])


def in_workers(
    function: str, jobs: Sequence[dict], workers: int, timeout: float, title: str, total: int
) -> Iterator[tuple[int, Any]]:
    """Index and result of every job, in the order of completion; Unreadable for one whose worker
    gave none. Raises what ends the whole command. `total` counts items that were done before, too.
    """
    from envs.workers import WorkerFailure, run_jobs

    target, workers = f"{WORK}:{function}", max(1, min(workers, len(jobs)))
    results = run_jobs(target, jobs, workers, timeout, rendering=False, tries=1)
    with closing(results), progress(total, total - len(jobs), title, "items") as bar:
        for index, result in results:
            if isinstance(result, WorkerFailure):
                reason = f"its reader failed: {result.reason}"
                result = Unreadable(jobs[index]["item"]["name"], reason)
            elif "error" in result:
                kind, text = result["error"]
                raise getattr(errors, kind)(text)
            yield index, result
            bar.update()


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_report(result: Result, source: Path, options: Options) -> None:
    report = {
        "format": result.format,
        "source": str(source),
        "options": asdict(options),
        "items": result.items,
        "counts": result.counts,
        "action": result.bounds and dict(zip(("low", "high"), result.bounds)),
        "left_out": result.skipped,
    }
    with atomic_write(result.out / REPORT, "w") as file:
        json.dump(report, file, indent=1)
