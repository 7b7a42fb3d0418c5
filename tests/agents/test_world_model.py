"""The trunk world model's losses, recomputed by hand (invariant 29 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Stream
from veorl_tf.agents.world_model import flat_states
from veorl_tf.nets.vision import preprocess

SEED = tf.constant([5, 6])
STREAM = {"target": Stream("target", 4, ("image", "action", "reward", "discount"))}


class Streams:
    """Enough of a stage for `random_batches`."""

    streams = STREAM
    columns = ()


@pytest.fixture(params=["metaworld", "minedojo"])
def setting(request, tiny_config, fresh_agent, random_batches):
    config = tiny_config(f"{request.param} dreamerv2")
    agent = fresh_agent(config)
    return config, agent, random_batches(Streams, config)["target"]


def test_terms_are_likelihoods_of_the_posterior_features(setting):
    config, agent, batch = setting
    model = agent.model
    terms, posterior, metrics = model.losses(batch, SEED)
    assert set(terms) == set(model.loss_names)
    features = model.rssm.features(posterior)
    image = batch["image"].numpy() / 255.0 - 0.5
    error = 0.5 * ((model.decoder(features).numpy() - image) ** 2).sum((2, 3, 4))
    assert error.shape == (3, 4), "frame 0 counts"
    assert terms["image"].numpy() == pytest.approx(error.mean(), rel=1e-5)
    reward = batch["reward"].numpy()
    if config.data.reward == "tanh":
        assert np.abs(np.tanh(np.tanh(reward)) - np.tanh(reward)).max() > 0.1
        reward = np.tanh(reward)
    predicted = model.reward(features).numpy()
    assert terms["reward"].numpy() == pytest.approx(
        0.5 * ((predicted - reward) ** 2).mean(), rel=1e-4
    )
    assert metrics["kl_nats"] >= 0


def test_the_posterior_is_driven_by_the_action_that_led_to_the_frame(setting):
    _, agent, batch = setting
    model = agent.model
    _, posterior, _ = model.losses(batch, SEED)
    noise = model.rssm.latent.noise(SEED, [4, 3])
    state = model.rssm.initial(3)
    embed = model.encoder(preprocess(batch["image"]))
    for t in range(4):
        state = model.rssm.observe_step(state, batch["action"][:, t], embed[:, t], noise[t])
        for key in state:
            np.testing.assert_allclose(posterior[key][:, t], state[key], atol=1e-4)


def test_the_discount_head_learns_gamma_times_the_datas_discount(
    tiny_config, fresh_agent, random_batches
):
    """Once: the label is in the head, and what the head says is used as it is."""
    config = tiny_config("minedojo dreamerv2")
    agent = fresh_agent(config)
    model, batch = agent.model, random_batches(Streams, config)["target"]
    terms, posterior, _ = model.losses(batch, SEED)
    features = model.rssm.features(posterior)
    probability = model.discount(features).numpy().astype(np.float64)
    label = 0.997 * batch["discount"].numpy()
    assert set(np.unique(batch["discount"])) == {0.0, 1.0}
    expected = -(label * np.log(probability) + (1 - label) * np.log(1 - probability))
    assert terms["discount"].numpy() == pytest.approx(expected.mean(), rel=1e-4)
    for variable in model.discount_head.weights:
        variable.assign(tf.zeros(variable.shape))
    model.discount_head.out.bias.assign([np.log(0.997 / 0.003)])
    np.testing.assert_allclose(model.discount(features), np.full((3, 4), 0.997), rtol=1e-4)


def test_without_a_head_the_discount_is_gamma(tiny_config, fresh_agent):
    agent = fresh_agent(tiny_config("metaworld dreamerv2", {"behavior.gamma": 0.9}))
    discount = agent.model.discount(tf.zeros([5, 2, agent.model.rssm.feature_size]))
    np.testing.assert_array_equal(discount, np.full((5, 2), 0.9, np.float32))


def test_every_loss_reaches_the_world_model(setting):
    """The gradients of image, reward and discount losses all train encoder and RSSM."""
    _, agent, batch = setting
    weights = agent.weights()
    with tf.GradientTape(persistent=True) as tape:
        terms, _, _ = agent.model.losses(batch, SEED)
    for name, term in terms.items():
        if name == "kl":
            continue  # nothing under the free nats
        grads = tape.gradient(term, weights)
        for path in ("encoder/conv0/kernel", "trunk/obs_dist/kernel", "trunk/cell/dense/kernel"):
            assert np.abs(grads[path]).max() > 0, f"{name} -> {path}"


def test_flat_states_keep_their_order_and_no_gradient(rng):
    states = {"stoch": tf.constant(rng.normal(size=(2, 3, 4, 5)), tf.float32)}
    with tf.GradientTape() as tape:
        tape.watch(states)
        flat = flat_states(states)
    np.testing.assert_array_equal(flat["stoch"], states["stoch"].numpy().reshape(6, 4, 5))
    assert tape.gradient(flat["stoch"], states["stoch"]) is None
