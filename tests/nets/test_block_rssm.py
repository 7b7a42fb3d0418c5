"""DreamerV3's block GRU against a dense GRU with a block mask, in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.nets.block_rssm import BlockLinear, BlockRSSM
from veorl_tf.nets.dense import Style
from veorl_tf.nets.distributions import CategoricalLatent

STYLE = Style("silu", "rms", 1e-4, average_fan=False)
SEED = tf.constant([1, 2])
D, HIDDEN, BLOCKS, A, E = 12, 5, 3, 2, 7


@pytest.fixture
def rssm(built, rng) -> BlockRSSM:
    model = built(BlockRSSM("trunk", A, E, D, HIDDEN, CategoricalLatent(3, 4), STYLE, BLOCKS))
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.7, variable.shape))
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms(norm, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * norm.gamma.numpy()


def hidden(layer, *x):
    x = np.concatenate(x, -1) @ layer.kernel.numpy() + layer.bias.numpy()
    return silu(rms(layer.norm, x))


def dense_kernel(layer: BlockLinear) -> np.ndarray:
    """The block-diagonal kernel as a matrix `[G I, G O]`: zero outside the blocks."""
    groups, rows, columns = layer.kernel.shape
    matrix = np.zeros((groups * rows, groups * columns))
    for g in range(groups):
        matrix[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = layer.kernel[g]
    return matrix


def next_deter(rssm, deter, stoch, action):
    """Steps 1 to 4 of DreamerV3's `_core`, with dense kernels under a block mask."""
    action = action / np.maximum(1, np.abs(action))
    parts = [hidden(rssm.deter_in, deter), hidden(rssm.stoch_in, stoch)]
    parts.append(hidden(rssm.action_in, action))
    size = D // BLOCKS
    blocks = [
        np.concatenate([deter[:, g * size : (g + 1) * size], *parts], -1) for g in range(BLOCKS)
    ]
    x = np.concatenate(blocks, -1) @ dense_kernel(rssm.layer) + rssm.layer.bias.numpy()
    x = silu(rms(rssm.norm, x))
    gates = x @ dense_kernel(rssm.gates) + rssm.gates.bias.numpy()
    gates = gates.reshape(len(x), BLOCKS, 3, size)  # the three stand inside each block
    reset, candidate, update = (gates[:, :, i].reshape(len(x), D) for i in range(3))
    update = sigmoid(update - 1)
    return update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * deter


def arrays(rng, count=4):
    shapes = {"deter": D, "stoch": 12, "action": A, "embed": E}
    return {k: rng.normal(0, 1.5, (count, n)) for k, n in shapes.items()}


def tensors(**named):
    return {k: tf.constant(v, tf.float32) for k, v in named.items()}


def test_block_linear_is_a_dense_layer_with_a_block_mask(built, rng):
    layer = built(BlockLinear("layer", 6, 12, 3, STYLE))
    layer.bias.assign(rng.normal(size=12))
    x = rng.normal(size=(5, 6))
    expected = x @ dense_kernel(layer) + layer.bias.numpy()
    actual = layer(tf.constant(x.reshape(5, 3, 2), tf.float32)).numpy().reshape(5, 12)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert (dense_kernel(layer) == 0).mean() == pytest.approx(2 / 3, abs=0.01)


def test_the_width_of_all_blocks_is_the_fan(built):
    kernel = built(BlockLinear("layer", 640, 640, 8, STYLE)).kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(1 / 640), rel=0.02)
    assert np.abs(kernel).max() <= 2 * 1.1369 * np.sqrt(1 / 640)


def test_blocks_must_divide_the_widths():
    with pytest.raises(ValueError, match="3 blocks"):
        BlockLinear("layer", 8, 12, 3, STYLE)


def test_one_step_is_the_masked_dense_gru(rssm, rng):
    data = arrays(rng)
    state = rssm.initial(4) | tensors(deter=data["deter"], stoch=data["stoch"])
    noise = rssm.latent.noise(SEED, [4])
    deter = next_deter(rssm, data["deter"], data["stoch"], data["action"])
    plain = lambda layer, x: x @ layer.kernel.numpy() + layer.bias.numpy()
    prior = plain(rssm.img_dist, hidden(rssm.img_out1, hidden(rssm.img_out0, deter)))
    posterior = plain(rssm.obs_dist, hidden(rssm.obs_out, deter, data["embed"]))
    action, embed = tensors(a=data["action"], e=data["embed"]).values()
    for step, logits in (
        (rssm.imagine_step(state, action, noise), prior),
        (rssm.observe_step(state, action, embed, noise), posterior),
    ):
        np.testing.assert_allclose(step["deter"], deter, atol=1e-5)
        np.testing.assert_allclose(step["logit"], logits.reshape(4, 3, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_sequence_is_a_loop_over_steps(unroll, built, rng, rssm):
    rssm.unroll = unroll
    embed, action = tensors(e=rng.normal(size=(2, 5, E)), a=rng.normal(size=(2, 5, A))).values()
    posterior, prior = rssm.observe(embed, action, SEED)
    noise, state = rssm.latent.noise(SEED, [5, 2]), rssm.initial(2)
    for t in range(5):
        expected = rssm.prior(rssm.next_deter(state, action[:, t]))
        state = rssm.observe_step(state, action[:, t], embed[:, t], noise[t])
        np.testing.assert_allclose(prior["logit"][:, t], expected["logit"], atol=1e-4)
        for key, value in state.items():
            np.testing.assert_allclose(posterior[key][:, t], value, atol=1e-4)


def test_large_actions_are_scaled_down(rssm, rng):
    state = rssm.initial(4) | tensors(deter=arrays(rng)["deter"])
    large = tf.constant([[5.0, -0.5]] * 4)
    expected = rssm.next_deter(state, tf.constant([[1.0, -0.5]] * 4))
    np.testing.assert_allclose(rssm.next_deter(state, large), expected, atol=1e-6)
