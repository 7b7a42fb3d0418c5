"""What is in a directory of episodes: a table, and a sheet of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.core.media import grid
from veorl_tf.data.episodes import KEYS, DamagedEpisode, EpisodeInfo, load_episode, scan

_SHOWN_DAMAGED = 20


def inspect_directory(path: str | Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Read every episode of a directory whole and describe them as a table of text.

    Args:
        progress: called as (files done, files in all).
    Raises:
        UserError: no such directory, or no `.npz` in it.
    """
    kind, infos, damaged = _look(path)
    numbers, whole, bounds = [], [], []
    for done, info in enumerate(infos, 1):
        try:
            episode = load_episode(info.path, KEYS[kind])
        except DamagedEpisode as error:
            damaged.append(error)
        else:
            whole.append(info)
            if kind == "target":
                reward, action = episode["reward"], episode["action"]
                numbers.append((reward.sum(), episode["success"].max(), reward.min(), reward.max()))
                bounds.append((action.min(0), action.max(0)))
        if progress:
            progress(done, len(infos))
    rows = [
        ("directory", str(path)),
        (
            "kind",
            {
                "target": "target (images, actions, rewards)",
                "source": "source videos (images alone)",
            }[kind],
        ),
    ]
    if whole:
        rows += _size_rows(whole)
    if numbers:
        rows += _number_rows(
            np.array(numbers), bounds, any("success" in info.arrays for info in whole)
        )
    rows.append(("damaged files", str(len(damaged))))
    rows += [("", f"{error.path.name}: {error.reason}") for error in damaged[:_SHOWN_DAMAGED]]
    if len(damaged) > _SHOWN_DAMAGED:
        rows.append(("", f"and {len(damaged) - _SHOWN_DAMAGED} more"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def contact_pictures(path: str | Path, episodes: int, columns: int) -> list[np.ndarray]:
    """Pictures of at most `episodes` episodes (evenly spaced), uint8 `[columns or fewer, H, W, 3]`
    evenly spaced from first to last.

    Raises UserError when no episode can be read.
    """
    kind, infos, damaged = _look(path)
    shape = Counter(info.image_shape for info in infos).most_common(1)[0][0] if infos else None
    infos = [info for info in infos if info.image_shape == shape]

    def pictures(chosen: Sequence[EpisodeInfo]) -> Iterator[np.ndarray]:
        for info in chosen:
            try:
                image = load_episode(info.path, KEYS[kind])["image"]
            except DamagedEpisode as error:
                damaged.append(error)
            else:
                yield np.stack(spaced(image, columns))

    # Where all of those are damaged, any one will do.
    frames = list(pictures(spaced(infos, episodes))) or list(islice(pictures(infos), 1))
    if not frames:
        raise UserError(f"no episode can be read: {damaged[0]}")
    return frames


def contact_sheet(path: str | Path, episodes: int = 8, columns: int = 10) -> np.ndarray:
    """A sheet of pictures, uint8 [H', W', 3]: a row per episode (evenly spaced), frames evenly
    spaced from first to last.

    Raises UserError when no episode can be read.
    """
    rows = [padded(row, columns) for row in contact_pictures(path, episodes, columns)]
    return grid(np.concatenate(rows), columns)


def padded(pictures: Sequence[np.ndarray], count: int) -> np.ndarray:
    """`[count, H, W, 3]`, the last one repeated."""
    return np.stack([*pictures, *[pictures[-1]] * (count - len(pictures))])


def _look(path: str | Path) -> tuple[str, list[EpisodeInfo], list[DamagedEpisode]]:
    """Kind, episodes and damaged files: target data when most files have rewards or actions."""
    infos, damaged = scan(path, "source")
    if not infos and not damaged:
        raise UserError(f"{path}: no episode (*.npz) in this directory")
    with_numbers = sum("reward" in info.arrays or "action" in info.arrays for info in infos)
    if 2 * with_numbers > len(infos):
        return "target", *scan(path, "target")
    return "source", infos, damaged


def _size_rows(infos: Sequence[EpisodeInfo]) -> list[tuple[str, str]]:
    lengths = np.array([info.length for info in infos])
    layouts: dict[str, Counter] = {}
    for info in infos:
        for key, (shape, dtype) in info.arrays.items():
            layouts.setdefault(key, Counter())[
                f"{dtype} [{', '.join(['n', *map(str, shape[1:])])}]"
            ] += 1
    rows = [
        ("episodes", f"{len(infos):,}"),
        ("frames", f"{lengths.sum():,} ({lengths.sum() - len(infos):,} steps)"),
        ("lengths", f"{spread(lengths, '{:.0f}')} frames"),
        ("size on disk", f"{sum(info.size for info in infos) / 1e6:,.1f} MB"),
    ]
    for i, (key, layout) in enumerate(layouts.items()):
        text = "; ".join(
            name if count == len(infos) else f"{name} in {count}" for name, count in layout.items()
        )
        rows.append(("keys" if not i else "", f"{key}: {text}"))
    return rows


def _number_rows(
    numbers: np.ndarray, bounds: Sequence[tuple[np.ndarray, np.ndarray]], has_success: bool
) -> list[tuple[str, str]]:
    returns, success = numbers[:, 0], numbers[:, 1] > 0
    rows = [
        ("return", spread(returns, "{:.2f}")),
        (
            "success",
            f"{success.mean():.1%} of the episodes, at any step" if has_success else "not recorded",
        ),
        ("reward", f"{numbers[:, 2].min():.4g} to {numbers[:, 3].max():.4g}"),
    ]
    low, high = np.min([low for low, _ in bounds], 0), np.max([high for _, high in bounds], 0)
    text = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
    return [*rows, ("action", f"{len(low)} numbers: {text}")]


def spread(values: np.ndarray, form: str) -> str:
    low, mean, high = (form.format(v) for v in (values.min(), values.mean(), values.max()))
    return f"mean {mean}, from {low} to {high}"


def spaced(items: Sequence, count: int) -> list:
    """At most `count` of them, evenly spaced from first to last."""
    if not len(items):
        return []
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]
