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


def head(net, x):
    return net(x).numpy().astype(np.float64)


def symexp(x):
    return np.sign(x) * np.expm1(np.abs(x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def mean_by_hand(agent, logits):
    """What a head says of a number: DreamerV2's is it, DreamerV3's a distribution over bins."""
    scalar = agent.parts.scalar
    if scalar.outputs == 1:
        return logits[..., 0]
    mean = (softmax(logits) * scalar.bins.astype(np.float64)).sum(-1)
    return mean if scalar.raw else symexp(mean)


def loss_by_hand(agent, logits, target):
    scalar = agent.parts.scalar
    if scalar.outputs == 1:
        return 0.5 * (logits[..., 0] - target) ** 2
    bins = scalar.bins.astype(np.float64)
    x = target if scalar.raw else np.sign(target) * np.log1p(np.abs(target))
    above = np.clip(np.searchsorted(bins, x, "right"), 1, len(bins) - 1)
    share = (x - bins[above - 1]) / (bins[above] - bins[above - 1])
    log_probs = np.log(softmax(logits))
    take = lambda i: np.take_along_axis(log_probs, i[..., None], -1)[..., 0]
    return -(1 - share) * take(above - 1) - share * take(above)


def losses_by_hand(agent, rollout, goes_on=None):
    """Sections 3.3 and 3.4 of VeoRL's spec, A.1 of DreamerV2's, A.2 and A.3 of DreamerV3's, state
    after state."""
    learner, keys = agent.learner, agent.config.behavior
    x, n = rollout.inputs.critic, len(rollout.inputs.critic)
    slow, fast = (mean_by_hand(agent, head(net, x)) for net in (learner.slow, learner.critic))
    value = slow if keys.slow_target else fast
    reward = agent.reward(rollout, SEED)[0].numpy()
    if "discount" in agent.nets:
        logit = head(agent.nets["discount"], agent.model.rssm.features(rollout.state))[..., 0]
        discount = 1 / (1 + np.exp(-logit))
        discount = keys.gamma * (discount > 0.5) if keys.discount == "mode" else discount
    else:
        discount = np.full((n, COUNT), keys.gamma)
    first = np.ones(COUNT)
    if keys.indexing == "dreamerv3":  # R_t = r_{t+1} + d_{t+1} ...
        reward, discount = reward[1:], discount[1:]
        first = first if goes_on is None else goes_on
    else:
        reward, discount = reward[:-1], discount[:-1]
        if keys.indexing == "dreamerv2" and goes_on is not None:
            discount[0] = keys.gamma * goes_on
    target = returns_by_hand(reward, value, discount, keys["lambda"])
    weight = first * np.cumprod(np.concatenate([np.ones((1, COUNT)), discount[:-1]]), 0)
    divisor = 1.0
    if keys.return_rate:
        low, high = np.array([-3.0, 5.0]) * (1 - keys.return_rate) + keys.return_rate * np.array(
            np.percentile(target, [5, 95])
        )
        divisor = max(1.0, high - low)
    entropy = learner.action.entropy(rollout.policy).numpy()
    log_prob = learner.action.log_prob(rollout.policy, rollout.action).numpy()
    actor, later = [], int(keys.indexing == "dreamerv2")
    for t in range(len(target) - later):
        judged, baseline = target[t + later], fast[t] if keys.indexing != "dreamerv2" else slow[t]
        reinforce = log_prob[t] * (judged - baseline) / divisor
        share = {"dynamics": 1.0, "reinforce": 0.0, "both": keys.mix}[learner.gradient]
        objective = share * judged / divisor + (1 - share) * reinforce
        actor.append(weight[t] * (objective + keys.entropy * entropy[t]))
    logits = head(learner.critic, x)[: len(target)]
    error = loss_by_hand(agent, logits, target)
    error = error + keys.slow_pull * loss_by_hand(agent, logits, slow[: len(target)])
    return -np.mean(actor), (weight * error).mean(), target


def test_losses_by_hand(case):
    agent, start = case
    first = np.linspace(0, 0.9, COUNT, dtype=np.float32) if "discount" in agent.nets else None
    terms, metrics, returns = agent.learner.losses(
        start, SEED, None if first is None else tf.constant(first)
    )
    actor, critic, target = losses_by_hand(agent, agent.learner.rollout(start, SEED), first)
    assert terms["actor"].numpy() == pytest.approx(actor, rel=1e-3)
    assert terms["critic"].numpy() == pytest.approx(critic, rel=1e-3)
    assert metrics["return"].numpy() == pytest.approx(target.mean(), rel=1e-3)
    assert metrics["return_std"].numpy() == pytest.approx(target.std(), rel=1e-3)
    np.testing.assert_allclose(returns, target[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "head", "seeds"),
    [
        ("minedojo dreamerv2", True, 2),
        ("minedojo dreamerv2", False, 2),
        ("minedojo dreamerv3", True, 3),
    ],
)
def test_the_learner_starts_from_every_posterior_state(
    names, head, seeds, tiny_config, fresh_agent, random_batches, monkeypatch
):
    """And knows where the data ended, if a head learns when episodes do. (The stage splits its seed
    into `seeds`, the first of which is the model's.)"""
    config = tiny_config(names, {"v2.discount_head": head})
    agent = fresh_agent(config)
    stage = agent.stages()[-1]
    batches = random_batches(stage, config)
    seen = {}

    def learner(start, seed, first):
        seen.update(start=start, first=first)
        return {}, {}, None

    monkeypatch.setattr(agent.learner, "losses", learner)
    stage.losses(batches, SEED)
    posterior, _ = agent.model.observe(batches["target"], tf.random.split(SEED, seeds)[0])
    for key, value in posterior.items():
        flat = value.numpy().reshape(-1, *value.shape[2:])
        np.testing.assert_allclose(seen["start"][key], flat, atol=1e-6)
    if agent.parts.has_discount:
        expected = batches["target"]["discount"].numpy().reshape(-1)
        np.testing.assert_allclose(seen["first"], expected, rtol=1e-6)
    else:
        assert seen["first"] is None


def test_one_of_the_critics_makes_the_targets(case):
    """DreamerV2's slow one, DreamerV3's fast one."""
    agent, start = case
    value = lambda: agent.learner.losses(start, SEED)[1]["return"].numpy()
    names = ["critic", "slow_critic"]
    names = names if agent.config.behavior.slow_target else names[::-1]
    before, rng = value(), np.random.Generator(np.random.Philox(3))
    for variable in agent.nets[names[0]].weights:
        variable.assign(variable + 0.3)
    assert value() == before
    for variable in agent.nets[names[1]].weights:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape))
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
        terms, _, _ = agent.learner.losses(start, SEED)
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
