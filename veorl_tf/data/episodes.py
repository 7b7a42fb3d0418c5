"""The episode on disk: one compressed `.npz` per episode, the exchange format of the DreamerV2
line.

All arrays share the leading time axis; row 0 is the reset. `action[t]` is the action that led to
`image[t]` and `reward[t]` what came with it, so `action[0]` and `reward[0]` are zero. Target data
has image, action and reward; source videos have images alone. Datasets of the original repositories
load unchanged: further keys are ignored, the length comes from the arrays and never from the file's
name, and nothing is unpickled.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from veorl_tf.core.arrays import READ_ERRORS, npz_headers, write_npz
from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_write
from veorl_tf.data.layout import MAX_PIXELS, absurd, channels, picture_size, rgb
from veorl_tf.data.mistaken import mistaken, no_file

SOURCE_KEYS = ("image",)
TARGET_KEYS = ("image", "action", "reward", "discount", "success")
KEYS = {"source": SOURCE_KEYS, "target": TARGET_KEYS}
# Filled when a file lacks them: no true terminal (Meta-World never has one), success not recorded.
OPTIONAL = {"discount": 1.0, "success": 0.0}
ENDS = "is_terminal"  # true where an episode ended for good: read where `discount` lacks


class DamagedEpisode(UserError):
    """A file that is no episode: where it is and what is wrong with it."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


@dataclass(frozen=True)
class EpisodeInfo:
    """What the headers of an episode's arrays tell."""

    path: Path
    length: int  # stored frames, the reset's included
    arrays: Mapping[
        str, tuple[tuple[int, ...], np.dtype]
    ]  # {key: (shape, dtype)} of all keys in the file
    size: int  # bytes on disk
    mtime_ns: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """As pictures are read: RGB."""
        return (*picture_size(self.arrays["image"][0]), 3)

    @property
    def action_size(self) -> int:
        """Size of the action; 0 for a source video."""
        return self.arrays["action"][0][1] if "action" in self.arrays else 0


def save_episode(
    directory: str | Path,
    episode: Mapping[str, np.ndarray],
    name: str | None = None,
    *,
    stamp: str | None = None,
    ident: str | None = None,
) -> Path:
    """Write an episode; equal arrays give equal bytes.

    Args:
        episode: image uint8 [n, H, W, 3] and, for target data, action [n, A], reward [n], and what
            else there is. Floats are stored as float32, integers other than uint8 as int32,
            booleans as uint8.
        name: the file's name; by default `{stamp}-{ident}-{n}.npz` like the original collectors'.
        stamp, ident: 'YYYYmmddTHHMMSS' and 32 hexadecimal digits; now and a random id by default.
            Datasets that must come out equal twice derive both from their seed.
    Raises:
        DamagedEpisode: arrays that `load_episode` would refuse.
    """
    arrays = {key: _stored(np.asarray(value)) for key, value in episode.items()}
    headers = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    kind = "target" if {"action", "reward"} <= set(arrays) else "source"
    length = _check_headers(Path(directory) / (name or "episode"), headers, kind)
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedEpisode(
                Path(directory) / (name or "episode"), f"{key} holds a number that is not finite"
            )
    if name is None:
        stamp = stamp or datetime.now().strftime("%Y%m%dT%H%M%S")
        ident = ident or uuid.uuid4().hex
        if not re.fullmatch(r"\d{8}T\d{6}", stamp) or not re.fullmatch(r"[0-9a-f]{32}", ident):
            raise ValueError(
                f"stamp {stamp!r}, ident {ident!r}: 'YYYYmmddTHHMMSS' and 32 hexadecimal digits "
                f"expected"
            )
        name = f"{stamp}-{ident}-{length}.npz"
    path = Path(directory) / name
    with atomic_write(path) as file:
        write_npz(file, arrays, compress=True)
    return path


def load_episode(
    path: str | Path, keys: Sequence[str] = TARGET_KEYS, between: Counter | None = None
) -> dict[str, np.ndarray]:
    """Read the named keys of an episode.

    Args:
        keys: TARGET_KEYS, SOURCE_KEYS or some of them. Missing discounts become 1, or 0 where
            `is_terminal` is above 0, missing successes 0.
        between: is told how often each stored discount between 0 and 1 occurs; they count as 1.
    Returns:
        image uint8 [n, H, W, 3], also of grey pictures; action float32 [n, A], reward, success
        float32 [n]; discount float32 [n], 0 or 1.
    Raises:
        DamagedEpisode: not an archive, cut, an array of objects, a missing key, a wrong shape or
            type, or a number that is not finite.
    """
    path = Path(path)
    headers = _headers(path)
    length = _check_headers(path, headers, "source" if set(keys) <= set(SOURCE_KEYS) else "target")
    ends = ENDS in headers and "discount" not in headers
    stored = [ENDS if key == "discount" and ends else key for key in keys]
    read = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in stored:
                if key in headers:
                    array = archive[f"{key}.npy"]
                    read[key] = rgb(array) if key == "image" else _float32(array)
                else:
                    read[key] = np.full(length, OPTIONAL[key], np.float32)
    except READ_ERRORS as error:
        raise DamagedEpisode(path, f"cannot be read: {error}") from None
    for key, array in read.items():
        if key not in ("image", "action"):
            read[key] = array = array.reshape(length)
        if key != "image" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DamagedEpisode(path, f"{key} holds a number that is not finite, in row {row}")
    episode = dict(zip(keys, read.values(), strict=True))
    if "discount" in episode:
        discount = episode["discount"]
        if between is not None and not ends:
            inner = discount[(discount > 0) & (discount < 1)]
            between.update(float(f"{value:.4g}") for value in inner)
        episode["discount"] = np.float32((discount > 0) != ends)
    return episode


def about_between(where: Path, between: Mapping[float, int]) -> str:
    """What is said of discounts between 0 and 1, by how often each occurs."""
    return (
        f"{where}: {sum(between.values()):,} discounts lie between 0 and 1 and count as 1, as "
        f"{max(between, key=between.get):g} does: --behavior.gamma is what discounts"
    )


def stored_keys(path: str | Path) -> tuple[str, ...]:
    """Those of TARGET_KEYS that a file stores, where it has actions, else SOURCE_KEYS. Raises
    DamagedEpisode."""
    headers = _headers(Path(path))
    if "action" not in headers:
        return SOURCE_KEYS
    known = {*headers, *(["discount"] if ENDS in headers else [])}
    return tuple(key for key in TARGET_KEYS if key in known or key not in OPTIONAL)


def scan(
    directory: str | Path, kind: str = "target"
) -> tuple[list[EpisodeInfo], list[DamagedEpisode]]:
    """Look at all `*.npz` of a directory, reading headers only.

    Args:
        kind: 'target' (image, action, reward needed) or 'source' (image needed).
    Returns:
        Episodes in the order of their names, and what is none: damaged files, links that lead
        nowhere, folders and pipes. Damage inside an array's data shows only when it is read.
    Raises:
        UserError: no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory of episodes")
    episodes, damaged = [], []
    for path in sorted(path for path in directory.glob("*.npz") if path.name[0] != "."):
        try:
            episodes.append(episode_info(path, kind))
        except DamagedEpisode as error:
            damaged.append(error)
    if kind == "target":
        episodes, odd = _of_usual_actions(directory, episodes)
        damaged += odd
    return episodes, damaged


def episode_info(path: Path, kind: str = "target") -> EpisodeInfo:
    """What the headers of a `target` or `source` episode tell. Raises DamagedEpisode."""
    if reason := no_file(path):
        raise DamagedEpisode(path, reason)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DamagedEpisode(path, error.strerror or str(error)) from None
    headers = _headers(path)
    length = _check_headers(path, headers, kind)
    return EpisodeInfo(path, length, headers, status.st_size, status.st_mtime_ns)


def odd_sizes(where: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """By name why episodes are left out whose actions have another size than most have.

    Args:
        sizes: of actions, by the episodes' names.
    Raises:
        UserError: no size is more common than all others.
    """
    counts = Counter(sizes.values()).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        both = " and ".join(str(size) for size, _ in sorted(counts))
        raise UserError(
            f"{where}: {counts[0][1]} episodes each have actions of {both} numbers; put them in "
            f"folders of their own"
        )
    return unlike(sizes, counts[0][0] if counts else 0, "most")


def unlike(sizes: Mapping[str, int], usual: int, whose: str) -> dict[str, str]:
    """As `odd_sizes`, of episodes with another than the `usual` size, that of `whose` actions."""
    return {
        name: f"its actions have {size} numbers, those of {whose} have {usual}"
        for name, size in sizes.items()
        if size != usual
    }


def _of_usual_actions(
    directory: Path, episodes: list[EpisodeInfo]
) -> tuple[list[EpisodeInfo], list[DamagedEpisode]]:
    sizes = {info.path.name: info.action_size for info in episodes}
    reasons = odd_sizes(directory, sizes)
    odd = [DamagedEpisode(directory / name, reason) for name, reason in reasons.items()]
    return [info for info in episodes if info.path.name not in reasons], odd


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)


def _stored(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array.astype(np.int32) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    try:
        return npz_headers(path)
    except READ_ERRORS as error:
        raise DamagedEpisode(path, mistaken(path) or f"no whole npz archive ({error})") from None


def _check_headers(
    path: Path, headers: Mapping[str, tuple[tuple[int, ...], np.dtype]], kind: str
) -> int:
    """The episode's length. Raises DamagedEpisode when a needed key is missing or malformed."""
    for key in KEYS[kind]:
        if key not in headers and key not in OPTIONAL:
            raise DamagedEpisode(
                path, f"key {key!r} is missing; found: {', '.join(headers) or 'nothing'}"
            )
    length = headers["image"][0][0] if headers["image"][0] else 0
    ends = (ENDS,) if kind == "target" and "discount" not in headers else ()
    for key in (*KEYS[kind], *ends):
        if key in headers:
            if reason := _wrong(key, *headers[key], length):
                raise DamagedEpisode(path, reason)
    return length


def _wrong(key: str, shape: tuple[int, ...], dtype: np.dtype, length: int) -> str | None:
    """What is wrong with an array of an episode of `length` frames."""
    if dtype.hasobject:
        return f"{key} holds pickled Python objects, which are never read; numbers expected"
    if key == "image":
        if dtype != np.uint8 or not channels(shape) or 0 in shape:
            return f"image is {dtype} {list(shape)}; uint8 [n, H, W, 3], or grey, expected"
        height, width = picture_size(shape)
        if height * width > MAX_PIXELS:
            return f"{width}x{height} pixels; at most {MAX_PIXELS:,} are read"
    elif dtype.kind not in "fiub":
        return f"{key} is {dtype}; numbers expected"
    else:
        good = len(shape) == 2 and shape[1] > 0 if key == "action" else shape[1:] in ((), (1,))
        if not good or shape[0] != length:
            expected = f"[{length}, A]" if key == "action" else f"[{length}]"
            return f"{key} is {list(shape)}; {expected} expected for {length} frames"
    return absurd(key, shape, dtype)
