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


def test_misses_aim_beside_the_object():
    """The expert is told of another place; the share of such episodes is as given, and the others
    are those of `medium`."""
    rngs = [np.random.default_rng(i) for i in range(400)]
    made = [experts.Behaviour("metaworld_door_close", "misses", rng) for rng in rngs]
    beside = np.array([behaviour.beside for behaviour in made])
    aside = beside.any(1)
    assert aside.mean() == pytest.approx(experts.MISSES["share"], abs=0.08)
    spread = beside[aside].std(0) / experts.MISSES["metres"]
    np.testing.assert_allclose(spread, (1, 1, 0.5), rtol=0.15)
    assert all(b.kind == "medium" and b.scale > 0 for b in made)
    miss, hit = made[int(np.argmax(aside))], made[int(np.argmin(aside))]
    for behaviour in (miss, hit):
        behaviour.scale, behaviour.noise = 0.0, experts.Noise((0, 0), 0)
    differs = []
    for state in np.random.default_rng(0).uniform(-0.2, 0.2, (50, 39)):
        given, told = state.copy(), state.copy()
        told[4:7] += miss.beside
        action = miss.act(state, 0)
        expected = np.clip(hit.expert.get_action(told), -1, 1)
        np.testing.assert_allclose(action, expected, rtol=1e-6)
        differs.append(np.abs(hit.act(state, 0) - action).max() > 0.1)
        np.testing.assert_array_equal(state, given)
    assert np.mean(differs) > 0.3


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
