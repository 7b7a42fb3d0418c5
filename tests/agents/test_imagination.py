"""Rollouts and rewards of the behaviour learner (invariants 18, 19 and 24 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.objectives import safe_norm
from veorl_tf.core.errors import UserError

SEED = tf.constant([8, 9])
COUNT = 5


def states(agent) -> int:
    """How many states a rollout has."""
    return agent.config.behavior.horizon + (agent.config.behavior.indexing != "veorl")


def at(rollout, t):
    return {k: v[t] for k, v in rollout.state.items()}


# ----- rollouts -----------------------------------------------------------------------------------


def test_shapes(case):
    agent, start = case
    rollout = agent.learner.rollout(start, SEED)
    n, width = states(agent), agent.model.rssm.feature_size
    if agent.config.agent == "veorl":
        assert rollout.inputs.extras["code"].shape == (n, COUNT, 8)
        width += 8
    assert rollout.inputs.actor.shape == rollout.inputs.critic.shape == (n, COUNT, width)
    assert rollout.action.shape == (n - 1, COUNT, agent.action_space.size)
    assert all(v.shape[:2] == (n - 1, COUNT) for v in rollout.policy.values())
    assert {k: v.shape for k, v in rollout.state.items()} == {
        k: (n, *v.shape) for k, v in start.items()
    }
    assert agent.reward(rollout, SEED)[0].shape == (n, COUNT)
    assert agent.discount(rollout).shape == (n, COUNT)


def test_a_rollout_is_a_loop_over_the_models_steps(case):
    agent, start = case
    learner, rssm = agent.learner, agent.model.rssm
    rollout = learner.rollout(start, SEED)
    state = start
    for t in range(states(agent)):
        for key, value in state.items():
            np.testing.assert_allclose(rollout.state[key][t], value, atol=1e-4)
        features = rssm.features(state)
        if agent.config.agent == "veorl":
            y, table = agent.cloner(features).numpy(), agent.ban.codebook.codebook.numpy()
            code = table[((y[:, None] - table) ** 2).sum(-1).argmin(-1)]
            np.testing.assert_array_equal(rollout.inputs.extras["code"][t], code)
            features = tf.concat([features, code], -1)
        np.testing.assert_allclose(rollout.inputs.actor[t], features, atol=1e-4)
        np.testing.assert_allclose(rollout.inputs.critic[t], features, atol=1e-4)
        if t == states(agent) - 1:
            break
        policy = learner.action.stats(learner.actor(features))
        action = learner.action.sample(policy, learner.action.noise(None, [COUNT]))
        for key, value in policy.items():
            np.testing.assert_allclose(rollout.policy[key][t], value, atol=1e-4)
        np.testing.assert_allclose(rollout.action[t], action, atol=1e-4)
        state = rssm.imagine_step(state, action, agent.latent.noise(None, [COUNT]))


@pytest.mark.parametrize("names", ["metaworld veorl", "minedojo veorl", "carla dreamerv2"])
def test_actions_are_within_bounds(names, tiny_config, fresh_agent, start_states):
    agent = fresh_agent(tiny_config(names))
    action = agent.learner.rollout(start_states(agent, 200), SEED).action.numpy()
    if agent.action_space.discrete:
        np.testing.assert_array_equal(np.sort(action, -1)[..., -1], np.ones(action.shape[:2]))
        np.testing.assert_array_equal(action.sum(-1), np.ones(action.shape[:2]))
        assert len(np.unique(action.argmax(-1))) > 1
    else:
        assert action.min() > -1 and action.max() < 1 and action.std() > 0.3


def test_every_step_has_its_own_noise(tiny_config, fresh_agent, start_states):
    agent = fresh_agent(tiny_config("metaworld veorl"))
    start = {k: tf.repeat(v[:1], 40, 0) for k, v in start_states(agent).items()}
    rollout = agent.learner.rollout(start, SEED)
    for values in (rollout.action.numpy(), rollout.state["stoch"].numpy()[1:]):
        assert len(np.unique(values[..., 0])) == values[..., 0].size
    again = agent.learner.rollout(start, SEED)
    np.testing.assert_array_equal(again.action, rollout.action)
    other = agent.learner.rollout(start, tf.constant([8, 10]))
    assert not np.array_equal(other.action, rollout.action)


@pytest.mark.parametrize("indexing", ["veorl", "dreamerv2"])
def test_a_horizon_too_short_to_learn_from_is_refused(indexing, tiny_config, make_agent):
    """One state has no return; one return (dreamerv2) judges no action: crash, or NaN losses."""
    with pytest.raises(UserError, match="horizon"):
        make_agent(
            tiny_config("metaworld veorl", {"behavior.horizon": 1, "behavior.indexing": indexing})
        )


# ----- the intrinsic reward -----------------------------------------------------------------------


def intrinsic(agent, rollout):
    extrinsic = agent.model.reward(agent.model.rssm.features(rollout.state))
    reward, metrics = agent.reward(rollout, SEED)
    return reward.numpy() - extrinsic.numpy(), metrics


def by_hand(agent, rollout, shift=0):
    """Minus the distance of s_t to what the plan net makes of s_{t-1} (`shift`: of another)."""
    rewards = [np.zeros(COUNT)]
    for t in range(1, len(rollout.state["deter"])):
        before = at(rollout, t - 1 + shift)
        code = agent.ban.codebook.snap(agent.cloner(agent.model.rssm.features(before)))
        planned = agent.plan.imagine_step(before, code, agent.latent.noise(None, [COUNT]))
        gap = agent.plan.features(planned) - agent.model.rssm.features(at(rollout, t))
        rewards.append(-np.linalg.norm(gap, axis=-1))
    return np.array(rewards)


@pytest.mark.parametrize(
    "case", ["veorl", "veorl, categorical", "veorl, dreamer's indexing", "veorl_dv3"], indirect=True
)
def test_intrinsic_reward_by_hand(case):
    agent, start = case
    rollout = agent.learner.rollout(start, SEED)
    actual, metrics = intrinsic(agent, rollout)
    expected = by_hand(agent, rollout)
    assert not actual[0].any() and np.abs(expected[1:]).min() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
    assert metrics["intrinsic_reward"].numpy() == pytest.approx(expected.mean(), rel=1e-3)
    shifted = by_hand(agent, rollout, shift=1)
    assert np.abs(actual - shifted)[1:].max() > 1e-2, "a shift by one is something else"


def test_intrinsic_reward_has_its_own_scale(imagining):
    agent, start = imagining("metaworld veorl", {"veorl.intrinsic_scale": 0.25})
    rollout = agent.learner.rollout(start, SEED)
    actual, metrics = intrinsic(agent, rollout)
    np.testing.assert_allclose(actual, 0.25 * by_hand(agent, rollout), rtol=1e-3, atol=1e-5)
    reward = agent.model.reward(agent.model.rssm.features(rollout.state))
    assert metrics["extrinsic_reward"].numpy() == pytest.approx(np.mean(reward), rel=1e-4)


@pytest.mark.parametrize("names", ["metaworld veorl", "minedojo veorl"])
def test_intrinsic_reward_may_compare_means(names, tiny_config, fresh_agent, start_states):
    """Then only the path of the rollout is random: two different plan noises make no difference."""
    agent = fresh_agent(tiny_config(names, {"veorl.intrinsic_mean": True}))
    rollout = agent.learner.rollout(start_states(agent), SEED)
    first, second = (agent.reward(rollout, tf.constant(seed))[0] for seed in ([1, 2], [3, 4]))
    np.testing.assert_array_equal(first, second)
    sampled = fresh_agent(tiny_config(names))
    first, second = (sampled.reward(rollout, tf.constant(seed))[0] for seed in ([1, 2], [3, 4]))
    assert np.abs(first - second).max() > 1e-3


def test_no_intrinsic_reward_where_plan_and_trunk_agree(imagining):
    """The plan net made a copy of the trunk, and the code replaced by the action."""
    agent, start = imagining("metaworld veorl", {"action.size": 8})
    agent.copy("trunk", "plan")
    weights = agent.weights("actor")
    with tf.GradientTape() as tape:
        rollout = agent.learner.rollout(start, SEED)
        code = tf.concat([rollout.action, rollout.action[-1:]], 0)  # the last one is not used
        inputs = rollout.inputs._replace(extras={"code": code})
        reward, metrics = agent.reward(rollout._replace(inputs=inputs), SEED)
        total = tf.reduce_sum(reward)
    assert metrics["intrinsic_reward"].numpy() == pytest.approx(0, abs=1e-5)
    for gradient in tape.gradient(total, weights).values():
        assert np.isfinite(gradient).all()
    assert safe_norm(tf.zeros([3])).numpy() == 0
