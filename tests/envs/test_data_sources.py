"""Scripted episodes and source clips."""

import numpy as np
import pytest

from envs import experts, fetch
from envs.workers import run_jobs

SHORT = dict(action_repeat=2, time_limit=200)


def results(function, jobs):
    found = dict(run_jobs(function, jobs, 2, timeout=180))
    return [found[i] for i in range(len(jobs))]


@pytest.fixture(scope="module")
def door_close():
    """Two equal expert episodes with pictures, then qualities without."""
    job = dict(task="metaworld_door_close", seed=11, **SHORT)
    blind = [
        dict(job, quality=q, seed=s, render=False)
        for q in ("expert", "medium", "random", "mixed")
        for s in range(8)
    ]
    return results(
        "envs.experts:rollout", [dict(job, quality="expert"), dict(job, quality="expert"), *blind]
    )


def test_an_episode_has_the_exchange_format(door_close):
    episode = door_close[0]
    assert {k: (v.shape, v.dtype.name) for k, v in episode.items()} == {
        "image": ((101, 64, 64, 3), "uint8"),
        "action": ((101, 4), "float32"),
        "reward": ((101,), "float32"),
        "success": ((101,), "float32"),
        "discount": ((101,), "float32"),
    }
    assert not episode["action"][0].any() and episode["reward"][0] == 0
    assert np.abs(episode["action"]).max() <= 1 and np.abs(episode["action"][1:]).max() > 0.5
    assert np.all(episode["discount"] == 1)


def test_the_same_seed_gives_the_same_bytes(door_close):
    assert all(np.array_equal(door_close[0][k], door_close[1][k]) for k in door_close[0])


def test_qualities_differ_as_named(door_close):
    success = {
        q: [e["success"].max() for e in door_close[2 + 8 * i : 10 + 8 * i]]
        for i, q in enumerate(("expert", "medium", "random", "mixed"))
    }
    assert np.mean(success["expert"]) == 1 and np.mean(success["random"]) == 0
    assert 0 < np.mean(success["medium"]) < 1
    returns = [
        np.mean([e["reward"].sum() for e in door_close[2 + 8 * i : 10 + 8 * i]]) for i in range(3)
    ]
    assert returns[0] > returns[1] > returns[2]


def test_handle_press_is_held_at_its_goal():
    episodes = results(
        "envs.experts:rollout",
        [
            dict(task="metaworld_handle_press", quality="expert", seed=s, render=False, **SHORT)
            for s in range(3)
        ],
    )
    for episode in episodes:
        first = np.flatnonzero(episode["success"])[0]
        assert episode["success"][first:].mean() > 0.6


def test_unknown_quality():
    with pytest.raises(ValueError, match="medium"):
        experts.Behaviour("metaworld_reach", "good", np.random.default_rng(0))


def test_source_clips_differ_by_camera_and_behaviour_and_move():
    job = dict(kind="push", seed=2, length=12, image_size=64)
    clips = results(
        "envs.fetch:source_clip",
        [
            dict(job, camera=fetch.CLIP_CAMERAS[0], behaviour="scripted"),
            dict(job, camera=fetch.CLIP_CAMERAS[0], behaviour="scripted"),
            dict(job, camera=fetch.CLIP_CAMERAS[1], behaviour="scripted"),
            dict(job, camera=fetch.CLIP_CAMERAS[0], behaviour="random"),
        ],
    )
    images = [clip["image"].astype(int) for clip in clips]
    assert all(image.shape == (12, 64, 64, 3) for image in images)
    assert np.array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).mean() > 5
    assert np.abs(images[0] - images[3]).mean() > 0.5
    for image in images:
        assert np.mean(np.abs(image[1:] - image[:-1]).max((1, 2, 3)) > 30) > 0.5  # it moves
