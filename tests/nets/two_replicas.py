"""Checks on two logical devices; `test_parallel.py` runs them in a process of their own, since
TensorFlow's devices cannot be changed later."""

import numpy as np
import tensorflow as tf

from veorl_tf.agents.behavior import ReturnScale
from veorl_tf.agents.objectives import (
    balanced_kl,
    global_mean,
    linear_mmd,
    percentiles,
    two_sided_kl,
)
from veorl_tf.nets import distributions, parallel
from veorl_tf.nets.optimizers import Adam, LaProp, LossScale
from veorl_tf.nets.quantizer import usage

RNG = np.random.default_rng(0)
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy()
assert strategy.num_replicas_in_sync == 2


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def both(function, *arrays):
    """`function`'s results in both replicas, which see one half each of every array's rows."""
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: [
            tf.constant(np.split(a, 2)[context.replica_id_in_sync_group]) for a in arrays
        ]
    )
    run = tf.function(lambda x: strategy.run(lambda y: function(*y), (x,)), autograph=False)
    return [x.numpy() for x in strategy.experimental_local_results(run(halves))]


def noise():
    """Of every distribution: the replicas' rows are those of one device's batch."""
    seed = tf.constant([3, 4])
    for draw in (
        distributions.GaussianLatent(5).noise,
        distributions.CategoricalLatent(3, 4).noise,
        distributions.TruncatedNormalAction(2).noise,
        distributions.NormalAction(2).noise,
        distributions.OneHotAction(6).noise,
    ):
        left, right = both(lambda x, draw=draw: draw(seed, [7, 4]), np.zeros(2))
        assert left.shape[:2] == (7, 4) and not np.array_equal(left, right)
        assert np.array_equal(np.concatenate([left, right], 1), draw(seed, [7, 8]).numpy())


def means():
    """Averages over rows, also where the replicas' masks differ in size or are empty."""
    x, y = normal(4, 3, 5), normal(4, 3, 5)
    mask = np.float32([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    latent = distributions.GaussianLatent(5)
    stats = lambda mean: {"mean": mean, "std": tf.ones_like(mean)}
    cases = {
        "plain": (global_mean, x),
        "masked": (lambda x, m: global_mean(x[..., 0], m), x, mask),
        "empty": (lambda x, m: global_mean(x[..., 0], m * 0), x, mask),
        "mmd": (linear_mmd, x, y),
        "masked mmd": (linear_mmd, x, y, mask, mask[::-1].copy()),
        "kl": (lambda x, y, m: balanced_kl(latent, stats(x), stats(y), 1.0, 0.8, m)[0], x, y, mask),
        "free nats of elements": (
            lambda x, y, m: global_mean(two_sided_kl(latent, stats(x), stats(y), 1.0)[0], m),
            x,
            y,
            mask,
        ),
        "percentiles": (lambda x: tf.stack(percentiles(x, 5, 95)), x),
        "usage": (lambda i: usage(i, 6)["perplexity"], RNG.integers(0, 6, (4, 3))),
    }
    for name, (function, *arrays) in cases.items():
        results = both(function, *arrays)
        expected = function(*[tf.constant(a) for a in arrays]).numpy()
        for result in results:
            np.testing.assert_allclose(result, expected, rtol=1e-6, err_msg=name)


def gradients():
    """Of a loss that is not linear in its means: free nats, a squared distance."""
    x, kernel = normal(6, 4), tf.constant(normal(4, 3))
    mask = np.float32([1, 1, 1, 0, 0, 1])

    def gradient(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = tf.matmul(x, kernel)
            loss = tf.maximum(0.1, global_mean(tf.square(y), mask[:, None] * tf.ones([1, 3])))
            loss += linear_mmd(tf.exp(y), y, mask, mask) ** 2
        return parallel.add_up({"kernel": tape.gradient(loss, kernel)})["kernel"]

    expected = gradient(tf.constant(x), tf.constant(mask)).numpy()
    assert np.abs(expected).min() > 1e-3
    for result in both(gradient, x, mask):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def optimiser(kind=Adam, **options):
    """Every replica's copies take the step of one device; an overflow in one skips it in both."""
    grads = normal(3, 2, 4)  # updates, replicas, numbers
    grads[1, 1, 0] = np.inf

    def make():
        variable = tf.Variable(tf.ones([4]))
        return variable, kind("a", {"v": variable}, 0.1, **options), LossScale("a", True)

    def step(grad, adam, scale):
        finite, _ = adam.apply(parallel.add_up({"v": tf.reduce_sum(grad, 0)}), scale.scale)
        scale.adapt(finite)
        return finite

    with strategy.scope():
        variable, adam, scale = make()
        for grad in grads:
            both(lambda half: step(half, adam, scale), grad)
    expected, one_adam, one_scale = make()
    for grad in grads:
        step(tf.constant(grad), one_adam, one_scale)
    assert one_adam.skipped.numpy() == 1 and one_scale.scale.numpy() == LossScale.FIRST / 2
    for shared, single in (
        (variable, expected),
        (adam.steps, one_adam.steps),
        (adam.skipped, one_adam.skipped),
        (scale.scale, one_scale.scale),
    ):
        for copy in strategy.experimental_local_results(shared):
            np.testing.assert_allclose(copy.numpy(), single.numpy(), rtol=1e-6)


def return_scale():
    """The averages of all returns, assigned to every replica's copy."""
    with strategy.scope():
        scale = ReturnScale("return_scale", 0.5)
        scale.build()

    def step(returns):
        averages = scale.update(returns)
        parallel.own(scale.range.value).assign(averages)
        return averages

    returns = normal(20, 3)
    expected = 0.5 * np.percentile(returns, [5, 95])
    for result in both(step, returns):
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    for copy in strategy.experimental_local_results(scale.range.value):
        np.testing.assert_allclose(copy.numpy(), expected, rtol=1e-5)


if __name__ == "__main__":
    for check in (noise, means, gradients, return_scale):
        check()
    optimiser(Adam, decay=0.01)
    optimiser(LaProp, agc=0.3, warmup=2)
