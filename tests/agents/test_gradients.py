"""In half precision every variable learns what it learns in float32: the gradients of trained nets,
whose errors nearly cancel, so that a sum that is a little off is far off."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Update, weighted_sum

# Free nats would hide gradients; faster learning, since few updates must do; and nets less narrow
# than elsewhere, in which the rounding of single numbers weighs less.
WIDTHS = ("v2.deter", "v2.hidden", "v2.units", "v3.deter", "v3.units", "nature.deter")
OVERRIDES = {
    **{"kl.free": 0.0, "model.lr": 1e-3, "actor.lr": 1e-3, "critic.lr": 1e-3},
    **dict.fromkeys((*WIDTHS, "nature.units", "veorl.ban_units"), 64),
    **dict.fromkeys(("v2.depth", "v3.depth", "nature.depth"), 8),
    "nature.hidden": 32,
}
UPDATES, BATCHES = 40, 3
# Cosine, at least, and how far off the norm may be: bfloat16 keeps 8 bits, float16 keeps 11. (How
# near nets of the size of `small` come in bfloat16, `benchmarks.gradients` tells: docs/speed.md.)
TOLERANCES = {"mixed_bfloat16": (0.98, 0.1), "mixed_float16": (0.999, 0.02)}
# The same for variables with less than `SMALL` of the whole gradient; under `NOISE` is rounding.
LOOSE = (0.95, 0.2)
SMALL, NOISE = 1e-2, 1e-4


@pytest.fixture
def smooth(silent, monkeypatch):
    """`smooth(agent)`: without noise, and with probabilities in place of categorical samples: of
    which class the largest logit is, rounding may decide."""

    def make(agent):
        latent = silent(agent).latent
        if hasattr(latent, "groups"):
            soft = lambda stats, noise=None: latent._flat(tf.nn.softmax(stats["logit"]))
            monkeypatch.setattr(latent, "sample", soft)
            monkeypatch.setattr(latent, "mode", soft)
        return agent

    return make


def gradients(stage, batches, scale: float) -> dict[str, np.ndarray]:
    """Of the stage's loss, computed times `scale`."""
    variables = stage.variables
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        terms, _ = stage.losses(batches, tf.constant([4, 2]))
        loss = weighted_sum(terms, stage.scales) * scale
    found = tape.gradient(loss, variables, unconnected_gradients="zero")
    return {k: np.asarray(tf.convert_to_tensor(g), np.float64) / scale for k, g in found.items()}


@pytest.mark.parametrize(
    "names",
    [
        "metaworld veorl",
        *(
            pytest.param(names, marks=pytest.mark.slow)
            for names in (
                "minedojo veorl",
                "dmc_vision dreamerv2",
                "metaworld dreamerv3",
                "dmc_vision dreamerv3_nature",
                "metaworld veorl_dv3",
            )
        ),
    ],
)
def test_half_precision_gives_float32s_gradients(
    names, tiny_config, make_agent, smooth, random_batches
):
    make = lambda **more: smooth(make_agent(tiny_config(names, OVERRIDES | more)))
    config = tiny_config(names, OVERRIDES)
    agent = make()
    halves = {precision: make(precision=precision) for precision in TOLERANCES}
    for index, stage in enumerate(agent.stages()):
        stage.start()
        batches = [random_batches(stage, config, seed) for seed in range(BATCHES)]
        update = Update(stage, 0)
        for i in range(UPDATES):
            update(batches[i % BATCHES], i)
        exact = gradients(stage, batches[0], 1.0)
        for precision, half in halves.items():
            for path, variable in half.weights().items():
                variable.assign(agent.weights()[path])
            scale = 2.0**7 if precision == "mixed_float16" else 1.0
            found = gradients(half.stages()[index], batches[0], scale)
            assert_alike(exact, found, *TOLERANCES[precision], f"{stage.name}, {precision}")


def assert_alike(exact, found, cosine: float, norm: float, where: str) -> None:
    whole = np.sqrt(sum(np.sum(g**2) for g in exact.values()))
    for path, one in exact.items():
        two, size = found[path], np.linalg.norm(one)
        if size < NOISE * whole:
            assert np.linalg.norm(two) < 2 * NOISE * whole, (where, path)
            continue
        ratio = np.linalg.norm(two) / size
        alike = np.sum(one * two) / (size * np.linalg.norm(two))
        report = f"{where}: {path}: cosine {alike:.4f}, norm {ratio:.3f}, part {size / whole:.1e}"
        least, most = (cosine, norm) if size > SMALL * whole else LOOSE
        assert alike >= least and abs(ratio - 1) <= most, report
