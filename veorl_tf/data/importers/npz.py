"""Episodes in `.npz` archives, those of the original repositories (VeoRL, CoWorld, Vid2Act,
Dreamer, V-D4RL at 64 px), and replay chunks of DreamerV3."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veorl_tf.core.arrays import npz_headers
from veorl_tf.data.episodes import (
    TARGET_KEYS,
    DamagedEpisode,
    episode_info,
    load_episode,
    stored_keys,
)
from veorl_tf.data.importers.base import (
    ARRIVING,
    MAX_BYTES,
    Alignment,
    Item,
    Log,
    Options,
    Unreadable,
    files,
    inside,
    looks_like,
    natural,
    relative,
)
from veorl_tf.data.importers.checks import MAX_CLASSES, check_size, damage, finite, one_hot
from veorl_tf.data.importers.pictures import check_pixels
from veorl_tf.data.layout import channels, picture_size, rgb

SUFFIX = ".npz"
# {time}-{uuid}-{uuid of the successor}-{length}.npz
CHUNK = re.compile(r"\d{8}T\d{6}\w*-([0-9A-Za-z]+)-([0-9A-Za-z]+)-\d+\.npz")

Headers = dict[str, tuple[tuple[int, ...], np.dtype]]


def archives(source: Path) -> Iterator[Path]:
    return files(source, lambda name: name.endswith(SUFFIX))


class Episodes(Log):
    """One episode per `.npz` in a tree of folders, as docs/data.md describes: `image [n, H, W, 3]`,
    `action [n, A]`, `reward [n]`; `discount` or, without it, `is_terminal`; source videos have
    `image` alone. Row t's action led to image t: the original collectors store a step's action with
    the observation that it returned, and zeros with the reset's."""

    name = "episodes"
    about = "VeoRL, CoWorld, Vid2Act, Dreamer, V-D4RL 64 px: .npz, one per episode"
    alignment = ARRIVING

    def detect(self, source):
        paths = (path for path in archives(source) if not CHUNK.fullmatch(path.name))
        return looks_like(paths, lambda path: "image" in _headers(path, path.name))

    def items(self, source, options, leave_out):
        for path in archives(source):
            name = relative(source, path)
            if CHUNK.fullmatch(path.name):
                # Its actions align differently, which shows in nothing but the name.
                leave_out(Unreadable(name, "a replay chunk of DreamerV3; --format dreamerv3"))
            else:
                yield Item(name.removesuffix(SUFFIX), (name,))

    def episode(self, source, item, options):
        name = item.files[0]
        between: Counter = Counter()
        arrays: dict[str, Any] = _load(inside(source, name), name, between=between)
        if "discount" in arrays:
            arrays["terminal"] = arrays.pop("discount") == 0
        return {**arrays, "between": between} if between else arrays

    def numbers(self, source, item, options):
        name = item.files[0]
        return _load(inside(source, name), name, ("action",))

    def action_size(self, source, item):
        try:
            return episode_info(inside(source, item.files[0])).action_size
        except (DamagedEpisode, Unreadable):
            return None


class Chunk(NamedTuple):
    """A file of a replay: its name in the source, and what of its rows makes episodes of them."""

    name: str
    uuid: str
    successor: str
    rows: int
    firsts: list[int]  # rows with is_first
    top: int  # the greatest of integer actions, -1 if they are vectors


class DreamerV3Replay(Log):
    """Replay chunks of DreamerV3 (danijar's `embodied`): `image`, `action`, `reward`, `is_first`,
    `is_terminal`, all `[n, ...]`, n at most 1024, in files named {time}-{uuid}-{uuid of the
    successor}-{n}.npz, one chain of them per environment. An episode begins at is_first and may
    span chunks; what stands before the first one of a chain is a stretch of an episode.

    `embodied`'s driver stores with an observation, its reward and is_terminal the action that the
    policy chose at it: actions leave, the rest arrives. Actions are vectors in [-1, 1], one-hot, or
    integers, which become one-hot."""

    name = "dreamerv3"
    about = "DreamerV3 replay chunks (.npz)"
    alignment = Alignment(action="leaving", reward="arriving", terminal="arriving")

    def detect(self, source):
        return any(CHUNK.fullmatch(path.name) for path in archives(source))

    def items(self, source, options, leave_out):
        folders: dict[Path, dict[str, Chunk]] = {}
        for path in archives(source):
            try:
                chunk = self._chunk(source, relative(source, path), options)
            except Unreadable as problem:
                leave_out(problem)
                continue
            chunks = folders.setdefault(path.parent, {})
            twin = chunks.get(chunk.uuid, chunk)
            chunks[chunk.uuid], less = (chunk, twin) if chunk.rows > twin.rows else (twin, chunk)
            if less is not chunks[chunk.uuid]:
                leave_out(Unreadable(less.name, f"{chunks[chunk.uuid].name} is the same chunk"))
        tops = [chunk.top for chunks in folders.values() for chunk in chunks.values()]
        classes = 1 + max(tops, default=-1)
        for chunks in folders.values():
            ordered = sorted(chunks.values(), key=lambda chunk: natural(chunk.name))
            for chain in chains(ordered):
                for pieces in cut(chain):
                    (first, start, _), *_ = pieces
                    yield Item(
                        f"{first.name.removesuffix(SUFFIX)}-{start}",
                        tuple(chunk.name for chunk, _, _ in pieces),
                        {"rows": [[start, stop] for _, start, stop in pieces], "classes": classes},
                    )

    def episode(self, source, item, options):
        image_key, action_key, reward_key = _keys(options)
        arrays = self._read(source, item, options, (*_keys(options), "is_terminal"))
        out = {"image": rgb(arrays[image_key]), "reward": arrays[reward_key].reshape(-1)}
        out["reward"] = finite(item.name, "reward", out["reward"])
        if "is_terminal" in arrays:
            out["terminal"] = arrays["is_terminal"].reshape(-1) > 0
        return out | self._actions(item, arrays[action_key])

    def numbers(self, source, item, options):
        action_key = _keys(options)[1]
        return self._actions(item, self._read(source, item, options, (action_key,))[action_key])

    def _chunk(self, source: Path, name: str, options: Options) -> Chunk:
        match = CHUNK.fullmatch(Path(name).name)
        if not match:
            raise Unreadable(name, "not named as a replay chunk: time-uuid-successor-length.npz")
        path = inside(source, name)
        headers = _chunk_headers(path, name, options)
        action_key = _keys(options)[1]
        small = ["is_first"]
        if headers[action_key][1].kind in "iub":
            small.append(action_key)
        arrays = _arrays(path, name, small)
        firsts = np.flatnonzero(arrays["is_first"].reshape(-1)).tolist()
        top = -1
        if action_key in small:
            top = int(arrays[action_key].max())
            if not (0 <= arrays[action_key].min() and top < MAX_CLASSES):
                raise Unreadable(name, f"{action_key} is none of 0 to {MAX_CLASSES - 1}")
        return Chunk(name, match[1], match[2], headers["is_first"][0][0], firsts, top)

    def _read(
        self, source: Path, item: Item, options: Options, keys: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """Arrays of an episode, joined."""
        parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        size = 0
        for name, (start, stop) in zip(item.files, item.spec["rows"], strict=True):
            path = inside(source, name)
            headers = _chunk_headers(path, name, options)
            if headers["is_first"][0][0] < stop:
                raise Unreadable(name, f"{headers['is_first'][0][0]} rows, not {stop}")
            for key, array in _arrays(path, name, [key for key in parts if key in headers]).items():
                parts[key].append(array[start:stop].copy())
                size += parts[key][-1].nbytes
            if size > MAX_BYTES:
                raise Unreadable(item.name, f"an episode of more than {MAX_BYTES:,} bytes")
        with damage(item.name, "its chunks do not fit together"):
            whole = {key: arrays for key, arrays in parts.items() if len(arrays) == len(item.files)}
            return {key: np.concatenate(arrays) for key, arrays in whole.items()}

    def _actions(self, item: Item, action: np.ndarray) -> dict[str, Any]:
        if action.dtype.kind in "iub":
            return {"action": one_hot(item.name, action.reshape(-1), item.spec["classes"])}
        action = finite(item.name, "action", action.reshape(len(action), -1))
        discrete = np.isin(action, (0, 1)).all() and (action.sum(-1) <= 1).all() and action.any()
        if discrete and action.shape[1] > 1:
            return {"action": action}
        # A policy's samples lie outside at times; the environment's wrapper clips them.
        ones = np.ones(action.shape[1], np.float32)
        return {"action": np.clip(action, -1, 1), "bounds": (-ones, ones)}


def chains(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks joined through their successors, each in one chain. A circle begins at the one that
    comes first."""
    known = {chunk.uuid: chunk for chunk in chunks}
    follows = {chunk.successor for chunk in chunks}
    seen: set[str] = set()
    for chunk in [*(chunk for chunk in chunks if chunk.uuid not in follows), *chunks]:
        chain = []
        while chunk is not None and chunk.uuid not in seen:
            seen.add(chunk.uuid)
            chain.append(chunk)
            chunk = known.get(chunk.successor)
        if chain:
            yield chain


def cut(chain: list[Chunk]) -> Iterator[list[tuple[Chunk, int, int]]]:
    """A chain's episodes: the chunks each spans, with the first row and the one after the last."""
    pieces: list[tuple[Chunk, int, int]] = []
    for chunk in chain:
        firsts = set(chunk.firsts)
        for start, stop in pairwise(sorted({0, *firsts, chunk.rows})):
            if pieces and start in firsts:
                yield pieces
                pieces = []
            pieces.append((chunk, start, stop))
    if pieces:
        yield pieces


def _keys(options: Options) -> tuple[str, str, str]:
    """Names of image, action and reward."""
    return (
        options.image_key or "image",
        options.action_key or "action",
        options.reward_key or "reward",
    )


def _headers(path: Path, name: str, keys: Iterable[str] = ()) -> Headers:
    """Shapes and types of a file's arrays; those of `keys` can be read."""
    with damage(name, "no whole npz archive"):
        headers = npz_headers(path)
    for key in set(keys) & set(headers):
        shape, dtype = headers[key]
        if dtype.kind not in "fiub":
            what = "pickled Python objects, which are never read" if dtype.hasobject else str(dtype)
            raise Unreadable(name, f"{key} holds {what}; numbers expected")
        check_size(name, key, shape, dtype)
        if channels(shape):
            check_pixels(name, *picture_size(shape))
    return headers


def _chunk_headers(path: Path, name: str, options: Options) -> Headers:
    """As `_headers`, of a replay chunk. Raises Unreadable when its arrays are none of a chunk's."""
    image_key, action_key, reward_key = keys = _keys(options)
    headers = _headers(path, name, (*keys, "is_first", "is_terminal"))
    for key in (*keys, "is_first"):
        if key not in headers:
            raise Unreadable(name, f"key {key!r} is missing; found: {', '.join(headers)}")
    shape, dtype = headers[image_key]
    if dtype != np.uint8 or not channels(shape) or 0 in shape:
        raise Unreadable(name, f"{image_key} is {dtype} {list(shape)}; uint8 [n, H, W, 3] expected")
    rows = shape[0]
    for key in (action_key, reward_key, "is_first", "is_terminal"):
        shape, dtype = headers.get(key, ((rows,), np.dtype(bool)))
        vector = key == action_key and dtype.kind == "f" and len(shape) == 2 and shape[1] > 0
        if shape[:1] != (rows,) or not (vector or shape[1:] in ((), (1,))):
            raise Unreadable(name, f"{key} is {dtype} {list(shape)} for {rows} rows")
    return headers


def _arrays(path: Path, name: str, keys: Iterable[str]) -> dict[str, np.ndarray]:
    with damage(name), np.load(path, allow_pickle=False) as archive:
        return {key: archive[f"{key}.npy"] for key in keys}


def _load(
    path: Path,
    name: str,
    keys: Iterable[str] = TARGET_KEYS,
    between: Counter | None = None,
) -> dict[str, np.ndarray]:
    """Those of the keys that an episode has; `between` is as of `load_episode`."""
    try:
        with damage(name):
            return load_episode(path, [key for key in stored_keys(path) if key in keys], between)
    except DamagedEpisode as error:
        raise Unreadable(name, error.reason) from None
