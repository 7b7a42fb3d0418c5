"""The behaviour abstraction network (invariant 6 of VeoRL's spec)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.quantizer import BehaviorAbstraction, Codebook, usage


@pytest.fixture
def codebook(built, rng):
    net = built(Codebook("codebook", 50, 8))
    net.codebook.assign(rng.normal(size=(50, 8)))
    return net


def points(rng, *leading):
    return tf.constant(rng.normal(size=(*leading, 8)), tf.float32)


def test_the_nearest_code_is_brute_forces(codebook, rng):
    y = points(rng, 30, 7)
    distance = np.linalg.norm(y.numpy()[..., None, :] - codebook.codebook.numpy(), axis=-1)
    quantised = codebook(y)
    np.testing.assert_array_equal(quantised.index, distance.argmin(-1))
    assert quantised.index.dtype == tf.int32
    rows = codebook.codebook.numpy()[distance.argmin(-1)]
    np.testing.assert_array_equal(quantised.code, rows)
    np.testing.assert_array_equal(codebook.snap(y), rows)
    error = ((y.numpy() - rows) ** 2).mean(-1)
    np.testing.assert_allclose(quantised.loss, 2 * error, rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_codes_are_exact_for_half_precision_inputs(dtype, codebook, rng):
    quantised = codebook(tf.cast(1000 * points(rng, 9), dtype))
    assert quantised.code.dtype == quantised.loss.dtype == tf.float32
    rows = codebook.codebook.numpy()[quantised.index]
    np.testing.assert_array_equal(quantised.code, rows)


def test_gradients_pass_straight_through_and_codes_learn_from_their_loss_alone(codebook, rng):
    y = points(rng, 6)
    table = codebook.codebook.value
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(y)
        code, index, loss = codebook(y)
        total, mean = tf.reduce_sum(code), tf.reduce_sum(loss)
        snapped = tf.reduce_sum(codebook.snap(y))
    np.testing.assert_array_equal(tape.gradient(total, y), np.ones((6, 8)))
    np.testing.assert_array_equal(tape.gradient(snapped, y), np.ones((6, 8)))
    assert tape.gradient(total, table) is None and tape.gradient(snapped, table) is None
    rows = tf.gather(table, index).numpy()
    # Each loss term trains one side: commitment the input, the codebook term the rows.
    np.testing.assert_allclose(tape.gradient(mean, y), 2 * (y.numpy() - rows) / 8, atol=1e-6)
    expected = np.zeros((50, 8), np.float32)
    np.add.at(expected, index.numpy(), 2 * (rows - y.numpy()) / 8)
    gradient = tf.convert_to_tensor(tape.gradient(mean, table)).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    unused = np.setdiff1d(np.arange(50), index.numpy())
    assert len(unused) >= 44 and not gradient[unused].any()


def test_commitment_weighs_the_inputs_side_only(built, rng):
    y = points(rng, 5)
    grads = []
    for beta in (1.0, 0.25):
        net = built(Codebook("codebook", 10, 8, beta))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(y)
            loss = tf.reduce_sum(net(y).loss)
        table = tf.convert_to_tensor(tape.gradient(loss, net.codebook.value))
        grads.append((loss, tape.gradient(loss, y), table))
    np.testing.assert_allclose(grads[1][0], grads[0][0] * 1.25 / 2, rtol=1e-5)
    np.testing.assert_allclose(grads[1][1], 0.25 * grads[0][1], rtol=1e-5)
    np.testing.assert_array_equal(grads[1][2], grads[0][2])


def test_code_j_labels_the_transition_from_frame_j_to_the_next(built, rng):
    ban = built(BehaviorAbstraction("ban", 6, 5, 10, 8))
    embed = rng.normal(size=(3, 4, 6)).astype(np.float32)
    y = ban.project(tf.constant(embed)).numpy()
    assert y.shape == (3, 3, 8)
    after, before = ban.after.kernel.numpy(), ban.before.kernel.numpy()
    for j in range(3):
        hidden = np.maximum(embed[:, j + 1] @ after + embed[:, j] @ before, 0)
        np.testing.assert_allclose(y[:, j], hidden @ ban.out.kernel.numpy(), atol=1e-5)
    swapped = ban.project(tf.constant(embed[:, ::-1])).numpy()[:, ::-1]
    assert np.abs(swapped - y).max() > 1e-2, "the order of the two frames matters"


def test_codes_do_not_depend_on_the_order_of_the_batch(built, rng):
    ban = built(BehaviorAbstraction("ban", 6, 5, 10, 8))
    embed = rng.normal(size=(5, 4, 6)).astype(np.float32)
    order = [3, 0, 4, 2, 1]
    quantised, permuted = ban(tf.constant(embed)), ban(tf.constant(embed[order]))
    np.testing.assert_array_equal(permuted.index, quantised.index.numpy()[order])
    np.testing.assert_array_equal(permuted.code, quantised.code.numpy()[order])


def test_usage_counts_what_occurs():
    every = usage(tf.range(8)[None], 8)
    assert every["perplexity"].numpy() == pytest.approx(8, rel=1e-5)
    assert every["used"].numpy() == 1
    one = usage(tf.zeros([3, 5], tf.int32), 8)
    assert one["perplexity"].numpy() == pytest.approx(1) and one["used"].numpy() == 1 / 8
    index = tf.constant([[0, 0, 1, 7]])
    share = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-(share * np.log(share)).sum())
    assert usage(index, 8)["perplexity"].numpy() == pytest.approx(expected, rel=1e-5)
    masked = usage(index, 8, tf.constant([[1.0, 1, 1, 0]]))
    assert masked["used"].numpy() == 0.25
    assert np.isfinite(usage(index, 8, tf.zeros([1, 4]))["perplexity"])
