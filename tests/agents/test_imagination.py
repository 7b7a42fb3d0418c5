"""Rollouts, rewards, returns and gradients of the behaviour learner (invariants 18 to 24 of VeoRL's
spec, and DreamerV2's indexing)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.objectives import safe_norm

SEED = tf.constant([8, 9])
COUNT, HORIZON = 5, 4

AGENTS = {
    "veorl": ("metaworld veorl", {}),
    "veorl, categorical": ("minedojo veorl", {}),
    "veorl, both": ("metaworld veorl", {"behavior.gradient": "both", "behavior.mix": 0.3}),
    "veorl, dreamer's indexing": ("minedojo veorl", {"behavior.indexing": "dreamerv2"}),
    "dreamer": ("metaworld dreamerv2", {}),
    "dreamer, its own indexing": ("dmc_vision dreamerv2", {}),
    "dreamer, reinforce": (
        "dmc_vision dreamerv2",
        {"behavior.gradient": "reinforce", "v2.discount_head": True},
    ),
}


@pytest.fixture
def build(tiny_config, fresh_agent, silent, start_states, rng):
    """An agent without noise whose heads say something, and states to start from."""

    def make(names, overrides=None, count=COUNT):
        common = {"behavior.horizon": HORIZON, "behavior.entropy": 0.05}
        agent = silent(fresh_agent(tiny_config(names, common | dict(overrides or {}))))
        for name in ("reward", "critic", "slow_critic", "discount", "actor"):
            for variable in agent.nets[name].weights if name in agent.nets else []:
                variable.assign(rng.normal(0, 0.5, variable.shape))
        return agent, start_states(agent, count)

    return make


@pytest.fixture(params=AGENTS)
def case(request, build):
    return build(*AGENTS[request.param])


def states(agent) -> int:
    """How many states a rollout of HORIZON has."""
    return HORIZON + (agent.config.behavior.indexing == "dreamerv2")


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
    assert agent.reward(rollout, SEED)[0].shape == (n - 1, COUNT)
    assert agent.discount(rollout).shape == (n - 1, COUNT)


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


# ----- the intrinsic reward -----------------------------------------------------------------------


def intrinsic(agent, rollout):
    extrinsic = agent.model.reward(agent.model.rssm.features({k: v[:-1] for k, v in rollout.state.items()}))
    reward, metrics = agent.reward(rollout, SEED)
    return reward.numpy() - extrinsic.numpy(), metrics


def by_hand(agent, rollout, shift=0):
    """Minus the distance of s_t to what the plan net makes of s_{t-1} (`shift`: of another)."""
    rewards = [np.zeros(COUNT)]
    for t in range(1, rollout.action.shape[0]):
        before = at(rollout, t - 1 + shift)
        code = agent.ban.codebook.snap(agent.cloner(agent.model.rssm.features(before)))
        planned = agent.plan.imagine_step(before, code, agent.latent.noise(None, [COUNT]))
        gap = agent.plan.features(planned) - agent.model.rssm.features(at(rollout, t))
        rewards.append(-np.linalg.norm(gap, axis=-1))
    return np.array(rewards)


@pytest.mark.parametrize("name", ["veorl", "veorl, categorical", "veorl, dreamer's indexing"])
def test_intrinsic_reward_by_hand(name, build):
    agent, start = build(*AGENTS[name])
    rollout = agent.learner.rollout(start, SEED)
    actual, metrics = intrinsic(agent, rollout)
    expected = by_hand(agent, rollout)
    assert not actual[0].any() and np.abs(expected[1:]).min() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
    assert metrics["intrinsic_reward"].numpy() == pytest.approx(expected.mean(), rel=1e-3)
    shifted = by_hand(agent, rollout, shift=1)
    assert np.abs(actual - shifted)[1:].max() > 1e-2, "a shift by one is something else"


def test_intrinsic_reward_has_its_own_scale(build):
    agent, start = build("metaworld veorl", {"veorl.intrinsic_scale": 0.25})
    rollout = agent.learner.rollout(start, SEED)
    actual, metrics = intrinsic(agent, rollout)
    np.testing.assert_allclose(actual, 0.25 * by_hand(agent, rollout), rtol=1e-3, atol=1e-5)
    reward = agent.model.reward(agent.model.rssm.features({k: v[:-1] for k, v in rollout.state.items()}))
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


def test_no_intrinsic_reward_where_plan_and_trunk_agree(build):
    """The plan net made a copy of the trunk, and the code replaced by the action."""
    agent, start = build("metaworld veorl", {"action.size": 8})
    agent.copy("trunk", "plan")
    weights = agent.weights("actor")
    with tf.GradientTape() as tape:
        rollout = agent.learner.rollout(start, SEED)
        code = tf.concat([rollout.action, rollout.action[-1:]], 0)
        inputs = rollout.inputs._replace(extras={"code": code})
        reward, metrics = agent.reward(rollout._replace(inputs=inputs), SEED)
        total = tf.reduce_sum(reward)
    assert metrics["intrinsic_reward"].numpy() == pytest.approx(0, abs=1e-5)
    for gradient in tape.gradient(total, weights).values():
        assert np.isfinite(gradient).all()
    assert safe_norm(tf.zeros([3])).numpy() == 0


# ----- losses -------------------------------------------------------------------------------------


def returns_by_hand(reward, value, discount, lambda_):
    targets = np.zeros_like(reward)
    following = value[-1]
    for t in reversed(range(len(reward))):
        mixed = (1 - lambda_) * value[t + 1] + lambda_ * following
        targets[t] = following = reward[t] + discount[t] * mixed
    return targets


def losses_by_hand(agent, rollout, start_discount=None):
    """Sections 3.3 and 3.4 of VeoRL's spec, and A.1 of DreamerV2's, state after state."""
    learner, keys = agent.learner, agent.config.behavior
    dreamer = keys.indexing == "dreamerv2"
    x = rollout.inputs.critic
    slow, fast = (net(x)[..., 0].numpy() for net in (learner.slow, learner.critic))
    reward = agent.reward(rollout, SEED)[0].numpy()
    n = len(x)
    if "discount" in agent.nets:
        logit = agent.nets["discount"](agent.model.rssm.features(rollout.state))[..., 0].numpy()
        discount = (1 / (1 + np.exp(-logit)))[: n - 1]
        if dreamer and start_discount is not None:
            discount[0] = start_discount
    else:
        discount = np.full((n - 1, COUNT), keys.gamma)
    target = returns_by_hand(reward, slow, discount, keys["lambda"])
    weight = np.cumprod(np.concatenate([np.ones((1, COUNT)), discount[:-1]]), 0)
    entropy = learner.action.entropy(rollout.policy).numpy()
    log_prob = learner.action.log_prob(rollout.policy, rollout.action).numpy()
    actor = []
    for t in range(n - 2 if dreamer else n - 1):
        judged = target[t + 1] if dreamer else target[t]
        baseline = slow[t] if dreamer else fast[t]
        reinforce = log_prob[t] * (judged - baseline)
        share = {"dynamics": 1.0, "reinforce": 0.0, "both": keys.mix}[keys.gradient]
        objective = share * judged + (1 - share) * reinforce
        actor.append(weight[t] * (objective + keys.entropy * entropy[t]))
    critic = 0.5 * weight * (fast[: n - 1] - target) ** 2
    return -np.mean(actor), critic.mean(), target


def test_losses_by_hand(case):
    agent, start = case
    first = np.linspace(0, 0.9, COUNT, dtype=np.float32) if "discount" in agent.nets else None
    terms, metrics = agent.learner.losses(start, SEED, None if first is None else tf.constant(first))
    actor, critic, target = losses_by_hand(agent, agent.learner.rollout(start, SEED), first)
    assert terms["actor"].numpy() == pytest.approx(actor, rel=1e-3)
    assert terms["critic"].numpy() == pytest.approx(critic, rel=1e-3)
    assert metrics["return"].numpy() == pytest.approx(target.mean(), rel=1e-3)
    assert metrics["return_std"].numpy() == pytest.approx(target.std(), rel=1e-3)


@pytest.mark.parametrize("head", [True, False])
def test_the_learner_starts_from_every_posterior_state(
    head, tiny_config, fresh_agent, random_batches, monkeypatch
):
    """And from the data's discount, times gamma, where a head learns discounts."""
    config = tiny_config("minedojo dreamerv2", {"v2.discount_head": head})
    agent = fresh_agent(config)
    stage = agent.stages()[1]
    batches = random_batches(stage, config)
    seen = {}
    monkeypatch.setattr(
        agent.learner, "losses", lambda start, seed, first: seen.update(start=start, first=first)
    )
    agent.behavior_losses(batches, SEED)
    posterior, _ = agent.model.observe(batches["target"], tf.unstack(tf.random.split(SEED, 2))[0])
    for key, value in posterior.items():
        flat = value.numpy().reshape(-1, *value.shape[2:])
        np.testing.assert_allclose(seen["start"][key], flat, atol=1e-6)
    if head:
        expected = 0.997 * batches["target"]["discount"].numpy().reshape(-1)
        np.testing.assert_allclose(seen["first"], expected, rtol=1e-6)
    else:
        assert seen["first"] is None


def test_the_slow_critic_makes_the_targets(case):
    agent, start = case
    value = lambda: agent.learner.losses(start, SEED)[1]["return"].numpy()
    before = value()
    for variable in agent.nets["critic"].weights:
        variable.assign(variable + 0.3)
    assert value() == before
    for variable in agent.nets["slow_critic"].weights:
        variable.assign(variable + 0.3)
    assert abs(value() - before) > 1e-3


# ----- gradients ----------------------------------------------------------------------------------


def gradient(loss, weights):
    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, weights, unconnected_gradients="zero")


def size(grads) -> float:
    return max(float(np.abs(tf.convert_to_tensor(g)).max()) for g in grads.values())


def test_each_loss_trains_its_own_net(case):
    agent, start = case
    weights = agent.weights()
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = agent.learner.losses(start, SEED)
    for term in ("actor", "critic"):
        grads = tape.gradient(terms[term], weights, unconnected_gradients="zero")
        reached = {path.split("/")[0] for path, grad in grads.items() if size({path: grad})}
        assert reached & {"actor", "critic"} == {term}
        assert term == "actor" or reached == {"critic"}


@pytest.mark.parametrize("names", ["metaworld veorl", "dmc_vision dreamerv2"])
def test_dynamics_learns_from_rewards_and_values_alone(names, build):
    """With constant rewards and values, and no entropy bonus, nothing is left."""
    overrides = {"behavior.entropy": 0.0, "veorl.intrinsic_scale": 0.0}
    agent, start = build(names, overrides)
    actor, loss = agent.weights("actor"), lambda: agent.learner.losses(start, SEED)[0]["actor"]
    assert size(gradient(loss, actor)) > 1e-4
    for name in ("reward", "slow_critic"):
        out = agent.nets[name].out
        out.kernel.assign(tf.zeros(out.kernel.shape))
        out.bias.assign([1.7])
    assert size(gradient(loss, actor)) == 0


def test_the_intrinsic_reward_alone_trains_the_actor(build):
    """It is not detached: the actor learns to go where the plan net expects it."""
    agent, start = build("metaworld veorl", {"behavior.entropy": 0.0})
    for name in ("reward", "slow_critic"):
        agent.nets[name].out.kernel.assign(tf.zeros(agent.nets[name].out.kernel.shape))
    loss = lambda: agent.learner.losses(start, SEED)[0]["actor"]
    assert size(gradient(loss, agent.weights("actor"))) > 1e-5


@pytest.mark.parametrize("names", ["metaworld veorl", "dmc_vision dreamerv2"])
def test_actions_are_judged_through_states_alone(names, build):
    """The policy's input has its gradient stopped; the next state, and the code, have not."""
    agent, start = build(names)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(start)
        rollout = agent.learner.rollout(start, SEED)
        policy, action = rollout.policy["mean"], rollout.action
        last = rollout.state["deter"][-1]
        code = rollout.inputs.extras.get("code")
    for stopped in (policy, action):
        assert tape.gradient(stopped, start["stoch"]) is None
    assert np.abs(tape.gradient(last, start["stoch"])).max() > 0
    actor = agent.weights("actor")
    assert size(gradient(lambda: agent.learner.rollout(start, SEED).state["deter"][-1], actor)) > 0
    if code is not None:
        assert np.abs(tape.gradient(code, start["stoch"])).max() > 0


@pytest.mark.parametrize("name", ["veorl, categorical", "dreamer, reinforce"])
def test_reinforce_takes_returns_and_baseline_as_constants(name, build):
    agent, start = build(*AGENTS[name])
    learner, keys = agent.learner, agent.config.behavior
    actor = agent.weights("actor")
    actual = gradient(lambda: learner.losses(start, SEED)[0]["actor"], actor)
    rollout = learner.rollout(start, SEED)
    dreamer = keys.indexing == "dreamerv2"
    _, _, target = losses_by_hand(agent, rollout)
    terms = len(target) - dreamer
    x = rollout.inputs.actor[:terms]
    baseline = (learner.slow if dreamer else learner.critic)(x)[..., 0].numpy()
    discount = agent.discount(rollout).numpy()
    weight = np.cumprod(np.concatenate([np.ones((1, COUNT)), discount[:-1]]), 0)[:terms]
    advantage = target[dreamer:] - baseline

    def loss():
        policy = learner.action.stats(learner.actor(x))
        objective = learner.action.log_prob(policy, rollout.action[:terms]) * advantage
        objective += keys.entropy * learner.action.entropy(policy)
        return -tf.reduce_mean(weight * objective)

    for path, expected in gradient(loss, actor).items():
        np.testing.assert_allclose(actual[path], expected, rtol=2e-3, atol=1e-5, err_msg=path)


def test_weights_take_no_gradient(build):
    """The discount head shapes returns, but not how often a state counts."""
    agent, start = build("minedojo veorl", {"behavior.gradient": "dynamics", "behavior.lambda": 0.0})
    for name in ("slow_critic", "reward"):  # values and rewards that do not depend on the state
        agent.nets[name].out.kernel.assign(tf.zeros(agent.nets[name].out.kernel.shape))
    agent.nets["slow_critic"].out.bias.assign([0.0])
    loss = lambda: agent.learner.losses(start, SEED)[0]["actor"]
    with_head = gradient(loss, agent.weights("discount"))
    assert size(with_head) == 0, "values are 0: only the weights still see the discount head"


def test_entropy_is_rewarded(build):
    losses = []
    for entropy in (0.0, 0.5):
        agent, start = build("metaworld dreamerv2", {"behavior.entropy": entropy})
        rng = np.random.Generator(np.random.Philox(3))
        for variable in (v for net in agent.nets.values() for v in net.weights):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        losses.append(agent.learner.losses(start, SEED)[0]["actor"].numpy())
    rollout = agent.learner.rollout(start, SEED)
    entropy = agent.learner.action.entropy(rollout.policy).numpy()
    weight = 0.99 ** np.arange(len(entropy))[:, None]
    assert losses[0] - losses[1] == pytest.approx(0.5 * (weight * entropy).mean(), rel=1e-3)
    assert (entropy < 4 * np.log(2)).all()
