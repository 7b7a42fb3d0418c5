"""Losses and gradients of the behaviour learner (invariants 20 to 23 of VeoRL's spec, and
DreamerV2's indexing)."""

import numpy as np
import pytest
import tensorflow as tf

SEED = tf.constant([8, 9])
COUNT = 5


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
    terms, metrics = agent.learner.losses(
        start, SEED, None if first is None else tf.constant(first)
    )
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
def test_dynamics_learns_from_rewards_and_values_alone(names, imagining):
    """With constant rewards and values, and no entropy bonus, nothing is left."""
    overrides = {"behavior.entropy": 0.0, "veorl.intrinsic_scale": 0.0}
    agent, start = imagining(names, overrides)
    actor, loss = agent.weights("actor"), lambda: agent.learner.losses(start, SEED)[0]["actor"]
    assert size(gradient(loss, actor)) > 1e-4
    for name in ("reward", "slow_critic"):
        out = agent.nets[name].out
        out.kernel.assign(tf.zeros(out.kernel.shape))
        out.bias.assign([1.7])
    assert size(gradient(loss, actor)) == 0


def test_the_intrinsic_reward_alone_trains_the_actor(imagining):
    """It is not detached: the actor learns to go where the plan net expects it."""
    agent, start = imagining("metaworld veorl", {"behavior.entropy": 0.0})
    for name in ("reward", "slow_critic"):
        agent.nets[name].out.kernel.assign(tf.zeros(agent.nets[name].out.kernel.shape))
    loss = lambda: agent.learner.losses(start, SEED)[0]["actor"]
    assert size(gradient(loss, agent.weights("actor"))) > 1e-5


@pytest.mark.parametrize("names", ["metaworld veorl", "dmc_vision dreamerv2"])
def test_actions_are_judged_through_states_alone(names, imagining):
    """The policy's input has its gradient stopped; the next state, and the code, have not."""
    agent, start = imagining(names)
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


@pytest.mark.parametrize("case", ["veorl, categorical", "dreamer, reinforce"], indirect=True)
def test_reinforce_takes_returns_and_baseline_as_constants(case):
    agent, start = case
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


def test_weights_take_no_gradient(imagining):
    """The discount head shapes returns, but not how often a state counts."""
    agent, start = imagining(
        "minedojo veorl", {"behavior.gradient": "dynamics", "behavior.lambda": 0.0}
    )
    for name in ("slow_critic", "reward"):  # values and rewards that do not depend on the state
        agent.nets[name].out.kernel.assign(tf.zeros(agent.nets[name].out.kernel.shape))
    agent.nets["slow_critic"].out.bias.assign([0.0])
    loss = lambda: agent.learner.losses(start, SEED)[0]["actor"]
    with_head = gradient(loss, agent.weights("discount"))
    assert size(with_head) == 0, "values are 0: only the weights still see the discount head"


def test_entropy_is_rewarded(imagining):
    losses = []
    for entropy in (0.0, 0.5):
        agent, start = imagining("metaworld dreamerv2", {"behavior.entropy": entropy})
        rng = np.random.Generator(np.random.Philox(3))
        for variable in (v for net in agent.nets.values() for v in net.weights):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        losses.append(agent.learner.losses(start, SEED)[0]["actor"].numpy())
    rollout = agent.learner.rollout(start, SEED)
    entropy = agent.learner.action.entropy(rollout.policy).numpy()
    weight = 0.99 ** np.arange(len(entropy))[:, None]
    assert losses[0] - losses[1] == pytest.approx(0.5 * (weight * entropy).mean(), rel=1e-3)
    assert (entropy < 4 * np.log(2)).all()
