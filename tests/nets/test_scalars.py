"""Symlog and two-hot heads against NumPy, and the mean of a fresh one."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.dense import MLP, Style
from veorl_tf.nets.scalars import TwoHot, UnitNormal, symexp, symlog

NUMBERS = [0.0, 1e-3, -0.3, 1.0, 7.25, -123.4, 3e5, -2e8]


def two_hot_by_hand(bins, x):
    """The closest two bins share the weight by distance."""
    weights = np.zeros((len(x), len(bins)))
    for row, value in zip(weights, np.clip(x, bins[0], bins[-1])):
        above = min(max(np.searchsorted(bins, value, "right"), 1), len(bins) - 1)
        share = (value - bins[above - 1]) / (bins[above] - bins[above - 1])
        row[above - 1], row[above] = 1 - share, share
    return weights


@pytest.fixture(params=[False, True], ids=["in symlog space", "raw"])
def head(request) -> TwoHot:
    return TwoHot(255, raw=request.param)


def test_symlog_and_symexp_are_inverse_and_odd():
    x = tf.constant(NUMBERS)
    np.testing.assert_allclose(symexp(symlog(x)), x, rtol=2e-5)
    np.testing.assert_allclose(symlog(-x), -symlog(x))
    assert symlog(tf.constant(np.e - 1, tf.float32)).numpy() == pytest.approx(1)


def test_bins_are_symmetric(head):
    assert len(head.bins) == head.outputs == 255 and head.bins[127] == 0
    np.testing.assert_array_equal(head.bins, -head.bins[::-1])
    grid = head.bins if not head.raw else np.log1p(np.abs(head.bins)) * np.sign(head.bins)
    np.testing.assert_allclose(grid, np.linspace(-20, 20, 255), atol=2e-5)


def test_two_hot_is_shared_by_the_two_closest_bins(head):
    target = np.array([*NUMBERS, *head.bins[[0, 1, 127, 254]]], np.float32)
    space = target if head.raw else np.sign(target) * np.log1p(np.abs(target))
    actual = head.two_hot(tf.constant(target)).numpy()
    bins = head.bins.astype(np.float64)
    np.testing.assert_allclose(actual, two_hot_by_hand(bins, space), atol=2e-5)
    np.testing.assert_allclose(actual.sum(-1), 1, atol=2e-5)
    assert ((actual > 1e-4).sum(-1) <= 2).all()


def test_what_is_beyond_the_bins_is_the_last_one(head):
    for value, index in ((1e12, 254), (-1e12, 0)):
        np.testing.assert_array_equal(head.two_hot(tf.constant(value)), np.eye(255)[index])


def test_the_mean_undoes_two_hot(head):
    logits = tf.math.log(head.two_hot(tf.constant(NUMBERS)) + 1e-30)
    np.testing.assert_allclose(head.mean(logits), NUMBERS, rtol=2e-4, atol=1e-5)


def test_equal_logits_mean_exactly_zero(head):
    for value in (0.0, 0.1, -7.3):
        assert head.mean(tf.fill([3, 255], value)).numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "style", [Style("silu", "layer", 1e-3, False, True), Style("silu", "rms", average_fan=False)]
)
def test_a_fresh_head_of_scale_zero_means_exactly_zero(style, head, built, rng):
    net = built(MLP("critic", 6, 8, 2, head.outputs, style, scale=0.0))
    x = tf.constant(rng.normal(size=(50, 6)), tf.float32)
    assert not head.mean(net(x)).numpy().any()


def test_loss_is_the_cross_entropy(head, rng):
    logits = rng.normal(0, 2, (len(NUMBERS), 255))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = head.two_hot(tf.constant(NUMBERS)).numpy()
    expected = -(weights * log_probs).sum(-1)
    actual = head.loss(tf.constant(logits, tf.float32), tf.constant(NUMBERS))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_no_gradient_reaches_the_target(head):
    for scalar in (head, UnitNormal()):
        target, x = tf.constant([1.5]), tf.random.stateless_normal([1, scalar.outputs], [1, 2])
        with tf.GradientTape() as tape:
            tape.watch([target, x])
            loss = scalar.loss(x, target)
        to_target, to_x = tape.gradient(loss, [target, x])
        assert to_target is None and np.abs(to_x).max() > 0


def test_xla_compiles_mean_and_loss(head):
    @tf.function(jit_compile=True)
    def compiled(x, target):
        return head.mean(x), head.loss(x, target)

    x, target = tf.random.stateless_normal([8, 255], [1, 2]), tf.constant(NUMBERS)
    mean, loss = compiled(x, target)
    np.testing.assert_allclose(mean, head.mean(x), rtol=1e-3)
    np.testing.assert_allclose(loss, head.loss(x, target), rtol=1e-4)


def test_an_even_number_of_bins_is_refused():
    with pytest.raises(ValueError, match="254"):
        TwoHot(254)
