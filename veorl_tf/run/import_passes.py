"""The passes of an import over its items: they are split, hashed, measured and written.

    items -> pieces -> keys of their contents -> bounds of actions -> workers -> OUT/*.npz
                                                                             -> the journal

An item's key is a hash of what it is made of: its files' contents, the format and the options. The
journal has a line per finished item.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from veorl_tf.core import errors
from veorl_tf.core.errors import UserError
from veorl_tf.core.progress import progress
from veorl_tf.data.episodes import odd_sizes
from veorl_tf.data.importers.base import Footage, Item, Options, Reader, Unreadable, inside
from veorl_tf.data.importers.journal import Journal

FORMAT = 2  # of what an import writes; part of every key
TOLERANCE = 1e-3  # by which actions may leave [-1, 1] unscaled
LARGE = 32 << 20  # bytes of footage that is worth splitting
WORK = "veorl_tf.data.importers.work"


@dataclass
class Passes:
    """Over the items of one source, into one folder."""

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
        """Items by a hash of their contents. Of equal footage the first; equal episodes of a log
        are as many as they are where training reads them in place."""
        digests: dict[str, str] = {}
        keyed: dict[str, Item] = {}
        copies: Counter = Counter()
        with progress(len(items), 0, f"looking through {self.source.name}", "items") as bar:
            for item in items:
                try:
                    read = {n: self._digest(n) for n in item.files if n not in digests}
                except Unreadable as problem:
                    leave_out(problem)
                except OSError as error:
                    leave_out(Unreadable(item.name, error.strerror or str(error)))
                else:
                    for name, (stamp, digest) in read.items():
                        digests[name] = digest
                        if stamp not in self.journal.digests:
                            self.journal.add("digests", stamp, digest)
                    made_of = [
                        [FORMAT, self.reader.name, asdict(self.options)],
                        [digests[name] for name in item.files],
                        dict(item.spec),
                    ]
                    key = _hash(made_of)
                    copies[key] += 1
                    if copies[key] > 1 and not isinstance(self.reader, Footage):
                        key = _hash([made_of, copies[key]])
                    keyed.setdefault(key, item)
                bar.update()
        return keyed

    def _digest(self, name: str) -> tuple[str, str]:
        """A file's name, size and time, and a hash of its content, which is known if they are."""
        path = inside(self.source, name)
        status = path.stat()
        stamp = f"{name}|{status.st_size}|{status.st_mtime_ns}"
        if stamp in self.journal.digests:
            return stamp, self.journal.digests[stamp]
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return stamp, digest.hexdigest()

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
            elif "size" in range_:
                sizes[key] = range_["size"]
        for key, reason in odd_sizes(self.source, sizes).items():
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
        if max(-low.min(), high.max()) <= 1 + TOLERANCE:
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
