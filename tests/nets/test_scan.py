"""Loops over time: rolled and unrolled ones, and kernels whose gradient is taken after the loop."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.block_rssm import BlockRSSM
from veorl_tf.nets.dense import Style
from veorl_tf.nets.distributions import CategoricalLatent, GaussianLatent
from veorl_tf.nets.rssm import RSSM
from veorl_tf.nets.scan import scan_with_products

SEED = tf.constant([1, 2])
V3 = Style("silu", "layer", 1e-3, biased=False, average_fan=True)
NATURE = Style("silu", "rms", 1e-4, average_fan=False)
MODELS = {
    "v2": lambda **k: RSSM("trunk", 2, 7, 6, 9, GaussianLatent(3), **k),
    "v3": lambda **k: RSSM(
        "trunk", 2, 7, 6, 9, CategoricalLatent(3, 5, 0.01), V3, learnt_start=True, **k
    ),
    "nature": lambda **k: BlockRSSM(
        "trunk", 2, 7, 6, 5, CategoricalLatent(3, 4, 0.01), NATURE, 3, **k
    ),
}


def loop_gradient(kernel, x, start, compiled, unroll):
    """Of a sum over states `h <- tanh(product(h + x_t))`."""

    def loss():
        step = lambda h, x, product: tf.tanh(product("w", h + x))
        states = scan_with_products(step, start, x, {"w": kernel}, tf.float32, unroll)
        return tf.reduce_sum(states * tf.range(1.0, 6.0)[:, None, None])

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch([kernel, x])
            value = loss()
        return value, *tape.gradient(value, [kernel, x])

    return (tf.function(gradient) if compiled else gradient)()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("unroll", [False, True])
def test_the_gradient_of_a_kernel_is_backpropagation_through_time(compiled, unroll, rng):
    kernel = tf.constant(rng.normal(0, 0.5, (3, 3)), tf.float32)
    x = tf.constant(rng.normal(size=(5, 2, 3)), tf.float32)
    start = tf.zeros([2, 3])
    actual = loop_gradient(kernel, x, start, compiled, unroll)
    with tf.GradientTape() as tape:
        tape.watch([kernel, x])
        h, total = start, 0.0
        for t in range(5):
            h = tf.tanh((h + x[t]) @ kernel)
            total += (t + 1) * tf.reduce_sum(h)
    for one, two in zip(actual, (total, *tape.gradient(total, [kernel, x])), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("unroll", [False, True])
def test_a_world_models_gradients_are_those_of_its_single_steps(kind, unroll, built, rng):
    rssm = built(MODELS[kind](unroll=unroll))
    for variable in rssm.weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    embed = tf.constant(rng.normal(size=(2, 4, 7)), tf.float32)
    action = tf.constant(rng.uniform(-1, 1, (2, 4, 2)), tf.float32)
    weight = tf.constant(rng.normal(size=(2, 4, rssm.feature_size)), tf.float32)
    noise = rssm.latent.noise(SEED, [4, 2])
    weights = {v.path: v.value for v in rssm.weights}

    @tf.function(autograph=False)
    def sequence():
        with tf.GradientTape() as tape:
            posterior, _ = rssm.observe(embed, action, SEED)
            loss = tf.reduce_sum(rssm.features(posterior) * weight)
        return loss, tape.gradient(loss, weights, unconnected_gradients="zero")

    def steps():
        with tf.GradientTape() as tape:
            state, loss = rssm.initial(2), 0.0
            for t in range(4):
                state = rssm.observe_step(state, action[:, t], embed[:, t], noise[t])
                loss += tf.reduce_sum(rssm.features(state) * weight[:, t])
        return loss, tape.gradient(loss, weights, unconnected_gradients="zero")

    (loss, actual), (expected_loss, expected) = sequence(), steps()
    assert loss.numpy() == pytest.approx(expected_loss.numpy(), rel=1e-4)
    moved = 0
    for path, value in expected.items():
        value = tf.convert_to_tensor(value).numpy()
        scale = np.abs(value).max() or 1.0
        moved += np.abs(value).max() > 1e-4
        np.testing.assert_allclose(actual[path] / scale, value / scale, atol=2e-4, err_msg=path)
    assert moved > len(expected) / 2
