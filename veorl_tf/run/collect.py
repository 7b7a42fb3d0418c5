"""Making offline datasets: scripted episodes of a task, and clips of other robots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import MachineError, UserError, warn
from veorl_tf.core.files import atomic_write, require_free, sweep_leftovers
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.lock import locked
from veorl_tf.core.progress import duration, progress
from veorl_tf.data.episodes import DamagedEpisode, load_episode, save_episode, scan
from veorl_tf.run.simulators import simulator_errors

STAMP = "20000101T000000"  # datasets come out the same whenever they are made
RECIPE, LOCK = "recipe.json", ".lock"
EPISODE_KEYS = {
    "target": ("image", "action", "reward", "discount", "success"),
    "source": ("image",),
}
EPISODES_PER_SEED = 1_000_000
LAST_SEED = 999  # beyond lie the goal seeds of evaluations


@dataclass(frozen=True)
class Recipe:
    """What a dataset is made of: everything that its bytes depend on, but for the code itself.

    `kind` is `target` (episodes with actions and rewards) or `source` (images alone), `function`
    what runs in a worker for each entry of `jobs` (its keyword arguments), `details` what the
    function's own tables add.
    """

    name: str
    kind: str
    function: str
    jobs: tuple[Mapping, ...]
    details: Mapping = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        parts = [self.kind, self.function, list(self.jobs), dict(self.details)]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()

    @property
    def frames(self) -> int:
        """Of an episode, at most."""
        job = self.jobs[0]
        return job["length"] if "length" in job else job["time_limit"] // job["action_repeat"] + 1

    def ident(self, index: int) -> str:
        """32 hexadecimal digits that name episode `index`."""
        return hashlib.blake2b(f"{self.hash}/{index}".encode(), digest_size=16).hexdigest()


def target_recipe(task: str, quality: str, episodes: int, seed: int, env: Mapping) -> Recipe:
    """Episodes of `task` under its scripted policies at a named quality."""
    from envs import TASKS, experts

    if task not in TASKS():
        raise UserError(f"--task {task}: no simulator has it, so no dataset can be made")
    if quality not in experts.QUALITIES:
        known = ", ".join(experts.QUALITIES)
        raise UserError(f"--data.collect_quality {quality}: one of {known}")
    _in_range("data.collect_episodes", episodes, 1, EPISODES_PER_SEED)
    _in_range("data.seed", seed, 0, LAST_SEED)
    jobs = tuple(
        dict(task=task, quality=quality, seed=seed * EPISODES_PER_SEED + i, **env)
        for i in range(episodes)
    )
    details = {
        "noise": asdict(experts.noise_of(task, experts.setting_of(env))),
        "mixture": experts.MIXTURE,
    }
    if quality == "misses":
        details["misses"] = experts.MISSES
    return Recipe(f"{task}-{quality}", "target", "envs.experts:rollout", jobs, details)


def source_recipe(clips: int, frames: int, seed: int, image_size: int) -> Recipe:
    """Clips of the Fetch arms: every task, several cameras, scripted and random behaviour."""
    from envs import fetch

    _in_range("data.source_clips", clips, 1, EPISODES_PER_SEED)
    _in_range("data.source_frames", frames, 1, EPISODES_PER_SEED)
    _in_range("data.seed", seed, 0, LAST_SEED)
    worlds = [
        (kind, camera, behaviour)
        for behaviour in fetch.BEHAVIOURS
        for kind in fetch.KINDS
        for camera in fetch.CLIP_CAMERAS
    ]
    jobs = []
    for i in range(clips):
        kind, camera, behaviour = worlds[i % len(worlds)]
        jobs.append(
            dict(
                kind=kind,
                camera=camera,
                behaviour=behaviour,
                seed=seed * EPISODES_PER_SEED + i,
                length=frames,
                image_size=image_size,
            )
        )
    return Recipe("fetch-clips", "source", "envs.fetch:source_clip", tuple(jobs))


def make_dataset(recipe: Recipe, directory: Path, workers: int) -> Path:
    """Makes what is missing of a dataset in `directory`; interrupted, it continues.

    Episodes that cannot be read are made again. Returns `directory`, with `recipe.json` written
    last. Raises UserError when there are episodes of another recipe, MachineError when a job keeps
    failing or the disk is too small.
    """
    if not _complete(recipe, directory):
        with locked(directory / LOCK, f"makes {directory}", wait=True):
            _make(recipe, directory, workers)
    return directory


def _complete(recipe: Recipe, directory: Path) -> bool:
    """Whether all episodes are there, by the headers of their files."""
    if not (directory / RECIPE).exists():
        return False
    infos, damaged = scan(directory, recipe.kind)
    present = {_ident(info.path) for info in infos}
    return not damaged and present == {recipe.ident(i) for i in range(len(recipe.jobs))}


def _make(recipe: Recipe, directory: Path, workers: int) -> None:
    """`make_dataset` of one process at a time."""
    finished = (directory / RECIPE).exists()
    sweep_leftovers(directory)
    done = _present(recipe, directory, thorough=not finished)
    todo = [i for i in range(len(recipe.jobs)) if i not in done]
    _check_disk(recipe, directory, len(todo))
    with (
        simulator_errors(),
        StopRequest(at_once=True),
        progress(len(recipe.jobs), len(done), f"making {recipe.name}", "episodes") as bar,
    ):
        _run(recipe, directory, todo, workers, bar)
    summary = summarise(recipe, directory)
    with atomic_write(directory / RECIPE, "w") as file:
        json.dump(summary, file, indent=1)


def _run(recipe, directory, todo, workers, bar) -> None:
    from envs.workers import WorkerFailure, run_jobs

    failures: list[WorkerFailure] = []
    results = run_jobs(
        recipe.function,
        [dict(recipe.jobs[i]) for i in todo],
        min(workers, max(1, len(todo))),
        failed=failures.append,
    )
    for position, episode in results:
        index = todo[position]
        if isinstance(episode, WorkerFailure):
            raise MachineError(f"episode {index} of {recipe.name} failed twice: {episode.reason}")
        save_episode(directory, episode, stamp=STAMP, ident=recipe.ident(index))
        bar.update()
    if failures:
        warn(
            f"{len(failures)} episodes were discarded and made again, since their simulators "
            f"failed; the last: {failures[-1].reason}"
        )


def _ident(path: Path) -> str:
    """Which episode a file is, of `Recipe.ident`."""
    return path.stem.removeprefix(f"{STAMP}-").split("-")[0]


def _present(recipe: Recipe, directory: Path, thorough: bool) -> set[int]:
    """Which episodes are there and readable; damaged ones are removed.

    `thorough` reads the files whole and not their headers alone.
    """
    indices = {recipe.ident(i): i for i in range(len(recipe.jobs))}
    infos, damaged = scan(directory, recipe.kind)
    present = {}
    for path in [*(info.path for info in infos), *(error.path for error in damaged)]:
        ident = _ident(path)
        if ident not in indices:
            raise UserError(
                f"{path}: no episode of this recipe ({recipe.name}, {recipe.hash}); "
                f"name another folder"
            )
        present[path] = indices[ident]
    for path in [info.path for info in infos] if thorough else []:
        try:
            load_episode(path, EPISODE_KEYS[recipe.kind])
        except DamagedEpisode as error:
            damaged.append(error)
    for error in damaged:
        warn(f"{error}; making it again")
        error.path.unlink()
        present.pop(error.path)
    return set(present.values())


def summarise(recipe: Recipe, directory: Path) -> dict:
    """What a finished dataset holds: recipe, returns, success."""
    summary = {
        "name": recipe.name,
        "kind": recipe.kind,
        "hash": recipe.hash,
        "function": recipe.function,
        "episodes": len(recipe.jobs),
        "first_job": dict(recipe.jobs[0]),
        "details": dict(recipe.details),
    }
    if recipe.kind == "target":
        numbers = [load_episode(p, ("reward", "success")) for p in sorted(directory.glob("*.npz"))]
        summary |= {
            "mean_return": float(np.mean([e["reward"].sum() for e in numbers])),
            "success": float(np.mean([e["success"].max() > 0 for e in numbers])),
            "frames": int(sum(len(e["reward"]) for e in numbers)),
        }
    return summary


def _check_disk(recipe: Recipe, directory: Path, count: int) -> None:
    """Says what a dataset will take before it is begun, and stops if there is no room for it."""
    if not count:
        return
    job = recipe.jobs[0]
    frames = count * recipe.frames
    store = frames * job.get("image_size", 64) ** 2 * 3  # the frame store, built next
    need = store + store // 3  # zip leaves about a third
    seconds = frames * 0.02 / 2
    print(
        f"making {count} episodes of {recipe.name} in {directory}: about {need / 1e6:.0f} MB "
        f"and {duration(max(10, seconds))}",
        flush=True,
    )
    require_free(directory, need, f"{recipe.name}, {count} episodes,")


def _in_range(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"--{key} {value}: from {low} to {high}")
