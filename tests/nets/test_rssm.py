"""The recurrent state-space model against loops, NumPy and closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.dense import Style
from veorl_tf.nets.distributions import CategoricalLatent, GaussianLatent
from veorl_tf.nets.rssm import RSSM, GRUCell
from veorl_tf.nets.scan import scan

LATENTS = {"gaussian": lambda: GaussianLatent(3), "categorical": lambda: CategoricalLatent(3, 5)}
SEED = tf.constant([1, 2])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def make(kind: str = "gaussian", **options) -> RSSM:
    return RSSM("trunk", 2, 7, 6, 9, LATENTS[kind](), **options)


def numpy_gru(cell: GRUCell, x, h, order=(0, 1, 2)):
    """One step as VeoRL's spec 1.4 has it; `order` says which blocks are reset, candidate,
    update."""
    gates = np.concatenate([x, h], -1) @ cell.dense.kernel.numpy() + cell.dense.bias.numpy()
    gates = (gates - gates.mean(-1, keepdims=True)) / np.sqrt(gates.var(-1, keepdims=True) + 1e-5)
    gates = gates * cell.dense.norm.gamma.numpy() + cell.dense.norm.beta.numpy()
    split = np.split(gates, 3, -1)
    reset, candidate, update = (split[i] for i in order)
    candidate = np.tanh(sigmoid(reset) * candidate)
    update = sigmoid(update - 1)
    return update * candidate + (1 - update) * h


def test_gru_is_the_papers(rng, built):
    cell = built(GRUCell("cell", 4, 6))
    for variable in cell.weights:
        variable.assign(rng.normal(size=variable.shape))
    x, h = rng.normal(size=(5, 4)), rng.normal(size=(5, 6))
    actual = cell(tf.constant(x, tf.float32), tf.constant(h, tf.float32)).numpy()
    np.testing.assert_allclose(actual, numpy_gru(cell, x, h), atol=1e-5)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        assert np.abs(actual - numpy_gru(cell, x, h, order)).max() > 1e-2


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def test_one_step_is_the_papers(rng, built):
    """Section 1.4 of VeoRL's spec in NumPy: what feeds what, and which layers have an ELU."""
    rssm = built(make())
    for variable in rssm.weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    dense = lambda layer, *x: np.concatenate(x, -1) @ layer.kernel.numpy() + layer.bias.numpy()
    stoch, deter, action, embed, noise = (rng.normal(size=(4, n)) for n in (3, 6, 2, 7, 3))
    tensor = lambda x: tf.constant(x, tf.float32)
    state = rssm.initial(4) | {"stoch": tensor(stoch), "deter": tensor(deter)}
    deter = numpy_gru(rssm.cell, elu(dense(rssm.img_in, stoch, action)), deter)
    prior = dense(rssm.img_dist, elu(dense(rssm.img_out, deter)))
    posterior = dense(rssm.obs_dist, elu(dense(rssm.obs_out, deter, embed)))
    for step, output in (
        (rssm.imagine_step(state, tensor(action), tensor(noise)), prior),
        (rssm.observe_step(state, tensor(action), tensor(embed), tensor(noise)), posterior),
    ):
        mean, std = output[:, :3], 2 * sigmoid(output[:, 3:] / 2) + 0.1
        expected = {"deter": deter, "mean": mean, "std": std, "stoch": mean + std * noise}
        assert set(step) == set(expected)
        for key, value in expected.items():
            np.testing.assert_allclose(step[key], value, rtol=1e-4, atol=1e-4, err_msg=key)


def test_gru_normalises_its_three_gates_together(built, rng):
    """Scaling the columns of one gate changes the statistics that all three are divided by."""
    cell = built(GRUCell("cell", 4, 6))
    x, h = (tf.constant(rng.normal(size=(5, n)), tf.float32) for n in (4, 6))
    before = cell(x, h).numpy()
    scale = np.concatenate([np.full(6, 10.0), np.ones(12)])
    cell.dense.kernel.assign(cell.dense.kernel.numpy() * scale)
    cell.dense.norm.gamma.assign(np.concatenate([np.zeros(6), np.ones(12)]))
    constant_reset = cell(x, h).numpy()
    cell.dense.kernel.assign(cell.dense.kernel.numpy() / scale)
    assert np.abs(constant_reset - cell(x, h).numpy()).max() > 1e-3
    assert np.abs(constant_reset - before).max() > 1e-3


def test_zero_weights_give_the_known_numbers(zeroed, rng):
    rssm = zeroed(make())
    deter = tf.constant(rng.normal(size=(4, 6)), tf.float32)
    state = rssm.initial(4) | {"deter": deter}
    noise = tf.constant(rng.normal(size=(4, 3)), tf.float32)
    prior = rssm.imagine_step(state, tf.ones([4, 2]), noise)
    posterior = rssm.observe_step(state, tf.ones([4, 2]), tf.ones([4, 7]), noise)
    for reached in (prior, posterior):
        np.testing.assert_allclose(reached["deter"], 0.731059 * deter, rtol=1e-5)
        np.testing.assert_allclose(reached["mean"], np.zeros((4, 3)))
        np.testing.assert_allclose(reached["std"], np.full((4, 3), 1.1), rtol=1e-6)
        np.testing.assert_allclose(reached["stoch"], 1.1 * noise, rtol=1e-5)


@pytest.mark.parametrize("kind", LATENTS)
def test_observe_is_a_loop_over_observe_step(kind, rng, built):
    rssm = built(make(kind))
    embed = tf.constant(rng.normal(size=(4, 5, 7)), tf.float32)
    action = tf.constant(rng.normal(size=(4, 5, 2)), tf.float32)
    posterior, prior = rssm.observe(embed, action, SEED)
    noise = rssm.latent.noise(SEED, [5, 4])
    state = rssm.initial(4)
    for t in range(5):
        predicted = rssm.imagine_step(state, action[:, t], noise[t])
        state = rssm.observe_step(state, action[:, t], embed[:, t], noise[t])
        for key, value in state.items():
            np.testing.assert_allclose(posterior[key][:, t], value, atol=1e-5, err_msg=key)
        for key, value in prior.items():
            np.testing.assert_allclose(value[:, t], predicted[key], atol=1e-5, err_msg=key)
    assert set(prior) == set(rssm.latent.shapes)
    assert set(posterior) == {"deter", "stoch", *rssm.latent.shapes}


@pytest.mark.parametrize("kind", LATENTS)
def test_the_posterior_sees_the_frame_and_the_prior_does_not(kind, rng, built):
    rssm = built(make(kind))
    action = tf.constant(rng.normal(size=(1, 3, 2)), tf.float32)
    embed = rng.normal(size=(1, 3, 7)).astype(np.float32)
    posterior, prior = rssm.observe(tf.constant(embed), action, SEED)
    embed[:, 1] += 1
    changed, changed_prior = rssm.observe(tf.constant(embed), action, SEED)
    for key in rssm.latent.shapes:
        assert np.abs(changed[key] - posterior[key])[:, 1].max() > 1e-3
        np.testing.assert_array_equal(changed_prior[key][:, :2], prior[key][:, :2])
        np.testing.assert_array_equal(changed[key][:, :1], posterior[key][:, :1])
    np.testing.assert_array_equal(changed["deter"][:, :2], posterior["deter"][:, :2])


@pytest.mark.parametrize("kind", LATENTS)
def test_imagine_is_a_loop_over_imagine_step(kind, rng, built):
    rssm = built(make(kind))
    action = tf.constant(rng.normal(size=(4, 5, 2)), tf.float32)
    states = rssm.imagine(rssm.initial(4), action, SEED)
    noise = rssm.latent.noise(SEED, [5, 4])
    state = rssm.initial(4)
    for t in range(5):
        state = rssm.imagine_step(state, action[:, t], noise[t])
        for key, value in state.items():
            np.testing.assert_allclose(states[key][:, t], value, atol=1e-5, err_msg=key)


def test_features_are_the_sample_then_the_deterministic_part(rng, built):
    rssm = built(make("categorical"))
    state = {
        "stoch": tf.constant(rng.normal(size=(2, 4, 15)), tf.float32),
        "deter": tf.constant(rng.normal(size=(2, 4, 6)), tf.float32),
    }
    features = rssm.features(state)
    assert rssm.feature_size == 21 and features.shape == (2, 4, 21)
    np.testing.assert_array_equal(features[..., :15], state["stoch"])
    np.testing.assert_array_equal(features[..., 15:], state["deter"])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", LATENTS)
def test_the_state_has_the_same_types_all_along(kind, precision, built):
    rssm = built(make(kind, dtype=precision))
    initial = rssm.initial(2)
    assert not any(np.asarray(tf.cast(v, tf.float32)).any() for v in initial.values())
    posterior, prior = rssm.observe(tf.ones([2, 3, 7]), tf.ones([2, 3, 2]), SEED)
    imagined = rssm.imagine(initial, tf.ones([2, 3, 2]), SEED)
    assert {k: v.dtype for k, v in initial.items()} == {k: v.dtype for k, v in posterior.items()}
    assert {k: v.dtype for k, v in initial.items()} == {k: v.dtype for k, v in imagined.items()}
    assert all(posterior[k].dtype == tf.float32 for k in rssm.latent.shapes)
    assert all(v.dtype == tf.float32 for v in prior.values())


@pytest.mark.parametrize("kind", LATENTS)
def test_while_loop_and_unrolled_loop_agree(kind, rng, built):
    """Values and gradients, inside a graph."""
    embed = tf.constant(rng.normal(size=(2, 4, 7)), tf.float32)
    action = tf.constant(rng.normal(size=(2, 4, 2)), tf.float32)
    results = []
    for unroll in (True, False):
        rssm = built(make(kind, unroll=unroll))
        variables = [v.value for v in rssm.weights]

        @tf.function(autograph=False)
        def run(rssm=rssm, variables=variables):
            with tf.GradientTape() as tape:
                posterior, prior = rssm.observe(embed, action, SEED)
                loss = tf.reduce_sum(rssm.features(posterior) ** 2)
                loss += tf.add_n([tf.reduce_sum(v**2) for v in prior.values()])
            return posterior, tape.gradient(loss, variables)

        results.append(tf.nest.flatten(run()))
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unroll", [True, False])
def test_scan_stacks_every_carry(unroll):
    def step(carry, x):
        return {"sum": carry["sum"] + x["a"], "last": x["b"]}

    initial = {"sum": tf.constant([0.0]), "last": tf.constant([7])}
    inputs = {"a": tf.constant([[1.0], [2], [3]]), "b": tf.constant([[4], [5], [6]])}
    stacked = scan(step, initial, inputs, unroll)
    np.testing.assert_array_equal(stacked["sum"][:, 0], [1, 3, 6])
    np.testing.assert_array_equal(stacked["last"][:, 0], [4, 5, 6])


# ----- DreamerV3 of 2023 --------------------------------------------------------------------------

V3 = Style("silu", "layer", 1e-3, biased=False, average_fan=True)


@pytest.fixture
def third(built, rng) -> RSSM:
    """With weights that say something, the learnt start among them."""
    latent = CategoricalLatent(3, 5, 0.01)
    rssm = built(RSSM("trunk", 2, 7, 6, 9, latent, V3, learnt_start=True, bounded=True))
    for variable in rssm.weights:
        variable.assign(rng.normal(0, 0.7, variable.shape))
    return rssm


def normed(layer, *x):
    """A linear layer without bias, LayerNorm, SiLU."""
    x = np.concatenate(x, -1) @ layer.kernel.numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    x = x * layer.norm.gamma.numpy() + layer.norm.beta.numpy()
    return x * sigmoid(x) if layer.style.activation == "silu" else x


def test_only_layers_without_a_norm_have_a_bias(built):
    rssm = built(RSSM("trunk", 2, 7, 6, 9, CategoricalLatent(3, 5), V3))
    biases = {v.path for v in rssm.weights if v.path.endswith("bias")}
    assert biases == {"trunk/img_dist/bias", "trunk/obs_dist/bias"}


def test_one_step_is_dreamerv3s(rng, third):
    stoch, deter, action, embed = (rng.normal(size=(4, n)) for n in (15, 6, 2, 7))
    tensor = lambda x: tf.constant(x, tf.float32)
    state = third.initial(4) | {"stoch": tensor(stoch), "deter": tensor(deter)}
    x = normed(third.img_in, stoch, action / np.maximum(1, np.abs(action)))
    reset, candidate, update = np.split(normed(third.cell.dense, x, deter), 3, -1)
    update = sigmoid(update - 1)
    deter = update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * deter
    dist = lambda layer, x: x @ layer.kernel.numpy() + layer.bias.numpy()
    prior = dist(third.img_dist, normed(third.img_out, deter))
    posterior = dist(third.obs_dist, normed(third.obs_out, deter, embed))
    noise = third.latent.noise(SEED, [4])
    for step, logits in (
        (third.imagine_step(state, tensor(action), noise), prior),
        (third.observe_step(state, tensor(action), tensor(embed), noise), posterior),
    ):
        np.testing.assert_allclose(step["deter"], deter, atol=1e-4)
        logits = logits.reshape(4, 3, 5)
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        probs = 0.99 * probs + 0.01 / 5
        np.testing.assert_allclose(tf.nn.softmax(step["logit"]), probs, rtol=1e-3, atol=1e-5)


def test_the_start_is_learnt(third):
    """tanh of a vector, and the mode of the prior there; its gradient comes from the sequence."""
    state = third.initial(2)
    start = np.tanh(third.start.numpy())
    np.testing.assert_allclose(state["deter"], [start, start], atol=1e-6)
    logit = third.prior(state["deter"])["logit"].numpy()
    mode = np.eye(5)[logit.argmax(-1)].reshape(2, 15)
    np.testing.assert_array_equal(state["stoch"], mode)
    with tf.GradientTape() as tape:
        posterior, _ = third.observe(tf.ones([2, 3, 7]), tf.ones([2, 3, 2]), SEED)
        loss = tf.reduce_sum(posterior["deter"])
    assert np.abs(tape.gradient(loss, third.start.value)).max() > 0


def test_a_sequence_of_dreamerv3_is_a_loop_over_steps(third, rng):
    embed = tf.constant(rng.normal(size=(2, 4, 7)), tf.float32)
    action = tf.constant(rng.normal(size=(2, 4, 2)), tf.float32)
    posterior, _ = third.observe(embed, action, SEED)
    noise, state = third.latent.noise(SEED, [4, 2]), third.initial(2)
    for t in range(4):
        state = third.observe_step(state, action[:, t], embed[:, t], noise[t])
        for key, value in state.items():
            np.testing.assert_allclose(posterior[key][:, t], value, atol=1e-4)
