"""Acting: resets, determinism, bounds (invariants 26 and 27 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.vision import preprocess

SEED = tf.constant([3, 5])
FIRST = tf.constant([True, True, True])
LATER = tf.constant([False, False, False])


@pytest.fixture(
    params=[
        "metaworld veorl",
        "minedojo veorl",
        "metaworld dreamerv2",
        "metaworld dreamerv3",
        "minedojo dreamerv3_nature",
        "metaworld veorl_dv3",
    ]
)
def agent(request, tiny_config, fresh_agent, rng):
    agent = fresh_agent(tiny_config(request.param))
    agent.nets["actor"].out.bias.assign(rng.normal(0, 1, agent.nets["actor"].out.bias.shape))
    return agent


@pytest.fixture
def images(rng):
    return tf.constant(rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))


def equal(left, right):
    for a, b in zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_episode_starts_from_the_initial_state(agent, images):
    start = agent.policy(images, FIRST, agent.initial(3), SEED)
    equal(agent.policy(images, LATER, agent.initial(3), SEED), start)
    used = start[1]
    equal(agent.policy(images, FIRST, used, SEED), start)
    mixed = agent.policy(images, tf.constant([True, False, True]), used, SEED)
    carried = agent.policy(images, LATER, used, SEED)
    for key, value in mixed[1].items():
        np.testing.assert_allclose(value[0], start[1][key][0], atol=1e-6)
        np.testing.assert_allclose(value[1], carried[1][key][1], atol=1e-6)
    assert np.abs(carried[1]["deter"] - start[1]["deter"]).max() > 1e-3


def test_the_state_is_the_posterior_under_the_last_action(agent, images, monkeypatch):
    zero = lambda seed, leading: tf.zeros([*leading, *agent.latent.noise_shape])
    monkeypatch.setattr(agent.latent, "noise", zero)
    rssm, state = agent.model.rssm, agent.initial(3)
    latent, action = rssm.initial(3), tf.zeros([3, agent.action_space.size])
    for t in range(3):
        frame = images if t != 1 else 255 - images
        embed = agent.model.encoder(preprocess(frame))
        latent = rssm.observe_step(latent, action, embed, zero(None, [3]))
        x = agent.features((), latent, SEED).actor
        expected = agent.learner.action.mode(agent.learner.action.stats(agent.learner.actor(x)))
        action, state = agent.policy(frame, LATER if t else FIRST, state, SEED)
        np.testing.assert_allclose(action, expected, atol=1e-5)
        np.testing.assert_array_equal(state["action"], action)
        for key, value in latent.items():
            np.testing.assert_allclose(state[key], value, atol=1e-5)


def test_it_is_deterministic_given_the_seed(agent, images):
    first = agent.policy(images, FIRST, agent.initial(3), SEED)
    equal(agent.policy(images, FIRST, agent.initial(3), SEED), first)
    other = agent.policy(images, FIRST, agent.initial(3), tf.constant([3, 6]))
    assert not np.array_equal(other[1]["stoch"], first[1]["stoch"]), "the latent is sampled"
    np.testing.assert_array_equal(other[1]["deter"], first[1]["deter"])
    stats = set(agent.latent.shapes)
    for key in stats:
        np.testing.assert_array_equal(other[1][key], first[1][key])


@pytest.mark.parametrize("sample", [False, True])
def test_actions_are_valid(agent, sample, rng):
    images = tf.constant(rng.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8))
    first = tf.fill([40], True)
    action, _ = agent.policy(images, first, agent.initial(40), SEED, sample=sample)
    action = action.numpy()
    if agent.action_space.discrete:
        np.testing.assert_array_equal(np.sort(action, -1)[:, -1], np.ones(40))
        np.testing.assert_array_equal(action.sum(-1), np.ones(40))
        assert (len(np.unique(action.argmax(-1))) > 3) == sample
    else:
        assert np.abs(action).max() <= 1
        mode, _ = agent.policy(images, first, agent.initial(40), SEED)
        assert (np.abs(action - mode).mean(0) > 0.2).all() == sample


def test_one_graph_serves_every_batch_size(agent, images):
    state = {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for k, v in agent.initial(1).items()}
    policy = tf.function(
        agent.policy,
        input_signature=[
            tf.TensorSpec([None, 64, 64, 3], tf.uint8),
            tf.TensorSpec([None], tf.bool),
            state,
            tf.TensorSpec([2], tf.int32),
        ],
    )
    for count in (1, 3):
        args = images[:count], FIRST[:count], agent.initial(count), SEED
        action, following = policy(*args)
        expected, expected_state = agent.policy(*args)
        np.testing.assert_allclose(action, expected, atol=1e-5)
        for key, value in expected_state.items():
            np.testing.assert_allclose(following[key], value, atol=1e-5)
    assert policy.experimental_get_tracing_count() == 1


def test_acting_needs_no_more_than_encoder_trunk_cloner_codes_and_actor(
    tiny_config, fresh_agent, images
):
    agent = fresh_agent(tiny_config("metaworld veorl"))
    weights = agent.weights()
    with tf.GradientTape() as tape:
        action, state = agent.policy(images, FIRST, agent.initial(3), SEED)
        action, state = agent.policy(images, LATER, state, SEED)
        total = tf.reduce_sum(action)
    grads = tape.gradient(total, weights)
    used = {path.split("/")[0] for path, grad in grads.items() if grad is not None}
    assert used == {"encoder", "trunk", "bc", "actor"}  # and the codebook, without a gradient


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_stays_inside(precision, tiny_config, fresh_agent, images):
    """Whoever holds actions and states, a robot's NumPy for example, sees float32."""
    agent = fresh_agent(tiny_config("metaworld veorl", {"precision": precision}))
    action, state = agent.policy(images, FIRST, agent.initial(3), SEED)
    action, state = agent.policy(images, LATER, state, SEED)
    assert np.isfinite(action).all() and np.abs(action).max() <= 1
    assert action.dtype == tf.float32
    assert {k: v.dtype.name for k, v in state.items()} == dict.fromkeys(state, "float32")
