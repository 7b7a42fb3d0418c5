"""The frame store: all frames of a directory of episodes in flat, memory-mapped files.

    row        0 1 2 3 4 5 6 7 8 ...                 N
    episode    |---- a ----|-- b --|------ c ------|
    image.u8   [N, H, W, 3]     action.f32 [N, A]     reward.f32, discount.f32, success.f32 [N]

It is a cache: built once from the `.npz` files, rebuilt when one of them changes (name, size,
time), when its format is older, or when it is damaged. It may be larger than memory: the operating
system keeps the rows in use. Columns derived later (codes, embeddings) stand beside the others, one
row per frame, and go when it is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from veorl_tf.core import seeds
from veorl_tf.core.errors import UserError, warn
from veorl_tf.core.files import (
    atomic_directory,
    atomic_write,
    naming,
    require_free,
    shortened,
    sweep_leftovers,
)
from veorl_tf.data.episodes import (
    KEYS,
    DamagedEpisode,
    EpisodeInfo,
    about_between,
    load_episode,
    scan,
)

FORMAT = 2
_FILES = {
    "image": "image.u8",
    "action": "action.f32",
    "reward": "reward.f32",
    "discount": "discount.f32",
    "success": "success.f32",
}


@dataclass(frozen=True)
class Episodes:
    """Where some episodes lie in a store: names and int64 [E] first rows and lengths."""

    names: tuple[str, ...]
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, chosen: Sequence[int]) -> Episodes:
        chosen = np.asarray(chosen, np.int64)
        return Episodes(
            tuple(self.names[i] for i in chosen), self.starts[chosen], self.lengths[chosen]
        )


class FrameStore:
    """Read-only view of a store; made by `build_or_open`.

    Attributes:
        kind: 'target' or 'source'.
        source: directory of the episodes it was built from.
        arrays: {key: memory map [N, ...]}; a source store has image alone.
        episodes: all episodes, in the order of their files' names.
        damaged: [(file name, reason)] of the files left out.
    """

    def __init__(self, directory: Path, source: Path, header: dict):
        self.directory, self.source, self.kind = directory, source, header["kind"]
        shapes, rows = header["shapes"], sum(header["lengths"])
        self.arrays = {
            key: _open_rows(directory / _FILES[key], key, (rows, *shapes[key]))
            for key in KEYS[self.kind]
        }
        lengths = np.array(header["lengths"], np.int64)
        self.episodes = Episodes(tuple(header["names"]), np.cumsum(lengths) - lengths, lengths)
        self.damaged = [tuple(entry) for entry in header["damaged"]]
        self.recipe = header["recipe"]

    @classmethod
    def build_or_open(
        cls,
        source: str | Path,
        cache: str | Path,
        kind: str = "target",
        progress: Callable[[int, int], None] | None = None,
    ) -> FrameStore:
        """Open the store of a directory of episodes, building it first where needed.

        Args:
            source: directory of `.npz` episodes.
            cache: directory that holds stores; each gets a folder of its own.
            kind: 'target' (images, actions, rewards) or 'source' (images alone).
            progress: called as (files done, files in all) while building.
        Raises:
            UserError: no such directory, no readable episode, pictures of different shapes, or
                no size of actions that most episodes have.
            MachineError: too little disk, naming the bytes.
        """
        source = Path(source).absolute()
        infos, damaged = scan(source, kind)
        recipe = _recipe(infos, damaged, kind)
        place = hashlib.blake2b(os.fsencode(source), digest_size=4).hexdigest()
        directory = Path(cache) / f"{shortened(source.name)}-{kind}-{place}"
        if directory.exists():
            try:
                return cls(directory, source, _read_header(directory, recipe))
            except _Stale as stale:
                if str(stale):
                    warn(f"{directory}: {stale}; building it again")
        _build(directory, source, infos, damaged, kind, recipe, progress)
        return cls(directory, source, _read_header(directory, recipe))

    def __len__(self) -> int:
        return len(self.arrays["image"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.arrays["image"].shape[1:]

    @property
    def action_size(self) -> int:
        """Size of the action; 0 in a source store."""
        return self.arrays["action"].shape[1] if "action" in self.arrays else 0

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[Episodes, Episodes]:
        """Training and validation episodes, the same for the same names, fraction and seed.

        At least one episode is held out when there are two or more and fraction > 0, and one always
        trains.
        """
        count = len(self.episodes)
        held_out = min(max(1, round(fraction * count)), count - 1) if fraction > 0 else 0
        order = seeds.generator(seed, "data", "split").permutation(count)
        return self.episodes[np.sort(order[held_out:])], self.episodes[np.sort(order[:held_out])]

    def column(self, name: str, key: str) -> np.ndarray | None:
        """Memory map [N, ...] of a derived column; None when there is none for `key`.

        `key` tells what the column was computed with, e.g. a hash of the frozen weights.
        """
        path = self._column_path(name, key)
        if not path.exists():
            return None
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            return None
        return array if len(array) == len(self) else None

    def add_column(self, name: str, key: str, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Write a derived column from consecutive blocks of rows [n_i, ...], N rows in all, and map
        it.

        Raises ValueError when the blocks do not make N rows of one shape and dtype.
        """
        blocks = iter(blocks)
        first = np.asarray(next(blocks))
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (len(self), *first.shape[1:]),
        }
        rows = 0
        sweep_leftovers(self._column_path(name, key).parent)
        with atomic_write(self._column_path(name, key)) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in (block for part in ([first], blocks) for block in part):
                block = np.asarray(block)
                if block.shape[1:] != first.shape[1:] or block.dtype != first.dtype:
                    raise ValueError(
                        f"column {name!r}: {block.dtype} {block.shape} "
                        f"after {first.dtype} {first.shape}"
                    )
                file.write(block.tobytes())
                rows += len(block)
            if rows != len(self):
                raise ValueError(f"column {name!r}: {rows} rows for {len(self)} frames")
        return self.column(name, key)

    def remove_column(self, name: str, key: str) -> None:
        """Delete a derived column; maps of it that are open stay readable."""
        self._column_path(name, key).unlink(missing_ok=True)

    def _column_path(self, name: str, key: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name) or not re.fullmatch(r"[A-Za-z0-9_-]+", key):
            raise ValueError(f'column {name!r}, key {key!r}: letters, digits and "_" expected')
        return self.directory / "columns" / f"{name}-{key}.npy"


class _Stale(Exception):
    """The store on disk cannot be used; the message is empty when it is merely of older files."""


def _recipe(infos: Sequence[EpisodeInfo], damaged: Sequence[DamagedEpisode], kind: str) -> str:
    """Hash of what the store is made from. A damaged file counts too: mended, it must come in."""
    files = [(info.path.name, info.size, info.mtime_ns) for info in infos]
    for error in damaged:
        status = error.path.stat() if error.path.exists() else error.path.lstat()
        files.append((error.path.name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps([FORMAT, kind, sorted(files)]).encode()).hexdigest()


def _read_header(directory: Path, recipe: str) -> dict:
    try:
        header = json.loads((directory / "header.json").read_text(encoding="utf-8"))
        if header["recipe"] != recipe:
            raise _Stale
        rows = sum(header["lengths"])
        for key in KEYS[header["kind"]]:
            size = (directory / _FILES[key]).stat().st_size
            expected = _row_bytes(key, header["shapes"][key]) * rows
            if size != expected:
                raise _Stale(f"{_FILES[key]} has {size} bytes, {expected} expected")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Stale(f"the store is damaged ({error!r})") from None
    return header


def _build(
    directory: Path,
    source: Path,
    infos: Sequence[EpisodeInfo],
    damaged: Sequence[DamagedEpisode],
    kind: str,
    recipe: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    if not infos:
        first = f"; the first of {len(damaged)} damaged files: {damaged[0]}" if damaged else ""
        raise UserError(f"{source}: no {kind} episode (*.npz) that can be read{first}")
    _check_pictures(infos)
    shapes = {
        "image": infos[0].image_shape,
        "action": (infos[0].action_size,),
        "reward": (),
        "discount": (),
        "success": (),
    }
    shapes = {key: shapes[key] for key in KEYS[kind]}
    need = sum(info.length for info in infos) * sum(
        _row_bytes(key, shape) for key, shape in shapes.items()
    )
    require_free(directory, need, f"the frame store of {source}")
    damaged = [(error.path.name, error.reason) for error in damaged]
    with atomic_directory(directory) as temporary, naming(temporary):
        between: Counter = Counter()
        names, lengths, unreadable = _write_arrays(temporary, infos, shapes, progress, between)
        damaged += unreadable
        if not names:
            raise UserError(
                f"{source}: no {kind} episode that can be read; the first: "
                f"{damaged[0][0]}: {damaged[0][1]}"
            )
        header = {
            "format": FORMAT,
            "kind": kind,
            "recipe": recipe,
            "source": str(source),
            "shapes": shapes,
            "names": names,
            "lengths": lengths,
            "damaged": sorted(damaged),
        }
        (temporary / "header.json").write_text(json.dumps(header), encoding="utf-8")
    for name, reason in damaged:
        warn(f"damaged episode left out: {source / name}: {reason}")
    if between:
        warn(about_between(source, between))


def _write_arrays(
    folder: Path,
    infos: Sequence[EpisodeInfo],
    keys: Iterable[str],
    progress: Callable[[int, int], None] | None,
    between: Counter,
) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """The episodes' arrays end to end, a file a key: names and lengths of those written, names and
    reasons of those that could not be read. `between` is as of `load_episode`."""
    names, lengths, damaged = [], [], []
    with ExitStack() as stack:
        files = {key: stack.enter_context(open(folder / _FILES[key], "wb")) for key in keys}
        for done, info in enumerate(infos, 1):
            try:
                episode = load_episode(info.path, tuple(files), between)
            except DamagedEpisode as error:
                damaged.append((info.path.name, error.reason))
            else:
                for key, file in files.items():
                    file.write(np.ascontiguousarray(episode[key]).data)
                names.append(info.path.name)
                lengths.append(len(episode["image"]))
            if progress:
                progress(done, len(infos))
    return names, lengths, damaged


def _check_pictures(infos: Sequence[EpisodeInfo]) -> None:
    """One store has pictures of one size; `scan` sees to the actions."""
    usual = Counter(info.image_shape for info in infos).most_common(1)[0][0]
    odd = next((info for info in infos if info.image_shape != usual), None)
    if odd:
        raise UserError(
            f"{odd.path}: image {list(odd.image_shape)} among episodes of {list(usual)}; an import "
            f"gives them one size"
        )


def _row_bytes(key: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * (1 if key == "image" else 4)


def _open_rows(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, np.uint8 if key == "image" else np.float32, "r", shape=shape)
