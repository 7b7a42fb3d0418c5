"""Half precision and while loops give the numbers of float32 and of unrolled loops (invariant 30 of
VeoRL's spec), and so does XLA."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Update

SEED = tf.constant([4, 2])


def all_losses(agent, config, random_batches):
    """Terms and metrics of every stage, on the same batches and with the same noise."""
    found = {}
    for stage in agent.stages():
        stage.begin()
        terms, _ = stage.losses(random_batches(stage, config), SEED)
        found |= {f"{stage.name}/{k}": v.numpy() for k, v in terms.items()}
    return found


@pytest.fixture(scope="module")
def float32(tiny_config, make_agent, random_batches):
    """Losses by the names of the blocks, computed once."""
    found = {}

    def losses(names):
        if names not in found:
            config = tiny_config(names)
            found[names] = all_losses(make_agent(config), config, random_batches)
        return found[names]

    return losses


@pytest.mark.parametrize(
    ("names", "unroll", "precision"),
    [
        *itertools.product(
            ["metaworld veorl", "minedojo dreamerv2"],
            [True, False],
            ["mixed_bfloat16", "mixed_float16"],
        ),
        ("metaworld dreamerv3", False, "mixed_bfloat16"),
        ("dmc_vision dreamerv3_nature", False, "mixed_float16"),
        ("dmc_vision dreamerv3_nature", False, "mixed_bfloat16"),
        ("metaworld veorl_dv3", False, "mixed_bfloat16"),
    ],
)
def test_half_precision_gives_float32s_losses(
    names, precision, unroll, tiny_config, make_agent, random_batches, float32
):
    config = tiny_config(names, {"precision": precision, "unroll": unroll})
    agent = make_agent(config)
    assert agent.model.rssm.compute_dtype == precision.removeprefix("mixed_")
    actual = all_losses(agent, config, random_batches)
    assert set(actual) == set(float32(names))
    for name, value in float32(names).items():
        assert actual[name].dtype == np.float32
        assert actual[name] == pytest.approx(value, rel=1e-2), name


@pytest.mark.parametrize(
    "names",
    [
        "metaworld veorl",
        "minedojo veorl",
        "dmc_vision dreamerv2",
        "metaworld dreamerv3",
        "dmc_vision dreamerv3_nature",
        "metaworld veorl_dv3",
    ],
)
def test_while_loops_give_the_losses_of_unrolled_ones(
    names, tiny_config, make_agent, random_batches, float32
):
    config = tiny_config(names, {"unroll": False})
    actual = all_losses(make_agent(config), config, random_batches)
    for name, value in float32(names).items():
        assert actual[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(("precision", "value"), [("float32", 0), ("mixed_float16", 255)])
def test_black_and_white_frames_are_finite(
    precision, value, tiny_config, fresh_agent, random_windows, derived, eager
):
    """Errors of one sign add up: float16 needs a small loss scale here, and finds it."""
    config = tiny_config("metaworld veorl", {"precision": precision})
    agent = fresh_agent(config)
    for stage in agent.stages():
        stage.start()
        windows = {
            name: batch | {"image": tf.fill(batch["image"].shape, tf.constant(value, tf.uint8))}
            for name, batch in random_windows(stage, config).items()
        }
        batches = derived(stage, windows)
        attempts = 1
        if precision == "mixed_float16":
            attempts = 4
            stage.loss_scale.scale.assign(2.0**7)
        update = Update(stage, 0)
        with eager():
            for index in range(attempts):
                metrics = update(batches, index)
                losses = {k: v.numpy() for k, v in metrics.items() if k.startswith("loss/")}
                assert np.isfinite(list(losses.values())).all(), losses
                if all(np.isfinite(metrics[f"{group}/grad_norm"]) for group in stage.groups):
                    break
            else:
                pytest.fail(f"stage {stage.name}: no step in {attempts} attempts")
    assert all(np.isfinite(v).all() for v in agent.weights().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "unroll", "precision", "tolerance"),
    [
        ("metaworld veorl", False, "float32", 1e-3),
        ("minedojo veorl", False, "float32", 1e-3),
        ("dmc_vision dreamerv2", True, "float32", 1e-3),
        ("metaworld dreamerv3", False, "float32", 1e-3),
        ("minedojo dreamerv3_nature", False, "float32", 1e-3),
        ("metaworld veorl_dv3", False, "float32", 1e-3),
        ("metaworld veorl", False, "mixed_bfloat16", 2e-2),
        ("minedojo veorl", False, "mixed_float16", 0.15),  # near ties of logits fall otherwise
    ],
)
def test_xla_gives_the_losses_of_plain_graphs(
    names, unroll, precision, tolerance, tiny_config, make_agent, random_batches, silent, eager
):
    """One compiled update of every stage against float32, Gaussian and categorical. Without noise:
    XLA orders random numbers otherwise."""
    config = tiny_config(names, {"compiler": "xla", "unroll": unroll, "precision": precision})
    exact = tiny_config(names, {"unroll": unroll})
    compiled, plain = silent(make_agent(config)), silent(make_agent(exact))
    for stage, reference in zip(compiled.stages(), plain.stages(), strict=True):
        stage.start()
        reference.start()
        batches = random_batches(stage, config)
        actual = Update(stage, 0, jit=True)(batches, 0)
        with eager():
            expected = Update(reference, 0)(batches, 0)
        for name in (n for n in expected if n.startswith("loss/")):
            value = expected[name].numpy()
            assert actual[name].numpy() == pytest.approx(value, rel=tolerance), name
        for path, variable in stage.variables.items():
            variable.assign(reference.variables[path])  # the next stage starts from equal weights
