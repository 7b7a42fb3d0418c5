"""DreamerV3's joint stage: its losses by hand, who learns from which, and what is not trained."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Update
from veorl_tf.nets.vision import preprocess

SEED = tf.constant([8, 9])
AGENTS = ["dmc_vision dreamerv3", "minedojo dreamerv3", "dmc_vision dreamerv3_nature"]
SPEAK = {"behavior.horizon": 4, "behavior.slow_every": 1}


@pytest.fixture
def speaking(tiny_config, fresh_agent, random_batches, rng):
    """`speaking(blocks)`: agent, joint stage and a batch; the heads that start at zero say
    something."""

    def make(names, overrides=None):
        config = tiny_config(names, SPEAK | dict(overrides or {}))
        agent = fresh_agent(config)
        for name in ("reward", "critic", "slow_critic"):
            kernel = agent.nets[name].out.kernel
            kernel.assign(rng.normal(0, 0.5, kernel.shape))
        agent.nets["discount"].out.bias.assign([1.0])
        (stage,) = agent.stages()
        return agent, stage, random_batches(stage, config)

    return make


@pytest.mark.parametrize("names", AGENTS)
def test_model_terms_by_hand(names, speaking):
    agent, _, batches = speaking(names)
    batch, model, keys = batches["target"], agent.model, agent.config
    terms, posterior, _ = model.losses(batch, SEED)
    features = model.rssm.features(posterior)
    image = batch["image"].numpy() / 255 - 0.5
    error = ((model.decoder(features).numpy() - image) ** 2).sum((2, 3, 4))
    assert terms["image"].numpy() == pytest.approx(error.mean(), rel=1e-4), "not its half"
    loss = agent.parts.scalar.loss(model.reward_head(features), batch["reward"])
    assert terms["reward"].numpy() == pytest.approx(np.mean(loss), rel=1e-4)
    probability = 1 / (1 + np.exp(-model.discount_head(features).numpy()[..., 0]))
    decides = keys.behavior.discount == "mode"
    label = (1.0 if decides else keys.behavior.gamma) * batch["discount"].numpy()
    cross = -(label * np.log(probability) + (1 - label) * np.log(1 - probability))
    assert terms["discount"].numpy() == pytest.approx(cross.mean(), rel=1e-3)
    expected = keys.behavior.gamma * (probability > 0.5) if decides else probability
    np.testing.assert_allclose(model.discount(features), expected, rtol=1e-4)
    left, right = posterior, model.rssm.prior(posterior["deter"])
    kl = model.rssm.latent.kl(left, right).numpy()
    for name in ("dyn", "rep"):
        assert terms[name].numpy() == pytest.approx(np.maximum(kl, 1.0).mean(), rel=1e-4)
    assert set(terms) == set(model.loss_names)


@pytest.mark.parametrize("names", AGENTS)
def test_a_window_starts_afresh(names, speaking):
    """What led to its first frame belongs to a state that is not known."""
    agent, _, batches = speaking(names)
    batch = dict(batches["target"])
    before, _ = agent.model.observe(batch, SEED)
    other = tf.reverse(batch["action"][:, :1], [-1]) + 0.3
    batch["action"] = tf.concat([other, batch["action"][:, 1:]], 1)
    after, _ = agent.model.observe(batch, SEED)
    np.testing.assert_array_equal(before["deter"], after["deter"])
    state = agent.model.rssm.initial(3)
    embed = agent.model.encoder(preprocess(batch["image"]))[:, 0]
    blank = tf.zeros([3, agent.action_space.size])
    noise = agent.latent.noise(SEED, [4, 3])[0]
    first = agent.model.rssm.observe_step(state, blank, embed, noise)
    np.testing.assert_allclose(after["logit"][:, 0], first["logit"], atol=1e-4)


def test_the_replay_loss_by_hand(speaking):
    """Lambda-returns of stored rewards over the imagined returns, state after state."""
    agent, stage, batches = speaking("dmc_vision dreamerv3_nature")
    batch, learner, keys = batches["target"], agent.learner, agent.config.behavior
    seeds = tf.random.split(SEED, 3)
    posterior, _ = agent.model.observe(batch, seeds[0])
    flat = {k: tf.reshape(v, [-1, *v.shape[2:]]) for k, v in posterior.items()}
    goes_on = batch["discount"].numpy()
    imagined = learner.losses(flat, seeds[1], tf.reshape(batch["discount"], [-1]))[2]
    boot, reward = imagined.numpy().reshape(3, 4), batch["reward"].numpy()
    target = np.zeros((3, 3))
    following = boot[:, -1]
    for t in (2, 1, 0):
        mixed = (1 - keys["lambda"]) * boot[:, t + 1] + keys["lambda"] * following
        target[:, t] = following = reward[:, t + 1] + keys.gamma * goes_on[:, t + 1] * mixed
    features = agent.model.rssm.features(posterior)[:, :3]
    logits, slow = learner.critic(features), learner.scalar.mean(learner.slow(features))
    error = learner.scalar.loss(logits, tf.constant(target, tf.float32))
    error += learner.scalar.loss(logits, slow)
    terms, _ = stage.losses(batches, SEED)
    assert terms["replay_critic"].numpy() == pytest.approx(np.mean(error), rel=1e-3)
    assert stage.scales["replay_critic"] == 0.3


@pytest.mark.parametrize("gradient", ["dynamics", "reinforce", "both"])
@pytest.mark.parametrize("names", ["dmc_vision dreamerv3", "dmc_vision dreamerv3_nature"])
def test_each_loss_trains_what_it_should(names, gradient, speaking):
    """The actor's loss passes through model and critic, and trains the actor alone; the loss on
    stored sequences trains critic and model."""
    agent, stage, batches = speaking(
        names, {"behavior.gradient": gradient, "behavior.replay_value": 0.3}
    )
    weights = agent.weights()
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = stage.losses(batches, SEED)
    reached = {}
    for term, value in terms.items():
        grads = tape.gradient(value, weights, unconnected_gradients="zero")
        moved = (p for p, g in grads.items() if np.abs(tf.convert_to_tensor(g)).max() > 0)
        reached[term] = {path.split("/")[0] for path in moved}
    assert reached["actor"] == {"actor"} and reached["critic"] == {"critic"}
    assert reached["replay_critic"] == {"critic", "trunk", "encoder"}
    assert reached["image"] == {"encoder", "trunk", "image"}
    assert reached["reward"] == {"encoder", "trunk", "reward"}


def test_the_actor_learns_through_model_and_critic(speaking):
    """Frozen is not cut off: without what reward head and critic say, the actor learns nothing."""
    agent, stage, batches = speaking(
        "dmc_vision dreamerv3", {"behavior.entropy": 0.0, "behavior.slow_pull": 0.0}
    )

    def slope():
        with tf.GradientTape() as tape:
            terms, _ = stage.losses(batches, SEED)
        grads = tape.gradient(terms["actor"], agent.weights("actor"))
        return max(np.abs(g).max() for g in grads.values())

    both = slope()
    for name in ("reward", "critic"):
        kernel = agent.nets[name].out.kernel
        kept = kernel.numpy()
        kernel.assign(tf.zeros(kernel.shape))
        assert 0 < slope() != both, f"the other one still speaks, without {name}"
        kernel.assign(kept)
    for name in ("reward", "critic"):
        agent.nets[name].out.kernel.assign(tf.zeros(agent.nets[name].out.kernel.shape))
    assert slope() == 0


@pytest.mark.parametrize("names", AGENTS)
def test_an_update_trains_model_actor_and_critic(names, speaking, snapshot):
    agent, stage, batches = speaking(names)
    stage.start()
    update = Update(stage, 0)
    update(batches, 0)
    before = snapshot(agent)
    update(batches, 1)
    after = snapshot(agent)
    for net in agent.nets:
        paths = [p for p in after if p.startswith(f"{net}/")]
        changed = [p for p in paths if not np.array_equal(before[p], after[p])]
        assert changed, net
        if net == "slow_critic":
            for path in paths:
                expected = 0.98 * before[path] + 0.02 * before[path[5:]]
                np.testing.assert_allclose(after[path], expected, rtol=1e-4, atol=1e-7)
    evaluated = update.evaluate(batches, 2)
    assert all(np.isfinite(v.numpy()) for v in evaluated.values())
    for path, value in snapshot(agent).items():
        np.testing.assert_array_equal(value, after[path], err_msg=f"{path} after evaluate")


def test_the_slow_critic_starts_as_a_copy(speaking):
    agent, stage, batches = speaking("dmc_vision dreamerv3")
    before = {v.path: v.numpy().copy() for v in agent.nets["critic"].weights}
    stage.start()
    Update(stage, 0)(batches, 0)
    for variable in agent.nets["slow_critic"].weights:
        np.testing.assert_array_equal(variable, before[variable.path[5:]])


@pytest.mark.parametrize("names", AGENTS)
def test_the_range_of_returns_is_learnt(names, speaking):
    """From 0, a hundredth at a time; it is at least 1; and no batch can make it NaN."""
    agent, _, _ = speaking(names)
    scale = agent.nets["return_scale"]
    assert scale.range.numpy().tolist() == [0, 0]
    returns = tf.constant(np.linspace(-100, 300, 1001).reshape(7, 143), tf.float32)
    averages = scale.update(returns)
    np.testing.assert_allclose(averages, [-0.8, 2.8], rtol=1e-4)
    assert scale.divisor(averages).numpy() == pytest.approx(3.6, rel=1e-4)
    assert scale.divisor(scale.update(returns / 1e6)).numpy() == 1
    metrics = {"return_low": averages[0], "return_high": averages[1]}
    agent.learner.keep_scale(metrics, tf.constant(False))
    assert scale.range.numpy().tolist() == [0, 0], "of an update that was not made"
    agent.learner.keep_scale(metrics, tf.constant(True))
    np.testing.assert_allclose(scale.update(returns), [-1.592, 5.572], rtol=1e-4)
    for bad in (np.nan, np.inf):
        broken = tf.concat([returns[:, :-1], tf.fill([7, 1], np.float32(bad))], 1)
        np.testing.assert_array_equal(scale.update(broken), averages)


def test_a_fresh_agent_predicts_no_reward_and_no_value(tiny_config, fresh_agent, start_states):
    for names in AGENTS:
        agent = fresh_agent(tiny_config(names))
        features = agent.model.rssm.features(start_states(agent))
        assert not agent.model.reward(features).numpy().any()
        assert not agent.learner.scalar.mean(agent.learner.critic(features)).numpy().any()


def test_veorl_on_either_backbone_is_the_same_file(tiny_config, fresh_agent):
    agents = [fresh_agent(tiny_config(f"metaworld {name}")) for name in ("veorl", "veorl_dv3")]
    assert type(agents[0]) is type(agents[1])
    names = [[stage.name for stage in agent.stages()] for agent in agents]
    assert names[0] == names[1] == ["abstraction", "model", "behavior"]
    scales = [stage.scales for stage in agents[1].stages()]
    kl = {"dyn": 0.5, "rep": 0.1}
    domains = ("target", "source")
    assert scales[0] == {"image": 1.0, "vq": 1.0, "mmd": 5.0, **kl}
    assert scales[1] == {
        **{"image": 1.0, "reward": 1.0, "discount": 1.0, "mmd": 5.0, **kl},
        **{f"plan_{k}_{d}": v for k, v in ({"image": 1.0} | kl).items() for d in domains},
        **{f"bc_{d}": 1.0 for d in domains},
    }
