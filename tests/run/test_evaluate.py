"""Evaluation in real simulators: repeatable, the same goals for everybody, robust to a crash."""

import os
import signal

import numpy as np
import pytest

from veorl_tf.core.errors import MachineError, UserError
from veorl_tf.run import evaluate
from veorl_tf.run.evaluate import FIRST_GOAL, AgentPolicy, Evaluator, Scores, random_policy

SPEC = {
    "task": "metaworld_door_close",
    "image_size": 64,
    "action_repeat": 2,
    "time_limit": 20,
    "camera": "corner",
    "render_quality": "fast",
    "view": "rows",
}
EPISODES, DECISIONS, WORKERS = 3, 10, 2


@pytest.fixture(scope="module")
def evaluator():
    with Evaluator(SPEC, WORKERS) as evaluator:
        yield evaluator


def by_sight(image, is_first, step):
    """Acts on the picture alone, so that a repeated episode goes as it would have gone."""
    corners = image.reshape(len(image), 2, 32, 2, 32, 3).mean((2, 4, 5)).reshape(len(image), 4)
    return np.sin(corners).astype(np.float32)


@pytest.fixture(scope="module")
def undisturbed(evaluator) -> Scores:
    return evaluator.run(by_sight, EPISODES, videos=EPISODES)


def test_the_same_policy_gives_the_same_scores(evaluator, undisturbed):
    again = evaluator.run(by_sight, EPISODES, videos=EPISODES)
    assert again.returns == undisturbed.returns and len(set(again.returns)) == EPISODES
    assert again.lengths == [DECISIONS] * EPISODES and again.failures == 0
    assert all(np.array_equal(a, b) for a, b in zip(again.videos, undisturbed.videos))
    assert [v.shape for v in again.videos] == [(DECISIONS + 1, 64, 64, 3)] * EPISODES


def test_recorded_episodes_are_whole(evaluator, undisturbed):
    """Also those that are not filmed; row t's action led to row t's picture."""
    recorded = {}
    scores = evaluator.run(by_sight, EPISODES, videos=1, record=recorded.__setitem__)
    assert scores.returns == undisturbed.returns and len(scores.videos) == 1
    assert sorted(recorded) == list(range(EPISODES))
    for index, video in enumerate(undisturbed.videos):
        episode = recorded[index]
        assert np.array_equal(episode["image"], video)
        np.testing.assert_array_equal(episode["action"][1:], by_sight(video[:-1], None, 0))
        assert episode["reward"].sum() == pytest.approx(undisturbed.returns[index])


def test_how_an_episode_ended_is_recorded():
    image, seen = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)
    for terminated in (False, True):
        episode = evaluate._Episode(0, film=True)
        episode.begin(({"image": image[0]}, {}), seen, 0)
        for step, success in enumerate((0.0, 1.0)):
            end = (terminated, True) if step else (False, False)
            result = ({"image": image[0] + step + 1}, 2.0 + step, *end, {"success": success})
            episode.advance(result, np.full(3, step + 0.5), seen, 0)
        arrays = episode.arrays()
        assert not episode.running and arrays["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
        assert arrays["reward"].tolist() == [0, 2, 3] and arrays["success"].tolist() == [0, 0, 1]
        assert arrays["action"][:, 0].tolist() == [0, 0.5, 1.5]
        assert arrays["discount"].tolist() == [1, 1, 0 if terminated else 1]


def test_goals_of_ones_own(evaluator, undisturbed):
    other = evaluator.run(by_sight, 1, 1, first_goal=evaluate.OTHER_GOAL)
    assert not np.array_equal(other.videos[0][0], undisturbed.videos[0][0])


def test_an_agent_too(evaluator, tiny_config):
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent

    agent = make_agent(tiny_config("metaworld dreamerv2"), ActionSpace(4, False))
    policy = AgentPolicy(agent, 0, WORKERS, update=6)
    others = [
        AgentPolicy(agent, seed, WORKERS, update) for seed, update in ((0, 6), (1, 6), (0, 5))
    ]
    once, again, *changed = [evaluator.run(p, EPISODES).returns for p in (policy, *others)]
    assert once == again == evaluator.run(policy, EPISODES).returns
    assert once not in changed and changed[0] != changed[1]


def test_every_policy_gets_the_same_goals(evaluator, undisturbed):
    random = evaluator.run(random_policy(4, False, 0, WORKERS), EPISODES, videos=EPISODES)
    first = [video[0] for video in random.videos]
    assert all(np.array_equal(a, video[0]) for a, video in zip(first, undisturbed.videos))
    assert not np.array_equal(first[0], first[1])
    assert random.returns != undisturbed.returns
    # An episode's goal does not depend on how many there are.
    fewer = evaluator.run(by_sight, 1, videos=1)
    assert fewer.returns == undisturbed.returns[:1]


def test_blind_simulators_have_the_same_goals(evaluator):
    policy = random_policy(4, False, 7, WORKERS)
    seen = evaluator.run(policy, WORKERS)
    with Evaluator({**SPEC, "render": False}, WORKERS) as blind:
        assert blind.run(policy, WORKERS).returns == seen.returns


def test_a_killed_simulator_is_replaced_and_counted(evaluator, undisturbed):
    killed = []

    def deadly(image, is_first, step):
        if step == 4 and not killed:
            killed.append(evaluator.pool.pids()[0])
            os.kill(killed[0], signal.SIGKILL)
        return by_sight(image, is_first, step)

    recorded = {}
    scores = evaluator.run(deadly, EPISODES, record=recorded.__setitem__)
    assert scores.failures == 1 and killed[0] not in evaluator.pool.pids()
    for index, video in enumerate(undisturbed.videos):
        assert np.array_equal(recorded[index]["image"], video)
    assert scores.returns == undisturbed.returns and scores.lengths == undisturbed.lengths


def test_it_gives_up_on_an_episode_that_always_fails(evaluator, monkeypatch):
    monkeypatch.setattr(evaluate, "PATIENCE", 2)

    def mad(image, is_first, step):
        action = by_sight(image, is_first, step)
        action[0] = np.nan
        return action

    with pytest.raises(MachineError, match="episode 0 failed 2 times, last: .*finite"):
        evaluator.run(mad, 1)


def test_random_is_deterministic_and_within_bounds():
    image, first = np.zeros((WORKERS, 64, 64, 3), np.uint8), np.ones(WORKERS, bool)
    draw = lambda discrete, seed: np.stack(
        [random_policy(6, discrete, seed, WORKERS)(image, first, step) for step in range(200)]
    )
    for discrete in (False, True):
        actions = draw(discrete, 0)
        assert actions.shape == (200, WORKERS, 6) and actions.dtype == np.float32
        assert np.array_equal(actions, draw(discrete, 0))
        assert not np.array_equal(actions, draw(discrete, 1))
        if discrete:
            assert (actions.sum(-1) == 1).all() and set(np.unique(actions)) == {0, 1}
            assert actions.mean((0, 1)).min() > 0.1
        else:
            assert -1 <= actions.min() < -0.95 and 0.95 < actions.max() <= 1
            assert abs(actions.mean()) < 0.1


def test_summary_by_hand():
    scores = Scores(returns=[1.0, 2.0, 6.0], success=[0.0, 1.0, 1.0], lengths=[3, 3, 6])
    summary = scores.summary()
    assert summary["return"] == 3 and summary["length"] == 4 and summary["episodes"] == 3
    assert summary["return_error"] == pytest.approx((14 / 2 / 3) ** 0.5)
    assert summary["success"] == pytest.approx(2 / 3)
    assert summary["success_error"] == pytest.approx((2 / 3 / 2 / 3) ** 0.5)
    assert Scores(returns=[1.0], success=[1.0], lengths=[3]).summary()["return_error"] == 0


def test_goals_are_not_those_of_a_dataset():
    from veorl_tf.run.collect import EPISODES_PER_SEED, LAST_SEED

    assert (LAST_SEED + 1) * EPISODES_PER_SEED <= FIRST_GOAL


def test_unknown_task():
    with pytest.raises(UserError, match="metaworld_door_close"):
        Evaluator({**SPEC, "task": "metaworld_door_clos"}, 1).run(by_sight, 1)
