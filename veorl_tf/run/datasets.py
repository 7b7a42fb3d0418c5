"""Which data a run trains on: the user's own, or default datasets that are made once."""

from __future__ import annotations

import os
from pathlib import Path

from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError
from veorl_tf.core.progress import progress
from veorl_tf.data.store import FrameStore
from veorl_tf.run.collect import Recipe, make_dataset, source_recipe, target_recipe
from veorl_tf.run.simulators import env_options

GIVEN = {"target": "target_dataset", "source": "source_videos"}  # keys of the user's own folders


def data_root(config: Config) -> Path:
    """Where datasets and caches live: `--datadir`, `$VEORL_DATA`, or the user's cache."""
    place = config.datadir or os.environ.get("VEORL_DATA") or "~/.cache/veorl_tf"
    return Path(place).expanduser()


def check_given(config: Config) -> None:
    """Fails early when a folder of the user's own data is not there, or is needed and not named."""
    for key in GIVEN.values():
        if config[key] and not Path(config[key]).expanduser().is_dir():
            raise UserError(f"--{key} {config[key]}: no such folder")
    if config.task.startswith("fetch_") and not config.target_dataset:
        raise UserError(f"--task {config.task} needs --target_dataset: no expert acts in it")
    if config.task == "none" and not config.target_dataset:
        raise UserError("--task none needs --target_dataset: there is no simulator to collect from")


def open_store(config: Config, kind: str) -> FrameStore:
    """The frame store of the run's `target` or `source` data, made and built first if need be."""
    given = config[GIVEN[kind]]
    if given:
        directory = Path(given).expanduser()
    else:
        recipe = default_recipe(config, kind)
        directory = data_root(config) / "episodes" / f"{recipe.name}-{recipe.hash}"
        make_dataset(recipe, directory, config.env.workers)
    with _Reading(kind) as reading:
        return FrameStore.build_or_open(directory, data_root(config) / "stores", kind, reading)


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
