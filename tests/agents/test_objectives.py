"""Means, divergences and returns (invariants 5, 7, 20 and 21 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.objectives import (
    balanced_kl,
    discount_weights,
    global_mean,
    lambda_return,
    linear_mmd,
    percentiles,
    safe_norm,
    two_sided_kl,
)
from veorl_tf.nets.distributions import CategoricalLatent, GaussianLatent


def tensor(x):
    return tf.constant(x, tf.float32)


def column(x):
    """Numbers over time as `[T, 1]`."""
    return tensor(x)[:, None]


# ----- means --------------------------------------------------------------------------------------


def test_global_mean(rng):
    x, mask = rng.normal(size=(4, 3)), np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert global_mean(tensor(x)).numpy() == pytest.approx(x.mean(), rel=1e-5)
    masked = global_mean(tensor(x), tensor(mask)).numpy()
    assert masked == pytest.approx(x[mask == 1].mean(), rel=1e-5)
    assert global_mean(tensor(x), tf.zeros([4, 3])).numpy() == 0
    half = global_mean(tf.fill([100000], tf.constant(1.0, tf.float16)))
    assert half.dtype == tf.float32 and half.numpy() == 1, "float16 would overflow at 65504"


# ----- KL -----------------------------------------------------------------------------------------


def gaussian_pair(rng, gap):
    """Statistics `[4, 5, 3]` whose means differ by about `gap`."""
    mean = rng.normal(size=(2, 4, 5, 3))
    std = rng.uniform(0.5, 1.5, (2, 4, 5, 3))
    make = lambda i: {"mean": tensor(mean[0] + i * gap), "std": tensor(std[i])}
    return GaussianLatent(3), make(0), make(1)


def categorical_pair(rng, gap):
    logit = rng.normal(size=(2, 4, 5, 2, 3))
    make = lambda i: {"logit": tensor(logit[0] + i * gap * logit[1])}
    return CategoricalLatent(2, 3), make(0), make(1)


def losses_and_gradients(latent, posterior, prior, **options):
    watched = [*posterior.values(), *prior.values()]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(watched)
        loss, nats = balanced_kl(latent, posterior, prior, **options)
        full = global_mean(latent.kl(posterior, prior))
    return loss, nats, tape.gradient(loss, watched), tape.gradient(full, watched)


@pytest.mark.parametrize("pair", [gaussian_pair, categorical_pair])
def test_kl_of_equal_distributions_is_the_free_nats_and_trains_nothing(rng, pair):
    latent, same, _ = pair(rng, 0.0)
    loss, nats, grads, _ = losses_and_gradients(latent, same, dict(same), free=1.0, balance=0.8)
    assert loss.numpy() == 1.0 and nats.numpy() == pytest.approx(0, abs=1e-6)
    assert not any(np.any(g) for g in grads)


@pytest.mark.parametrize("pair", [gaussian_pair, categorical_pair])
def test_kl_trains_the_prior_four_times_as_much_as_the_posterior(rng, pair):
    latent, posterior, prior = pair(rng, 3.0)
    loss, nats, grads, full = losses_and_gradients(latent, posterior, prior, free=1.0, balance=0.8)
    exact = latent.kl(posterior, prior).numpy().mean()
    assert exact > 1 and nats.numpy() == pytest.approx(exact, rel=1e-5)
    assert loss.numpy() == pytest.approx(exact, rel=1e-5)
    half = len(grads) // 2
    for actual, whole in zip(grads[:half], full[:half], strict=True):
        np.testing.assert_allclose(actual, 0.2 * whole, rtol=1e-4, atol=1e-7)
    for actual, whole in zip(grads[half:], full[half:], strict=True):
        np.testing.assert_allclose(actual, 0.8 * whole, rtol=1e-4, atol=1e-7)


def test_free_nats_apply_to_the_mean():
    """KLs of 0 and 4 give max(1, 2) = 2; clipped one by one they would give (1 + 4) / 2."""
    latent = GaussianLatent(1)
    ones = tf.ones([1, 2, 1])
    posterior = {"mean": tensor([[[0.0], [np.sqrt(8)]]]), "std": ones}
    prior = {"mean": tf.zeros([1, 2, 1]), "std": ones}
    np.testing.assert_allclose(latent.kl(posterior, prior), [[0, 4]], atol=1e-6)
    loss, nats = balanced_kl(latent, posterior, prior, free=1.0, balance=0.8)
    assert loss.numpy() == pytest.approx(2) and nats.numpy() == pytest.approx(2)
    below, _ = balanced_kl(latent, posterior, prior, free=3.0, balance=0.8)
    assert below.numpy() == 3


def test_masked_kl_is_the_mean_over_valid_steps(rng):
    latent, posterior, prior = gaussian_pair(rng, 3.0)
    mask = rng.integers(0, 2, (4, 5))
    _, nats = balanced_kl(latent, posterior, prior, 0.0, 0.8, tensor(mask))
    expected = latent.kl(posterior, prior).numpy()[mask == 1].mean()
    assert nats.numpy() == pytest.approx(expected, rel=1e-5)


# ----- MMD ----------------------------------------------------------------------------------------


def test_mmd_is_the_squared_distance_of_the_means(rng):
    left, right = rng.normal(size=(3, 4, 6)), rng.normal(1, 1, (5, 2, 6))
    exact = ((left.mean((0, 1)) - right.mean((0, 1))) ** 2).sum()
    assert linear_mmd(tensor(left), tensor(right)).numpy() == pytest.approx(exact, rel=1e-4)
    assert linear_mmd(tensor(right), tensor(left)).numpy() == pytest.approx(exact, rel=1e-4)
    assert linear_mmd(tensor(left), tensor(left)).numpy() == 0
    shuffled = rng.permutation(left.reshape(12, 6))
    assert linear_mmd(tensor(shuffled), tensor(right)).numpy() == pytest.approx(exact, rel=1e-4)


def test_mmd_leaves_masked_steps_out(rng):
    left, right = rng.normal(size=(3, 4, 6)), rng.normal(1, 1, (5, 2, 6))
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    valid = left[mask == 1].mean(0)
    exact = ((valid - right.mean((0, 1))) ** 2).sum()
    actual = linear_mmd(tensor(left), tensor(right), tensor(mask), None).numpy()
    assert actual == pytest.approx(exact, rel=1e-4)


def test_mmd_is_float32_and_trains_both_sides(rng):
    left = tf.constant(100 + rng.normal(size=(3000, 6)), tf.float16)
    right = tf.constant(rng.normal(size=(10, 6)), tf.float16)
    with tf.GradientTape() as tape:
        tape.watch([left, right])
        loss = linear_mmd(left, right)
    assert loss.dtype == tf.float32
    means = [x.numpy().astype(np.float64).mean(0) for x in (left, right)]
    assert loss.numpy() == pytest.approx(((means[0] - means[1]) ** 2).sum(), rel=1e-4)
    assert all(np.any(g) for g in tape.gradient(loss, [left, right]))


# ----- norm ---------------------------------------------------------------------------------------


def test_safe_norm_has_a_gradient_of_zero_at_zero():
    x = tensor([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        norm = safe_norm(x)
    np.testing.assert_allclose(norm, [5, 0])
    np.testing.assert_allclose(tape.gradient(norm, x), [[0.6, 0.8], [0, 0]])


# ----- returns ------------------------------------------------------------------------------------


def test_lambda_return_of_the_worked_example():
    returns = lambda_return(column([1, 2, 3]), column([10, 20, 30, 40]), column([0.9] * 3), 0.95)
    np.testing.assert_allclose(returns[:, 0], [33.2742, 36.6950, 39.0], atol=1e-4)


def brute_force(reward, value, discount, lambda_):
    """The definition: (1 - lambda)-weighted n-step returns, the longest takes the rest."""
    steps = len(reward)
    targets = []
    for t in range(steps):
        n_step, total, weight = [], 0.0, 1.0
        for u in range(t, steps):
            total += weight * reward[u]
            weight *= discount[u]
            n_step.append(total + weight * value[u + 1])
        shares = [(1 - lambda_) * lambda_**n for n in range(len(n_step) - 1)]
        shares.append(lambda_ ** (len(n_step) - 1))
        targets.append(np.dot(shares, n_step))
    return targets


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_lambda_return_is_the_mixture_of_n_step_returns(rng, lambda_):
    steps = 9
    reward, value = rng.normal(size=(steps, 4)), rng.normal(size=(steps + 1, 4))
    discount = rng.uniform(0, 1, (steps, 4))
    actual = lambda_return(tensor(reward), tensor(value), tensor(discount), lambda_).numpy()
    for i in range(4):
        expected = brute_force(reward[:, i], value[:, i], discount[:, i], lambda_)
        np.testing.assert_allclose(actual[:, i], expected, rtol=1e-4, atol=1e-5)


def test_lambda_return_at_its_ends():
    reward, value, discount = column([1, 2, 3]), column([10, 20, 30, 40]), column([0.9, 0.8, 0.7])
    one_step = lambda_return(reward, value, discount, 0.0)[:, 0]
    np.testing.assert_allclose(one_step, [1 + 18, 2 + 24, 3 + 28], rtol=1e-6)
    last = 3 + 0.7 * 40
    full = [1 + 0.9 * (2 + 0.8 * last), 2 + 0.8 * last, last]
    np.testing.assert_allclose(lambda_return(reward, value, discount, 1.0)[:, 0], full, rtol=1e-6)
    constant = lambda_return(tf.ones([14, 1]), tf.zeros([15, 1]), tf.fill([14, 1], 0.99), 1.0)
    assert constant[0, 0].numpy() == pytest.approx(sum(0.99**k for k in range(14)), rel=1e-5)


def test_weights_are_the_product_of_the_discounts_before_and_pass_no_gradient():
    weight = discount_weights(column([0.9] * 4))[:, 0]
    np.testing.assert_allclose(weight, [1, 0.9, 0.81, 0.729], rtol=1e-6)
    discount = column([0.5, 0.0, 0.7])
    with tf.GradientTape() as tape:
        tape.watch(discount)
        weight = discount_weights(discount)
    np.testing.assert_allclose(weight[:, 0], [1, 0.5, 0])
    assert tape.gradient(weight, discount) is None


# ----- DreamerV3 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.05, 3.0])
def test_two_sided_kl_has_free_nats_per_element(gap, rng):
    """Every element's KL is at least `free`, and elements below it get no gradient."""
    latent, posterior, prior = categorical_pair(rng, gap)
    kl = latent.kl(posterior, prior).numpy()
    free = float(np.median(kl))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([posterior["logit"], prior["logit"]])
        dyn, rep, nats = two_sided_kl(latent, posterior, prior, free)
    np.testing.assert_allclose(nats, kl, rtol=1e-5)
    for loss, own, other in ((dyn, prior, posterior), (rep, posterior, prior)):
        np.testing.assert_allclose(loss, np.maximum(kl, free), rtol=1e-5)
        assert tape.gradient(loss, other["logit"]) is None
        moved = np.abs(tape.gradient(loss, own["logit"])).max((2, 3)) > 0
        np.testing.assert_array_equal(moved, kl > free)
    assert (kl > free).any() and (kl < free).any()
    assert np.mean(dyn) > max(free, kl.mean()), "not the mean's free nats"


@pytest.mark.parametrize("count", [1, 2, 5, 100, 1537])
@pytest.mark.parametrize("jit", [False, True])
def test_percentiles_are_numpys(count, jit, rng):
    x = rng.normal(3, 10, count).astype(np.float32)
    compiled = tf.function(lambda x: percentiles(x, 5, 95), jit_compile=jit)
    low, high = compiled(tensor(x))
    np.testing.assert_allclose([low, high], np.percentile(x, [5, 95]), rtol=1e-5)
    shaped = percentiles(tensor(np.stack([x, x + 1])[:, :, None]), 0, 100)
    np.testing.assert_allclose(shaped, [x.min(), x.max() + 1], rtol=1e-5)
