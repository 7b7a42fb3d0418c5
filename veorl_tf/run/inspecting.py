"""`python -m veorl_tf inspect SOURCE`: what is in a folder of episodes, or what an import would
make of foreign data, as a table, warnings and a sheet of pictures. Nothing is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from veorl_tf.core.config import Config
from veorl_tf.core.errors import AllLeftOut, UserError
from veorl_tf.core.flags import parse_options
from veorl_tf.core.hardware import cores
from veorl_tf.core.media import grid, write_png
from veorl_tf.core.places import expanded, named_folder
from veorl_tf.data.episodes import odd_sizes, unlike
from veorl_tf.data.importers.base import Footage, Item, Options, Unreadable, with_cause
from veorl_tf.data.importers.registry import beside, find
from veorl_tf.data.inspect import contact_pictures, inspect_directory, padded, spaced, spread
from veorl_tf.run.datasets import is_ready
from veorl_tf.run.import_flags import IMPORT, IMPORT_HELP, options_of
from veorl_tf.run.import_passes import in_workers
from veorl_tf.run.importing import NOTES, gives_nothing

PICTURES = 10  # of every item on the sheet
ROWS = 8  # of the sheet
SHOWN = 20  # lines on what is left out
CONSTANT = 0.5  # grey levels by which pictures must differ to count as moving
SURE = 0.1  # by which a turned picture must be more like the reference
OWN = {"format", "timeout", *asdict(Options())}  # flags of `import`
INSPECT = {
    "sheet": "",
    "sample": 20,
    "reference": "",
    **{key: value for key, value in IMPORT.items() if key in OWN},
}
INSPECT_HELP = {
    **IMPORT_HELP,
    "sheet": "file of the contact sheet; empty: contact-sheet.png in this folder",
    "sample": "how many videos or episodes of foreign data are read, evenly spaced; 0: all",
    "reference": "folder of episodes which the pictures should be the same way up as",
}


def inspect(argv: Sequence[str]) -> int:
    """`inspect SOURCE`: a table of what it holds, and a contact sheet. Exit code 3, as that of an
    import, if nothing can be read."""
    given, options = parse_options(
        argv,
        Config(INSPECT),
        INSPECT_HELP,
        "python -m veorl_tf inspect SOURCE [--key value ...]",
        ["SOURCE"],
    )
    source = expanded("SOURCE", given["SOURCE"])
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    sheet = expanded("--sheet", options.sheet or "contact-sheet.png")
    named_folder("--sheet", str(sheet.parent))
    if options.format == "auto" and is_ready(source):
        print(inspect_directory(source))
        pictures = _pictures_here(source)
    else:
        table, pictures = look(source, options)
        print(table)
    if not pictures:
        raise AllLeftOut(f"{source}: nothing in it can be read")
    if options.reference:
        for line in compare(pictures, expanded("--reference", options.reference)):
            print(f"warning: {line}")
    write_png(sheet, grid(np.concatenate(spaced(pictures, ROWS)), PICTURES))
    print(f"contact sheet: {sheet}")
    return 0


def _pictures_here(source: Path) -> list[np.ndarray]:
    try:
        return pictures_of(source)
    except UserError as error:
        raise AllLeftOut(f"{source}: {error}") from None


def look(source: Path, flags: Config) -> tuple[str, list[np.ndarray]]:
    """A table of what an import would find, and pictures `[PICTURES, 64, 64, 3]` of items."""
    options = options_of(flags)
    reader = find(source, flags.format)
    left_out = beside(source, reader)
    items = list(reader.items(source.absolute(), options, left_out.append))
    chosen = spaced(items, flags.sample or len(items))
    looks = look_at(reader.name, source.absolute(), chosen, options, flags.timeout)
    left_out = [with_cause(source, problem) for problem in left_out]
    problems = [[problem.name, problem.reason] for problem in left_out]
    problems += [problem for one in looks for problem in one["problems"]]
    seen = {item.name: one for item, one in zip(chosen, looks) if one.get("frames")}
    sized = {item.name: size for item, one in zip(chosen, looks) if (size := _action_size(one))}
    odd = _odd(source, sized, len(chosen) == len(items))
    odd = {name: reason for name, reason in odd.items() if name in seen}
    problems += [[name, reason] for name, reason in odd.items()]
    seen = {name: one for name, one in seen.items() if name not in odd}
    looks = list(seen.values())
    rows = [
        ("source", str(source)),
        ("format", f"{reader.name}: {reader.about}"),
        ("items", f"{len(items):,}, of which {len(chosen):,} were read"),
    ]
    if looks:
        rows += footage_rows(looks) if isinstance(reader, Footage) else log_rows(looks)
        rows.append(("becomes", outcome(looks, len(items) / len(chosen))))
    reasons = {name: gives_nothing(one["counts"], options) for name, one in seen.items()}
    dropped = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    rows += [("dropped", text) for text in dropped[:SHOWN]]
    rows.append(("left out", str(len(problems))))
    rows += [("", f"{name}: {reason}") for name, reason in sorted(problems)[:SHOWN]]
    if len(problems) > SHOWN:
        rows.append(("", f"and {len(problems) - SHOWN} more"))
    rows += [("warning", text) for text in warnings(looks)]
    width = max(len(name) for name, _ in rows)
    text = "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
    return text, [padded(one["pictures"], PICTURES) for one in looks]


def _action_size(look: Mapping) -> int | None:
    return len(look["low"]) if "low" in look else look.get("size")


def _odd(source: Path, sizes: Mapping[str, int], whole: bool) -> dict[str, str]:
    """Which items an import leaves out for the size of their actions, and why. A sample does not
    tell which size is the most common: where it has no such the first counts. Raises UserError."""
    try:
        return odd_sizes(source, sizes)
    except UserError:
        if whole:
            raise
    first, usual = next(iter(sizes.items()))
    return unlike(sizes, usual, first)


def look_at(format: str, source: Path, items: Sequence[Item], options: Options, timeout: float):
    """What is in each item, in their order."""
    common = {"format": format, "source": str(source), "options": asdict(options)}
    jobs = [{**common, "item": asdict(item), "pictures": PICTURES} for item in items]
    title, looks = f"reading {source.name}", {}
    for index, look in in_workers("look_at_item", jobs, cores(), timeout, title, len(jobs)):
        failed = isinstance(look, Unreadable)
        looks[index] = {"problems": [[look.name, look.reason]]} if failed else look
    return [looks[index] for index in sorted(looks)]


def footage_rows(looks: Sequence[dict]) -> list[tuple[str, str]]:
    seconds = np.array([one["seconds"] for one in looks])
    frames = np.array([one["frames"] for one in looks])
    return [
        ("frames", f"{frames.sum():,}; {spread(frames, '{:.0f}')}"),
        ("seconds", spread(seconds, "{:.1f}")),
        ("pictures", sizes(looks)),
        ("actions", "none: source videos"),
    ]


def log_rows(looks: Sequence[dict]) -> list[tuple[str, str]]:
    frames = np.array([one["frames"] for one in looks])
    rows = [
        ("frames", f"{frames.sum():,}; {spread(frames, '{:.0f}')}"),
        ("pictures", sizes(looks)),
        ("keys", ", ".join(sorted({key for one in looks for key in one["keys"]}))),
    ]
    ranges = [one for one in looks if "low" in one]
    if ranges:
        low = np.min([one["low"] for one in ranges], 0)
        high = np.max([one["high"] for one in ranges], 0)
        text = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
        rows.append(("action", f"{len(low)} numbers: {text}"))
    rewards = np.array([one["rewards"] for one in looks if "rewards" in one])
    if len(rewards):
        rows.append(("return", spread(rewards[:, 0], "{:.2f}")))
        rows.append(("reward", f"{rewards[:, 1].min():.4g} to {rewards[:, 2].max():.4g}"))
    return rows


def outcome(looks: Sequence[dict], share: float) -> str:
    """What an import makes of the items, of which one in `share` was read."""
    counts = {name: sum(one["counts"][name] for one in looks) for name in looks[0]["counts"]}
    about = "about " if share > 1 else ""
    text = f"{share * counts['clips']:,.0f} episodes of {share * counts['kept']:,.0f} frames"
    return (
        about
        + text
        + "".join(
            f", {share * counts[name]:,.0f} {what}" for name, what in NOTES.items() if counts[name]
        )
    )


def warnings(looks: Sequence[dict]) -> list[str]:
    """What a user should know before training on it."""
    found = []
    still = sum(np.ptp(np.asarray(one["pictures"]), 0).max() <= CONSTANT for one in looks)
    if still:
        found.append(f"{still} of {len(looks)} items show the same picture throughout")
    logs = [one for one in looks if "keys" in one]
    without = sum("rewards" not in one for one in logs)
    if without:
        found.append(f"{without} of {len(logs)} episodes have no rewards: source videos only")
    acts = [one for one in logs if "low" in one]
    if any(max(map(abs, one["low"] + one["high"])) > 1 for one in acts):
        found.append("actions leave -1 to 1; an import scales them")
    stated = [
        (np.array([one["low"], one["high"]]), one["bounds"]) for one in acts if "bounds" in one
    ]
    if any((seen != np.clip(seen, *bounds)).any() for seen, bounds in stated):
        found.append("actions leave the bounds that the data state; an import clips them")
    return found


def compare(pictures: Sequence[np.ndarray], reference: Path) -> list[str]:
    """Whether the mean picture is more like the reference's when it is turned."""
    one, two = (np.concatenate(p).mean((0, 3)) for p in (pictures, pictures_of(reference)))
    turned = {
        "": one,
        "mirrored left to right": one[:, ::-1],
        "upside down": one[::-1],
        "turned by half": one[::-1, ::-1],
    }
    likeness = {name: np.corrcoef(x.ravel(), two.ravel())[0, 1] for name, x in turned.items()}
    best = max(likeness, key=likeness.get)
    if likeness[best] > likeness[""] + SURE:
        return [
            f"the pictures are {best} against {reference}: their mean agrees with its by "
            f"{likeness[best]:.2f} then, by {likeness['']:.2f} as they are"
        ]
    return []


def pictures_of(folder: Path) -> list[np.ndarray]:
    """Pictures `[PICTURES, H, W, 3]` of some episodes of a folder."""
    return [padded(row, PICTURES) for row in contact_pictures(folder, ROWS, PICTURES)]


def sizes(looks: Sequence[dict]) -> str:
    """Widths and heights, the most frequent first."""
    counts = Counter(f"{one['shape'][1]}x{one['shape'][0]}" for one in looks)
    return ", ".join(f"{size} in {count}" for size, count in counts.most_common())
