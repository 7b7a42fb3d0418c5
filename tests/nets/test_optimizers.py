"""Adam against NumPy, steps that are skipped, and the loss scale of float16."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.optimizers import Adam, LossScale


def make(rng, **options):
    values = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    variables = {k: tf.Variable(v, dtype=tf.float32) for k, v in values.items()}
    return Adam("stage/model", variables, **({"lr": 0.1} | options))


def gradients(rng, scale=1.0):
    return {
        "a": tf.constant(scale * rng.normal(size=(3, 2)), tf.float32),
        "b": tf.constant(scale * rng.normal(size=4), tf.float32),
    }


def reference(variables, grads, *, lr, eps, clip, decay, steps):
    """Kingma & Ba 2015, algorithm 1, in float64, after a clip of the global norm."""
    values = {k: v.astype(np.float64) for k, v in variables.items()}
    m = {k: np.zeros_like(v) for k, v in values.items()}
    v = {k: np.zeros_like(v) for k, v in values.items()}
    for t in range(1, steps + 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads[t - 1].values()))
        for key, grad in grads[t - 1].items():
            grad = grad * min(1, clip / norm)
            m[key] = 0.9 * m[key] + 0.1 * grad
            v[key] = 0.999 * v[key] + 0.001 * grad**2
            m_hat, v_hat = m[key] / (1 - 0.9**t), v[key] / (1 - 0.999**t)
            values[key] = values[key] * (1 - decay) - lr * m_hat / (np.sqrt(v_hat) + eps)
    return values


@pytest.mark.parametrize("clip", [100.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_three_steps_are_adams(rng, clip, decay, eps):
    adam = make(rng, clip=clip, decay=decay, eps=eps)
    start = {k: v.numpy() for k, v in adam.variables.items()}
    grads = [gradients(rng, scale) for scale in (1.0, 3.0, 0.3)]
    for one in grads:
        finite, metrics = adam.apply(one)
        assert finite.numpy()
        norm = np.sqrt(sum((g.numpy() ** 2).sum() for g in one.values()))
        assert metrics["grad_norm"].numpy() == pytest.approx(norm, rel=1e-5)
    numpy = [{k: g.numpy() for k, g in one.items()} for one in grads]
    expected = reference(start, numpy, lr=0.1, eps=eps, clip=clip, decay=decay, steps=3)
    for key, value in expected.items():
        np.testing.assert_allclose(adam.variables[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(rng, bad):
    adam = make(rng, decay=0.1)
    adam.apply(gradients(rng))
    before = {k: v.numpy() for k, v in {**adam.variables, **adam.state}.items()}
    grads = gradients(rng)
    grads["a"] = tf.tensor_scatter_nd_update(grads["a"], [[1, 1]], [bad])
    finite, metrics = adam.apply(grads)
    assert not finite.numpy() and metrics["skipped"].numpy() == 1
    for key, value in {**adam.variables, **adam.state}.items():
        if not key.endswith("skipped"):
            np.testing.assert_array_equal(value, before[key], err_msg=key)
    finite, _ = adam.apply(gradients(rng))
    assert finite.numpy() and adam.steps.numpy() == 2
    assert all(np.isfinite(v).all() for v in adam.variables.values())


def test_a_clip_of_zero_means_no_clip(rng):
    grads = gradients(rng, 50.0)
    free, wide = make(rng, clip=0.0), None
    wide = Adam("wide", {k: tf.Variable(v) for k, v in free.variables.items()}, 0.1, clip=1e9)
    free.apply(grads)
    wide.apply(grads)
    for key in grads:
        np.testing.assert_allclose(free.variables[key], wide.variables[key], rtol=1e-6)


def test_reset_goes_back_to_before_the_first_step(rng):
    adam, grads = make(rng), gradients(rng)
    start = {k: v.numpy() for k, v in adam.variables.items()}
    adam.apply(grads)
    first = {k: v.numpy() for k, v in adam.variables.items()}
    adam.apply(grads)
    adam.reset()
    for key, value in start.items():
        adam.variables[key].assign(value)
    adam.apply(grads)
    for key, value in first.items():
        np.testing.assert_array_equal(adam.variables[key], value)


def test_state_names_everything_a_checkpoint_needs(rng):
    names = {"steps", "skipped", "m/a", "m/b", "v/a", "v/b"}
    assert set(make(rng).state) == {f"optimizer/stage/model/{name}" for name in names}
    assert set(LossScale("model", True).state) == {
        "loss_scale/model/scale",
        "loss_scale/model/finite_run",
    }


def test_the_loss_scale_halves_on_overflow_and_grows_after_a_long_run(monkeypatch):
    monkeypatch.setattr(LossScale, "GROW", 3)
    scale = LossScale("model", True)
    assert scale.scale.numpy() == 2**15
    scale.adapt(tf.constant(False))
    assert scale.scale.numpy() == 2**14
    for expected in (2**14, 2**14, 2**15, 2**15):
        scale.adapt(tf.constant(True))
        assert scale.scale.numpy() == expected
    scale.adapt(tf.constant(False))
    assert (scale.scale.numpy(), scale.finite_run.numpy()) == (2**14, 0)
    for _ in range(20):
        scale.adapt(tf.constant(False))
    assert scale.scale.numpy() == 1
    scale.reset()
    assert scale.scale.numpy() == 2**15


def test_the_loss_scale_of_other_types_stays_one():
    scale = LossScale("model", False)
    for finite in (False, True, False):
        scale.adapt(tf.constant(finite))
    assert scale.scale.numpy() == 1
