"""Which data a run trains on, and whether it can: the user's own, imported once if they are
foreign, or default datasets that are made once."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError, warn
from veorl_tf.core.files import shortened
from veorl_tf.core.places import expanded
from veorl_tf.core.progress import progress
from veorl_tf.data.episodes import DamagedEpisode, EpisodeInfo, load_episode, scan
from veorl_tf.data.importers.base import Options
from veorl_tf.data.importers.journal import action_scale, unfinished
from veorl_tf.data.importers.npz import archives
from veorl_tf.data.importers.registry import find, formats
from veorl_tf.data.store import FrameStore
from veorl_tf.run.collect import Recipe, make_dataset, source_recipe, target_recipe
from veorl_tf.run.import_flags import options_of
from veorl_tf.run.import_passes import TOLERANCE
from veorl_tf.run.importing import import_source
from veorl_tf.run.simulators import env_options

GIVEN = {"target": "target_dataset", "source": "source_videos"}  # keys of the user's own folders


def data_root(config: Config) -> Path:
    """Where datasets and caches live: `--datadir`, `$VEORL_DATA`, or the user's cache."""
    if config.datadir:
        return expanded("--datadir", config.datadir)
    if own := os.environ.get("VEORL_DATA"):
        return expanded("VEORL_DATA", own)
    return expanded("the default of --datadir,", "~/.cache/veorl_tf")


def check_given(config: Config) -> None:
    """Fails early when the user's own data are not there or of no known format, or are needed and
    not named."""
    for key in GIVEN.values():
        if config[key]:
            source = expanded(f"--{key}", config[key])
            if not source.exists():
                raise UserError(f"--{key} {config[key]}: no such file or folder")
            if not is_ready(source):
                find(source, config.imports.format)
    import_options(config)
    if config.imports.format not in ("auto", *formats()):
        raise UserError(
            f"--imports.format {config.imports.format}: auto, or one of {', '.join(formats())}"
        )
    if config.task.startswith("fetch_") and not config.target_dataset:
        raise UserError(f"--task {config.task} needs --target_dataset: no expert acts in it")
    if config.task == "none" and not config.target_dataset:
        raise UserError("--task none needs --target_dataset: there is no simulator to collect from")
    for kind in GIVEN:
        if not config[GIVEN[kind]]:
            default_recipe(config, kind)


def open_store(config: Config, kind: str) -> FrameStore:
    """The frame store of the run's `target` or `source` data, made and built first if need be."""
    given = config[GIVEN[kind]]
    if given:
        directory = imported(config, kind, expanded(f"--{GIVEN[kind]}", given))
    else:
        recipe = default_recipe(config, kind)
        directory = data_root(config) / "episodes" / f"{recipe.name}-{recipe.hash}"
        make_dataset(recipe, directory, config.env.workers)
    with _Reading(kind) as reading:
        return FrameStore.build_or_open(directory, data_root(config) / "stores", kind, reading)


def is_ready(source: Path) -> bool:
    """Whether a folder holds episodes that an import would not change: `.npz` files directly in it,
    of 64x64 pictures and actions in [-1, 1], none in row 0, the reset's. Raises UserError for an
    import that is not finished."""
    if unfinished(source):
        raise UserError(f"{source}: an import that was interrupted; the same import again goes on")
    paths = list(archives(source)) if source.is_dir() else []
    if not paths or any(path.parent != source for path in paths) or not _are_episodes(source):
        return False
    infos, _ = scan(source, "source")
    return all(info.image_shape[:2] == (64, 64) for info in infos) and not any(
        _would_change(info) for info in infos
    )


def _are_episodes(source: Path) -> bool:
    try:
        return find(source).name == "episodes"
    except UserError:
        return False


def _would_change(info: EpisodeInfo) -> bool:
    """Whether an import scales an episode's actions, or takes a reset's action or reward away."""
    if "action" not in info.arrays:
        return False
    try:
        numbers = load_episode(info.path, ("action", "reward"))
    except DamagedEpisode:
        return False
    resets = any(array[:1].any() for array in numbers.values())
    return resets or np.abs(numbers["action"]).max() > 1 + TOLERANCE


def import_options(config: Config) -> Options:
    """How foreign data are imported. Raises UserError."""
    return options_of({**config.imports, "size": config.env.image_size}, "imports.")


def imported(config: Config, kind: str, source: Path) -> Path:
    """The folder of a source's episodes: itself, or a copy under the data root, made or brought up
    to date."""
    if is_ready(source):
        return source
    options, source = import_options(config), source.absolute()
    recipe = json.dumps([str(source), asdict(options)], sort_keys=True)
    place = hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()
    out = data_root(config) / "imports" / f"{shortened(source.stem)}-{place}"
    result = import_source(source, out, options, config.imports.format)
    for name, reason in result.skipped:
        warn(f"left out: {name}: {reason}")
    if kind == "target" and not result.numbers:
        raise UserError(
            f"--{GIVEN[kind]} {source}: {result.format} without actions and rewards; "
            f"it can be --{GIVEN['source']}"
        )
    return out


def made_length(config: Config, kind: str) -> tuple[str, int] | None:
    """Name and frames an episode of the default dataset that `open_store` would make; None if the
    data are given."""
    if config[GIVEN[kind]]:
        return None
    recipe = default_recipe(config, kind)
    return recipe.name, recipe.frames


def action_space(config: Config, store: FrameStore | None = None):
    """Actions as given data have them, else as configured; a discrete actor wants one-hot rows."""
    from veorl_tf.agents.agent import ActionSpace

    if store is None:
        return ActionSpace(config.action.size, config.action.discrete)
    if not config.action.discrete and _are_one_hot(store):
        warn(
            f"{store.source}: actions are one-hot, each one of {store.action_size}, and learnt as "
            f"numbers: --task none --action.discrete true learns them as choices"
        )
    if store.action_size != config.action.size and config.task == "none":
        return ActionSpace(store.action_size, config.action.discrete)
    if store.action_size != config.action.size:
        raise UserError(
            f"{store.source}: actions have {store.action_size} numbers, but "
            f"--action.size is {config.action.size}"
        )
    return ActionSpace(config.action.size, config.action.discrete)


def _are_one_hot(store: FrameStore, classes: int = 2) -> bool:
    """Whether each action, but for the resets', is one-hot, and at least so many classes occur."""
    action = store.arrays["action"]
    if not np.isin(action[:1000], (0, 1)).all():
        return False
    action = np.asarray(action)
    sums = action.sum(-1)
    sums[store.episodes.starts] = 1
    one_hot = np.isin(action, (0, 1)).all() and (sums == 1).all()
    return bool(one_hot) and int(action.any(0).sum()) >= classes


def action_bounds(store: FrameStore) -> dict[str, list[float]]:
    """Smallest and largest action of the data, per dimension, and, if an import scaled them, what
    -1 and 1 were (`scaled_low`, `scaled_high`)."""
    action = store.arrays["action"]
    bounds = {"low": np.min(action, 0).tolist(), "high": np.max(action, 0).tolist()}
    scaled = action_scale(store.source)
    return bounds | {f"scaled_{key}": value for key, value in scaled.items()}


def check_actions(store: FrameStore, bounds: dict[str, list[float]], space) -> None:
    """Discrete ones must be one-hot, but for the resets'; continuous ones should be what the policy
    can do."""
    low, high = min(bounds["low"]), max(bounds["high"])
    if space.discrete:
        if not _are_one_hot(store, classes=1):
            raise UserError(
                f"{store.source}: --action.discrete wants one-hot actions, but these are not"
            )
    elif low < -1.001 or high > 1.001:
        warn(
            f"{store.source}: actions from {low:.3g} to {high:.3g}, but the policy acts in "
            f"[-1, 1]; rescale them unless the excess is noise"
        )


def check_images(stores: dict[str, FrameStore]) -> None:
    for store in stores.values():
        if store.image_shape != (64, 64, 3):
            raise UserError(
                f"{store.source}: frames are {list(store.image_shape)}, but the nets "
                f"take [64, 64, 3]; resize them"
            )


def default_recipe(config: Config, kind: str) -> Recipe:
    """The recipe of the default dataset; it does not depend on the run's seed, so that runs of
    several seeds see the same data."""
    data = config.data
    if kind == "source":
        return source_recipe(
            data.source_clips, data.source_frames, data.seed, config.env.image_size
        )
    return target_recipe(
        config.task, data.collect_quality, data.collect_episodes, data.seed, env_options(config)
    )


class _Reading:
    """A progress bar that appears when the first file has been read."""

    def __init__(self, kind: str):
        self.kind, self.bar = kind, None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = progress(total, 0, f"reading {self.kind} episodes", "files")
        self.bar.update(done - self.bar.count)

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()
