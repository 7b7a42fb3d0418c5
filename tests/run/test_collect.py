"""Datasets: what names them, and that what is missing, damaged or foreign is found."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import envs.workers
from envs import experts
from veorl_tf.core import files
from veorl_tf.core.errors import Interrupted, MachineError, UserError
from veorl_tf.data.episodes import load_episode, scan
from veorl_tf.run import collect
from veorl_tf.run.collect import Recipe, make_dataset, source_recipe, target_recipe
from veorl_tf.run.evaluate import FIRST_GOAL

ROOT = Path(__file__).parents[2]
TASK = "metaworld_door_close"
ENV = {
    "image_size": 64,
    "action_repeat": 2,
    "time_limit": 40,
    "camera": "corner",
    "render_quality": "fast",
    "view": "rows",
}


def target(**changes) -> Recipe:
    base = {"task": TASK, "quality": "medium", "episodes": 5, "seed": 0, "env": ENV}
    return target_recipe(**(base | changes))


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.npz"))}


def test_the_hash_tells_every_option():
    changes = [{}, {"quality": "expert"}, {"episodes": 4}, {"seed": 1}, {"task": "metaworld_reach"}]
    changes += [
        {"env": ENV | {key: value}}
        for key, value in [
            ("image_size", 32),
            ("action_repeat", 1),
            ("time_limit", 38),
            ("camera", "corner2"),
            ("render_quality", "full"),
            ("view", "true"),
        ]
    ]
    recipes = [target(**change) for change in changes]
    recipes += [
        source_recipe(*options)
        for options in [(4, 9, 0, 64), (5, 9, 0, 64), (4, 8, 0, 64), (4, 9, 1, 64), (4, 9, 0, 32)]
    ]
    hashes = [recipe.hash for recipe in recipes]
    assert len(set(hashes)) == len(hashes)
    assert target().hash == hashes[0] and source_recipe(4, 9, 0, 64).hash == hashes[-5]
    assert all(len(h) == 10 and int(h, 16) >= 0 for h in hashes)


def test_the_hash_tells_the_noise(monkeypatch):
    """Tuned anew, a quality is another dataset, though its name and options are the same."""
    before = target()
    monkeypatch.setitem(experts.MEDIUM, TASK, {"short": 8, "long": 8})
    assert target().hash != before.hash and target().jobs == before.jobs
    assert target().details["noise"] != before.details["noise"]
    before = target(quality="misses").hash
    monkeypatch.setitem(experts.MISSES, "share", 0.5)
    assert target(quality="misses").hash != before


def test_every_episode_has_its_name_and_seed():
    recipe = target(episodes=300)
    idents = {recipe.ident(i) for i in range(300)} | {target().ident(i) for i in range(5)}
    assert len(idents) == 305 and all(len(ident) == 32 for ident in idents)
    seeds = [job["seed"] for seed in (0, 1, 999) for job in target(episodes=300, seed=seed).jobs]
    assert len(set(seeds)) == 900 and max(seeds) < FIRST_GOAL


def test_source_clips_are_of_many_worlds():
    recipe = source_recipe(40, 9, 0, 64)
    worlds = {(job["kind"], job["camera"], job["behaviour"]) for job in recipe.jobs}
    assert len(worlds) == 40 and len({job["seed"] for job in recipe.jobs}) == 40
    assert {job["length"] for job in recipe.jobs} == {9}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"episodes": 0}, "--data.collect_episodes 0"),
        ({"seed": -1}, "--data.seed -1: from 0 to 999"),
        ({"seed": 1000}, "--data.seed 1000"),
        (
            {"quality": "perfect"},
            "--data.collect_quality perfect: one of random, medium, expert, mixed, misses",
        ),
        ({"task": "none"}, "--task none"),
    ],
)
def test_wrong_recipes(change, words):
    with pytest.raises(UserError, match=words):
        target(**change)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five real episodes of 20 decisions."""
    return make_dataset(target(), tmp_path_factory.mktemp("made") / "set", workers=2)


def test_a_dataset_and_its_description(dataset):
    infos, damaged = scan(dataset)
    assert [info.length for info in infos] == [21] * 5 and not damaged
    episodes = [load_episode(info.path) for info in infos]
    assert all(not e["action"][0].any() and e["reward"][0] == 0 for e in episodes)
    assert all(e["image"][1:].std() > 10 for e in episodes)  # pictures, not a blank screen
    summary = json.loads((dataset / collect.RECIPE).read_text())
    assert summary["episodes"] == 5 and summary["hash"] == target().hash
    assert summary["frames"] == 105 and summary["first_job"]["quality"] == "medium"
    assert summary["mean_return"] == pytest.approx(np.mean([e["reward"].sum() for e in episodes]))
    assert summary["success"] == np.mean([e["success"].max() > 0 for e in episodes])


def test_interrupted_damaged_and_continued(dataset, tmp_path, monkeypatch, capfd):
    """A signal after two episodes; one of them is then cut. In the end the bytes are the same."""
    directory, saved = tmp_path / "set", []
    save = collect.save_episode

    def save_and_stop(*args, **kwargs):
        saved.append(save(*args, **kwargs))
        if len(saved) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return saved[-1]

    with monkeypatch.context() as patch:
        patch.setattr(collect, "save_episode", save_and_stop)
        with pytest.raises(Interrupted):
            make_dataset(target(), directory, workers=1)
    assert len(contents(directory)) == 2 and not (directory / collect.RECIPE).exists()
    kept = saved[0].stat().st_mtime_ns
    # Cut inside the data of an array: the headers alone look right.
    whole = saved[1].read_bytes()
    saved[1].write_bytes(whole[:2000] + bytes(100) + whole[2100:])
    capfd.readouterr()
    make_dataset(target(), directory, workers=2)
    assert f"{saved[1].name}" in capfd.readouterr().err
    assert contents(directory) == contents(dataset)
    assert saved[0].stat().st_mtime_ns == kept
    assert (directory / collect.RECIPE).read_text() == (dataset / collect.RECIPE).read_text()


def test_a_finished_dataset_is_mended(dataset, monkeypatch, capfd):
    before = contents(dataset)
    first, second, *_ = sorted(dataset.glob("*.npz"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:999])
    make_dataset(target(), dataset, workers=1)
    assert contents(dataset) == before
    assert second.name in capfd.readouterr().err
    # Whole, nothing is done: no worker is started.
    monkeypatch.setattr(envs.workers, "run_jobs", None)
    assert make_dataset(target(), dataset, workers=1) == dataset


def test_foreign_episodes_stay_and_are_refused(dataset, tmp_path):
    for recipe in (target(quality="random"), source_recipe(2, 5, 0, 64)):
        with pytest.raises(UserError, match="no episode of this recipe"):
            make_dataset(recipe, dataset, workers=1)
    (tmp_path / "mine.npz").write_bytes(b"?")
    with pytest.raises(UserError, match="mine.npz"):
        make_dataset(target(), tmp_path, workers=1)
    assert (tmp_path / "mine.npz").read_bytes() == b"?"
    assert len(contents(dataset)) == 5


def test_a_job_that_fails_twice(tmp_path):
    recipe = Recipe(
        "broken",
        "target",
        "envs.experts:rollout",
        ({"task": TASK, "quality": "perfect", "seed": 0, **ENV},),
    )
    with pytest.raises(MachineError, match="episode 0 of broken failed twice.*perfect"):
        make_dataset(recipe, tmp_path / "set", workers=1)


def test_two_processes_make_it_once(tmp_path, capfd):
    """The second one waits, and finds it finished."""
    code = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_collect import target\n"
        "from veorl_tf.run.collect import make_dataset\n"
        "make_dataset(target(), pathlib.Path(sys.argv[1]), 1)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sum("waiting for process" in text for text in errors) == 1, errors
    assert sum(f"making {target().name}" in text for text in errors) == 1, errors
    assert make_dataset(target(), tmp_path / "set", 1) == tmp_path / "set"


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(MachineError, match="--datadir"):
        make_dataset(target(), tmp_path / "set", workers=1)
