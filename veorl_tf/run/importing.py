"""`python -m veorl_tf import SOURCE OUT`: foreign data become episodes, each item once.

The journal (OUT/.import/journal.jsonl) knows which items are done, by their contents: the same
command goes on where it was, imports what is new, and removes what the source no longer has. At
the end OUT/import.json says what was done.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError, warn
from veorl_tf.core.files import atomic_write, naming
from veorl_tf.core.flags import parse_options
from veorl_tf.core.hardware import cores
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.lock import locked
from veorl_tf.core.places import expanded, named_folder
from veorl_tf.data.episodes import about_between
from veorl_tf.data.importers.base import Footage, Item, Options, Reader, Unreadable, with_cause
from veorl_tf.data.importers.journal import LOCK, REPORT, Journal
from veorl_tf.data.importers.registry import beside, find
from veorl_tf.run.import_flags import IMPORT, IMPORT_HELP, options_of
from veorl_tf.run.import_passes import Passes

SKIPPED = 3  # exit code: something was left out
PIECE = re.compile(r"#\d{4,}$")  # of names of footage that was split, or listed as clips
NOTES = {
    "cuts": "scene changes",
    "still": "frames without movement left out",
    "short": "frames left out in stretches that are too short",
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
        expanded("SOURCE", given["SOURCE"]),
        named_folder("OUT", given["OUT"]),
        options_of(flags),
        flags.format,
        flags.strict,
        flags.workers,
        flags.timeout,
    )
    print(result.text())
    return 0 if result.counts["clips"] and not result.skipped else SKIPPED


def gives_nothing(counts: Mapping[str, int], options: Options) -> str | None:
    """Why nothing of an item was imported, though all of it could be read; None if something was.

    Args:
        counts: as `clips.Counts`.
    """
    if counts["clips"]:
        return None
    why = [f"{counts[key]:,} {what}" for key, what in NOTES.items() if counts[key]]
    flags = f"--shortest {options.shortest}" + f", --still {options.still}" * bool(counts["still"])
    return f"gives no episode: {', '.join(why) or 'no frames'} ({flags})"


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
        problem = with_cause(source, problem)
        if strict:
            raise UserError(f"{source}: {problem.name}: {problem.reason}")
        result.skipped.append([problem.name, problem.reason])

    with StopRequest(at_once=True):
        for problem in beside(source, reader):
            leave_out(problem)
        items = list(reader.items(source, options, leave_out))
        if not items and not result.skipped:
            raise UserError(f"{source}: nothing to import as {reader.name}")
        passes = Passes(reader, source, out, options, journal, workers, timeout)
        keyed = passes.keys(passes.pieces(items), leave_out)
        if not isinstance(reader, Footage):
            result.bounds = passes.bounds(keyed, leave_out)
        with naming(out):
            journal.begin(source)
            result.new = passes.work(keyed, result.bounds, strict)
    result.skipped += passes.failed
    final = [passes.final(key, result.bounds) for key in keyed]
    entries = [journal.entries[key] for key in final if key in journal.entries]
    result.items = len(entries)
    result.skipped += [problem for entry in entries for problem in entry["problems"]]
    for problem in _without_episodes(keyed, passes, result.bounds):
        leave_out(problem)
    result.skipped.sort()
    between: Counter = Counter()
    for entry in entries:
        between.update(dict(entry.get("between", [])))
    if between and result.new:
        warn(about_between(source, between))
    result.numbers = any(entry["numbers"] for entry in entries)
    names = ("frames", "clips", "kept", "still", "short", "cuts")
    result.counts = {name: sum(entry["counts"][name] for entry in entries) for name in names}
    with naming(out):
        result.removed = journal.keep(set(final))
    _write_report(result, source, options)
    return result


def _without_episodes(keyed: Mapping[str, Item], passes: Passes, bounds) -> Iterator[Unreadable]:
    """Items, all pieces of one together, that gave nothing and of which nothing is told; with the
    reason."""
    wholes: dict[str, Counter] = {}
    for key, item in keyed.items():
        if entry := passes.journal.entries.get(passes.final(key, bounds)):
            footage = isinstance(passes.reader, Footage)
            counts = wholes.setdefault(
                PIECE.sub("", item.name) if footage else item.name, Counter()
            )
            counts.update({**entry["counts"], "problems": len(entry["problems"])})
    for name, counts in wholes.items():
        reason = gives_nothing(counts, passes.options)
        if reason and not counts["problems"]:
            yield Unreadable(name, reason)


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
