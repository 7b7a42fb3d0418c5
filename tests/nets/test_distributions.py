"""Latents and actions: closed forms, brute force, sampling, and gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from veorl_tf.nets.distributions import (
    CategoricalLatent,
    GaussianLatent,
    OneHotAction,
    TruncatedNormalAction,
    make_action,
    make_latent,
    one_hot_sample,
    straight_through,
)

SEED = tf.constant([3, 4])
tfd = tfp.distributions


def test_straight_through_is_exact_forwards():
    hard, soft = tf.constant([1.0, 0.0, -0.02]), tf.constant([1e8, 0.3, 7.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([hard, soft])
        out = straight_through(hard, soft)
    np.testing.assert_array_equal(out, hard)
    np.testing.assert_array_equal(tape.gradient(out, soft), np.ones(3))
    assert tape.gradient(out, hard) is None


# ----- latents ------------------------------------------------------------------------------------


def test_gaussian_kl_is_the_closed_form(rng):
    latent = GaussianLatent(2)
    stats = lambda mean, std: {"mean": tf.constant([mean] * 2), "std": tf.constant([std] * 2)}
    kl = latent.kl(stats(0.5, 1.1), stats(0.0, 0.8))
    assert kl.numpy() == pytest.approx(2 * 0.3222, abs=1e-4)
    assert latent.kl(stats(0.5, 1.1), stats(0.5, 1.1)).numpy() == pytest.approx(0, abs=1e-6)
    m1, m2 = rng.normal(size=(2, 5, 2))
    s1, s2 = rng.uniform(0.2, 2, (2, 5, 2))
    exact = (np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5).sum(-1)
    as_stats = lambda m, s: {"mean": tf.constant(m, tf.float32), "std": tf.constant(s, tf.float32)}
    np.testing.assert_allclose(latent.kl(as_stats(m1, s1), as_stats(m2, s2)), exact, rtol=1e-4)


def test_means_and_standard_deviations():
    latent = GaussianLatent(50)
    stats = latent.stats(tf.zeros([3, latent.outputs]))
    np.testing.assert_allclose(stats["std"], np.full((3, 50), 1.1), rtol=1e-6)
    np.testing.assert_allclose(latent.entropy(stats), np.full(3, 50 * 1.51425), rtol=1e-5)
    x = tf.constant([[0.3, -40.0], [5.0, 40.0], [-2.0, 1.0]])
    exact = [0.1, 2.1, 2 / (1 + math.exp(-0.5)) + 0.1]
    means = [0.3, 5, -2]
    for kind, mean in ((GaussianLatent(1), means), (TruncatedNormalAction(1), np.tanh(means))):
        stats = kind.stats(x)
        np.testing.assert_allclose(stats["mean"][:, 0], mean, rtol=1e-5)
        np.testing.assert_allclose(stats["std"][:, 0], exact, rtol=1e-5)


def test_gaussian_samples_are_reparameterised():
    latent = GaussianLatent(1)
    mean, std = tf.fill([20000, 1], 0.5), tf.fill([20000, 1], 2.0)
    noise = latent.noise(SEED, [20000])
    with tf.GradientTape() as tape:
        tape.watch([mean, std])
        sample = latent.sample({"mean": mean, "std": std}, noise)
    by_mean, by_std = tape.gradient(sample, [mean, std])
    np.testing.assert_array_equal(by_mean, np.ones((20000, 1)))
    np.testing.assert_array_equal(by_std, noise)
    assert abs(sample.numpy().mean() - 0.5) < 0.05 and abs(sample.numpy().std() - 2) < 0.05
    np.testing.assert_array_equal(latent.mode({"mean": mean, "std": std}), mean)


def test_categorical_kl_and_entropy_are_sums_over_groups(rng):
    latent = CategoricalLatent(3, 4)
    left, right = rng.normal(size=(2, 5, 3, 4))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (left, right))
    stats = lambda x: {"logit": tf.constant(x, tf.float32)}
    kl = (p * np.log(p / q)).sum((-1, -2))
    np.testing.assert_allclose(latent.kl(stats(left), stats(right)), kl, rtol=1e-4)
    np.testing.assert_allclose(
        latent.entropy(stats(left)), -(p * np.log(p)).sum((-1, -2)), rtol=1e-4
    )
    uniform = CategoricalLatent(32, 32)
    zero = uniform.stats(tf.zeros([2, uniform.outputs]))
    np.testing.assert_allclose(uniform.entropy(zero), [110.904] * 2, atol=1e-3)


def test_categorical_samples_are_one_hot_with_the_right_frequencies():
    latent = CategoricalLatent(2, 3)
    probs = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]], np.float32)
    logit = tf.tile(tf.math.log(probs)[None], [20000, 1, 1])
    sample = latent.sample({"logit": logit}, latent.noise(SEED, [20000])).numpy()
    assert sample.shape == (20000, 6) and set(np.unique(sample)) == {0.0, 1.0}
    groups = sample.reshape(-1, 2, 3)
    np.testing.assert_array_equal(groups.sum(-1), np.ones((20000, 2)))
    np.testing.assert_allclose(groups.mean(0), probs, atol=0.015)
    mode = latent.mode({"logit": logit[:1]}).numpy()
    np.testing.assert_array_equal(mode, [[1, 0, 0, 0, 0, 1]])


def test_categorical_samples_pass_the_gradient_of_the_probabilities(rng):
    logit = tf.constant(rng.normal(size=(6, 5)), tf.float32)
    weight = tf.constant(rng.normal(size=(6, 5)), tf.float32)
    noise = OneHotAction(5).noise(SEED, [6])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logit)
        sampled = tf.reduce_sum(weight * one_hot_sample(logit, noise))
        expected = tf.reduce_sum(weight * tf.nn.softmax(logit))
    np.testing.assert_allclose(
        tape.gradient(sampled, logit), tape.gradient(expected, logit), atol=1e-6
    )


def test_noise_is_stateless_and_finite():
    for latent in (make_latent("gaussian", 3, 0), make_latent("categorical", 3, 4)):
        first, again = latent.noise(SEED, [50, 20]), latent.noise(SEED, [50, 20])
        np.testing.assert_array_equal(first, again)
        assert first.shape == (50, 20, *latent.noise_shape)
        assert np.isfinite(first).all()
        assert not np.array_equal(first, latent.noise(tf.constant([3, 5]), [50, 20]))


# ----- actions ------------------------------------------------------------------------------------

# Means (after tanh) and standard deviations (0.1 ... 2.1) that an actor can reach, ends included.
MEANS = [-1.0, -0.7, 0.0, 0.4, 1.0]
STDS = [0.1, 0.5, 1.1, 2.1]
GRID = [(m, s) for m in MEANS for s in STDS]


def test_truncated_normal_at_zero_output():
    action = TruncatedNormalAction(4)
    stats = action.stats(tf.zeros([2, action.outputs]))
    np.testing.assert_array_equal(stats["mean"], np.zeros((2, 4)))
    np.testing.assert_allclose(stats["std"], np.full((2, 4), 1.1), rtol=1e-6)
    entropy = action.entropy(stats).numpy()
    np.testing.assert_allclose(entropy, np.full(2, 4 * 0.686), atol=4e-3)
    assert (entropy < 4 * math.log(2)).all(), "no distribution on [-1, 1] beats the uniform one"


def test_truncated_normal_samples_follow_tfp():
    action = TruncatedNormalAction(len(GRID))
    mean, std = (tf.constant(x, tf.float32) for x in zip(*GRID, strict=True))
    sample = action.sample({"mean": mean, "std": std}, action.noise(SEED, [50000])).numpy()
    exact = tfd.TruncatedNormal(mean, std, -1.0, 1.0)
    np.testing.assert_allclose(sample.mean(0), exact.mean(), atol=0.01)
    np.testing.assert_allclose(sample.std(0), exact.stddev(), atol=0.01)
    deciles = np.quantile(sample, [0.1, 0.5, 0.9], axis=0)
    np.testing.assert_allclose(exact.cdf(deciles), np.tile([[0.1], [0.5], [0.9]], 20), atol=0.01)


def test_truncated_normal_samples_stay_inside_the_bounds():
    action = TruncatedNormalAction(len(GRID))
    mean, std = (tf.constant(x, tf.float32) for x in zip(*GRID, strict=True))
    edges = tf.constant([[1e-6], [0.5], [1 - 1e-6]])
    noise = tf.concat([action.noise(SEED, [5000]), tf.tile(edges, [1, len(GRID)])], 0)
    sample = action.sample({"mean": mean, "std": std}, noise).numpy()
    assert np.isfinite(sample).all()
    assert sample.min() > -1 and sample.max() < 1
    assert np.isfinite(action.log_prob({"mean": mean, "std": std}, sample)).all()


def test_truncated_normal_gradients_are_exact():
    """Against finite differences, and against implicit differentiation of tfp's distribution."""
    action = TruncatedNormalAction(1)
    mean, std = (np.array(x, np.float32)[:, None] for x in zip(*GRID, strict=True))
    noise = tf.constant(np.linspace(0.1, 0.9, len(GRID))[:, None], tf.float32)
    make = lambda m, s: action.sample({"mean": tf.constant(m), "std": tf.constant(s)}, noise)
    m, s = tf.constant(mean), tf.constant(std)
    with tf.GradientTape() as tape:
        tape.watch([m, s])
        sample = action.sample({"mean": m, "std": s}, noise)
    by_mean, by_std = tape.gradient(sample, [m, s])
    h = 2e-3
    np.testing.assert_allclose(
        by_mean, (make(mean + h, std) - make(mean - h, std)) / (2 * h), atol=5e-3
    )
    np.testing.assert_allclose(
        by_std, (make(mean, std + h) - make(mean, std - h)) / (2 * h), atol=5e-3
    )
    with tf.GradientTape() as tape:
        tape.watch([m, s])
        exact = tfd.TruncatedNormal(m, s, -1.0, 1.0)
        mass = exact.cdf(sample)
    density = exact.prob(sample)
    for actual, implicit in zip((by_mean, by_std), tape.gradient(mass, [m, s]), strict=True):
        np.testing.assert_allclose(actual, -implicit / density, rtol=2e-3, atol=2e-3)


def test_truncated_normal_density_and_entropy_are_tfps(rng):
    action = TruncatedNormalAction(2)
    stats = action.stats(tf.constant(rng.normal(size=(6, 4)), tf.float32))
    x = np.linspace(-1, 1, 20001)
    for row in range(6):
        mean, std = stats["mean"][row].numpy(), stats["std"][row].numpy()
        density = np.exp(-0.5 * ((x[:, None] - mean) / std) ** 2)
        density /= np.trapezoid(density, x, axis=0)
        entropy = -np.trapezoid(density * np.log(density), x, axis=0).sum()
        one = {k: v[row] for k, v in stats.items()}
        assert action.entropy(one).numpy() == pytest.approx(entropy, abs=1e-3)
        at = action.log_prob(one, tf.constant([x[4000], x[15000]])).numpy()
        expected = np.log(density[4000, 0]) + np.log(density[15000, 1])
        assert at == pytest.approx(expected, abs=1e-3)


def test_truncated_normal_gradients_are_finite_where_the_actor_saturates():
    action = TruncatedNormalAction(2)
    raw = tf.constant([[30.0, -30.0, -30.0, 30.0], [-30.0, 30.0, -30.0, -30.0]])
    for noise in (1e-6, 0.5, 1 - 1e-6):
        with tf.GradientTape() as tape:
            tape.watch(raw)
            stats = action.stats(raw)
            sample = action.sample(stats, tf.fill([2, 2], noise))
            total = tf.reduce_sum(sample) + tf.reduce_sum(action.entropy(stats))
            total += tf.reduce_sum(action.log_prob(stats, tf.stop_gradient(sample)))
        assert np.isfinite(total) and np.isfinite(tape.gradient(total, raw)).all()


def test_one_hot_action():
    action = OneHotAction(12)
    zero = action.stats(tf.zeros([3, action.outputs]))
    np.testing.assert_allclose(action.entropy(zero), np.full(3, 2.48491), atol=1e-5)
    np.testing.assert_allclose(
        action.log_prob(zero, tf.one_hot([0, 5, 11], 12)), np.full(3, -math.log(12)), rtol=1e-5
    )
    logit = tf.constant(np.random.Generator(np.random.Philox(1)).normal(size=(3, 12)), tf.float32)
    mode = action.mode({"logit": logit}).numpy()
    np.testing.assert_array_equal(mode, np.eye(12)[logit.numpy().argmax(-1)])
    sample = action.sample({"logit": logit}, action.noise(SEED, [3])).numpy()
    np.testing.assert_array_equal(np.sort(sample, -1), np.eye(12)[[11, 11, 11]])


@pytest.mark.parametrize(
    "kind", [("trunc_normal", False), ("normal", False), ("trunc_normal", True)]
)
def test_actions_share_one_interface(kind):
    name, discrete = kind
    action = make_action(name, 3, discrete, 0.01)
    assert isinstance(action, OneHotAction) == discrete
    stats = action.stats(tf.ones([2, 5, action.outputs]))
    noise = action.noise(SEED, [2, 5])
    sample = action.sample(stats, noise)
    assert sample.shape == action.mode(stats).shape == (2, 5, 3)
    assert action.log_prob(stats, sample).shape == action.entropy(stats).shape == (2, 5)
    assert all(v.dtype == tf.float32 for v in (sample, *stats.values()))


# ----- DreamerV3 ----------------------------------------------------------------------------------


def test_unimix_is_one_percent_uniform(rng):
    logit = rng.normal(0, 5, (6, 2, 8))
    probs = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    latent = CategoricalLatent(2, 8, 0.01)
    stats = latent.stats(tf.constant(logit.reshape(6, 16), tf.float32))
    expected = 0.99 * probs + 0.01 / 8
    np.testing.assert_allclose(tf.nn.softmax(stats["logit"]), expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(stats["logit"]).sum(-1), 1, rtol=1e-5)
    action = OneHotAction(16, 0.01).stats(tf.constant(logit.reshape(6, 16), tf.float32))
    assert np.exp(action["logit"]).min() >= 0.01 / 16 * 0.999


def test_normal_action(rng):
    action = make_action("normal", 3, False)
    x = tf.constant(rng.normal(0, 3, (200, 6)), tf.float32)
    stats = action.stats(x)
    mean, raw = np.split(x.numpy().astype(np.float64), 2, -1)
    np.testing.assert_allclose(stats["mean"], np.tanh(mean), rtol=1e-4, atol=1e-6)
    std = 0.9 / (1 + np.exp(-raw - 2)) + 0.1
    np.testing.assert_allclose(stats["std"], std, rtol=1e-5)
    assert std.min() > 0.1 and std.max() < 1.0
    normal = tfd.MultivariateNormalDiag(np.tanh(mean), std)
    sample = action.sample(stats, action.noise(SEED, [200]))
    assert np.abs(sample).max() > 1, "nothing is clipped or squashed"
    np.testing.assert_allclose(
        action.log_prob(stats, sample), normal.log_prob(sample.numpy()), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(action.entropy(stats), normal.entropy(), rtol=1e-4)
    np.testing.assert_array_equal(action.mode(stats), stats["mean"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        sample = action.sample(action.stats(x), action.noise(SEED, [200]))
    assert (np.abs(tape.gradient(sample, x)) > 0).mean() > 0.9, "reparameterised"
