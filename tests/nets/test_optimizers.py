"""Adam and LaProp against NumPy, steps that are skipped, and the loss scale of float16."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.optimizers import OPTIMIZERS, Adam, LaProp, LossScale, Skips


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


# ----- DreamerV3's optimiser ----------------------------------------------------------------------


def laprop_by_hand(value, grads, lr, agc, warmup, eps=1e-20, b1=0.9, b2=0.999):
    """Adaptive clip, then RMS with bias correction, then momentum with bias correction."""
    m = v = np.zeros_like(value)
    for step, grad in enumerate(grads, 1):
        limit = agc * max(1e-3, np.linalg.norm(value))
        norm = np.linalg.norm(grad)
        grad = grad * limit / norm if norm > limit else grad
        v = b2 * v + (1 - b2) * grad**2
        m = b1 * m + (1 - b1) * grad / (np.sqrt(v / (1 - b2**step)) + eps)
        value = value - lr * min(1, step / warmup) * m / (1 - b1**step)
    return value


def test_laprop_with_adaptive_clipping_is_numpys_for_three_steps(rng):
    start = {"w": rng.normal(size=(4, 3)), "tiny": np.full(3, 1e-6), "calm": rng.normal(size=5)}
    scale = {"w": 50.0, "tiny": 1.0, "calm": 1e-3}
    grads = [{k: scale[k] * rng.normal(size=v.shape) for k, v in start.items()} for _ in range(3)]
    variables = {k: tf.Variable(v, dtype=tf.float32) for k, v in start.items()}
    optimizer = LaProp("joint/model", variables, 0.1, 1e-20, clip=0.0, agc=0.3, warmup=2)
    for step in grads:
        finite, metrics = optimizer.apply({k: tf.constant(g, tf.float32) for k, g in step.items()})
        assert finite
    for key, value in start.items():
        expected = laprop_by_hand(value, [g[key] for g in grads], 0.1, 0.3, 2)
        np.testing.assert_allclose(variables[key], expected, rtol=1e-4, atol=1e-6, err_msg=key)
    norm = np.sqrt(sum((g**2).sum() for g in grads[-1].values()))
    assert metrics["grad_norm"].numpy() == pytest.approx(norm, rel=1e-5), "before the clip"


def test_laprop_is_not_adam(rng):
    grads = [rng.normal(size=3) * 10**i for i in range(3)]
    results = []
    for kind in (Adam, LaProp):
        variable = tf.Variable(np.ones(3, np.float32))
        optimizer = kind("a", {"v": variable}, 0.1, 1e-8, clip=0.0)
        for grad in grads:
            optimizer.apply({"v": tf.constant(grad, tf.float32)})
        results.append(variable.numpy())
    assert np.abs(results[0] - results[1]).max() > 1e-3


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_a_step_that_is_not_finite_changes_nothing(kind):
    variable = tf.Variable([1.0, 2.0])
    optimizer = kind("a", {"v": variable}, 0.1, agc=0.3, warmup=10)
    optimizer.apply({"v": tf.constant([1.0, 2.0])})
    before = {k: v.numpy().copy() for k, v in optimizer.state.items()} | {"v": variable.numpy()}
    finite, metrics = optimizer.apply({"v": tf.constant([np.nan, 1.0])})
    assert not finite and metrics["skipped"] == 1
    after = {k: v.numpy() for k, v in optimizer.state.items()} | {"v": variable.numpy()}
    for key, value in before.items():
        if not key.endswith("skipped"):
            np.testing.assert_array_equal(after[key], value, err_msg=key)


def test_the_learning_rate_grows_during_the_warm_up():
    """Under a constant gradient every step of Adam is as long as the learning rate."""
    variable = tf.Variable([0.0])
    optimizer = Adam("a", {"v": variable}, 0.1, 1e-12, warmup=4)
    places = [0.0]
    for _ in range(6):
        optimizer.apply({"v": tf.constant([3.0])})
        places.append(float(variable[0]))
    steps = -np.diff(places)
    np.testing.assert_allclose(steps, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-4)


def count(skips, scale, losses, finite):
    return int(skips.count([tf.constant(x) for x in losses], tf.constant(finite), scale))


def test_skipped_updates_are_counted_in_a_row():
    """The losses that were not finite first are remembered, and forgotten after a good update."""
    skips, scale = Skips("model"), LossScale("model", False)
    assert count(skips, scale, [1.0, 2.0, 3.0], True) == 0
    assert count(skips, scale, [1.0, np.nan, np.inf], False) == 1
    assert count(skips, scale, [np.nan] * 3, False) == 2
    assert int(skips.terms) == 0b110
    assert count(skips, scale, [1.0, 2.0, 3.0], True) == 0
    assert count(skips, scale, [1.0, 2.0, 3.0], False) == 1, "gradients alone"
    assert int(skips.terms) == 0
    assert set(skips.state) == {"skips/model/run", "skips/model/terms"}
    skips.reset()
    assert int(skips.run) == 0


def test_an_overflow_of_float16_is_no_fault():
    """While a smaller scale may mend it; a loss that is not finite is one at any scale."""
    skips, scale = Skips("model"), LossScale("model", True)
    runs = []
    for _ in range(17):
        runs.append(count(skips, scale, [1.0], False))
        scale.adapt(tf.constant(False))
    assert float(scale.scale) == scale.SMALLEST
    assert runs == [0] * 15 + [1, 2], "from 2^15 to 1"
    assert count(skips, LossScale("other", True), [np.nan], False) == 3


def test_a_step_that_is_not_allowed_changes_nothing():
    weight = tf.Variable([1.0, 2.0])
    optimizer = Adam("test", {"w": weight}, lr=0.1)
    made, metrics = optimizer.apply({"w": tf.constant([1.0, 1.0])}, allowed=tf.constant(False))
    assert not bool(made) and int(metrics["skipped"]) == 1 and int(optimizer.steps) == 0
    np.testing.assert_array_equal(weight.numpy(), [1.0, 2.0])
