"""Meta-World and Fetch behind gymnasium, as worker processes see them."""

import numpy as np
import pytest

import envs
from envs.errors import BadOption, UnknownTask
from envs.workers import run_jobs


def call(function, *jobs):
    """Results of a function of tests/envs/jobs.py for several jobs, in their order."""
    results = dict(run_jobs(f"tests.envs.jobs:{function}", list(jobs), 2, timeout=120))
    return [results[i] for i in range(len(jobs))]


@pytest.fixture(scope="module")
def episodes():
    base = dict(task="metaworld_door_close", seed=3, steps=6, action_repeat=2)
    variants = [
        {},
        {},
        {"seed": 4},
        {"view": "true"},
        {"render_quality": "full", "steps": 1},
        {"render": False},
        {"task": "fetch_push"},
    ]
    return call("episode", *[base | v for v in variants])


def test_the_same_seed_gives_the_same_episode(episodes):
    (frames, rows, state), (again, same_rows, same_state) = episodes[:2]
    assert frames.shape == (7, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, again) and np.array_equal(rows, same_rows)
    assert np.array_equal(state, same_state)


def test_another_seed_draws_another_goal(episodes):
    goal, other = episodes[0][2][-3:], episodes[2][2][-3:]
    assert np.any(goal != 0) and not np.allclose(goal, other)  # and the goal is not hidden
    assert not np.array_equal(episodes[0][0][0], episodes[2][0][0])


def test_the_picture_is_upright_and_moves(episodes):
    frames = episodes[0][0].astype(float)
    assert frames.std() > 20 and np.abs(frames[1:] - frames[:-1]).max() > 30
    top, bottom = frames[0, :8, -24:], frames[0, -24:, -24:]
    assert top.std() < 5 and abs(top.mean() - 126) < 6  # the grey wall is above
    assert bottom.std() > 15  # the table's edge and the floor below


def test_the_true_view_is_the_mirror_image(episodes):
    assert np.array_equal(episodes[0][0], episodes[3][0][:, :, ::-1])


def test_full_quality_is_another_picture(episodes):
    difference = np.abs(episodes[0][0][0].astype(int) - episodes[4][0][0]).mean()
    assert 0.3 < difference < 40


def test_without_rendering_only_the_picture_is_missing(episodes):
    frames, rows, _ = episodes[5]
    assert not frames.any() and np.array_equal(rows, episodes[0][1])


def test_fetch_is_another_world(episodes):
    frames, _, _ = episodes[6]
    assert frames.shape == (7, 64, 64, 3)
    assert np.abs(frames[0].astype(int) - episodes[0][0][0]).mean() > 20


def test_rewards_are_summed_over_repeats():
    ((summed, repeated),) = call(
        "repeated", dict(task="metaworld_reach", seed=1, repeat=3, decisions=5)
    )
    np.testing.assert_allclose(repeated, summed, rtol=1e-6)
    assert np.all(repeated > 0)


def test_bad_actions_and_steps_after_the_end_are_refused():
    ((messages, ends),) = call("refusals", {})
    assert ends == [False, True]
    assert "finite" in messages[0] and "4" in messages[1] and "reset" in messages[2]


def test_all_fifty_tasks_by_name_without_tensorflow():
    assert call("all_names", {}) == [(50, False)]


def test_named_groups_exist():
    assert set(envs.VEORL_TASKS) | set(envs.COWORLD_TASKS) <= set(envs.TASKS())
    assert len(envs.VEORL_TASKS) == len(envs.COWORLD_TASKS) == 6


@pytest.mark.parametrize(
    "options, error, named",
    [
        (dict(task="metaworld_door_clos"), UnknownTask, "metaworld_door_close"),
        (dict(task="metaworld_reach", camera="corner9"), BadOption, "corner2"),
        (dict(task="metaworld_reach", view="up"), BadOption, "rows"),
        (dict(task="metaworld_reach", time_limit=501), BadOption, "time_limit"),
        (dict(task="metaworld_reach", action_repeat=0), BadOption, "action_repeat"),
    ],
)
def test_wrong_options_name_what_is_valid(options, error, named):
    with pytest.raises(error, match=named):
        envs.check(**options)
