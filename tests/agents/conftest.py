"""TensorFlow comes up once and silently; agents are built through the registry, as a run does."""

from contextlib import contextmanager

import numpy as np
import pytest

from veorl_tf.core.quiet import load_tensorflow

load_tensorflow()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


@pytest.fixture(scope="session")
def eager():
    """`with eager():` traces nothing, for tests in which compiling would take most of the time."""
    import tensorflow as tf

    @contextmanager
    def switch():
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)

    return switch


@pytest.fixture(scope="session")
def snapshot():
    """`snapshot(agent)`: every weight by path, as arrays of their own."""
    return lambda agent: {path: v.numpy().copy() for path, v in agent.weights().items()}


@pytest.fixture
def silent(monkeypatch):
    """`silent(agent)`: latents and actions are drawn with zero noise (actions: their median)."""
    import tensorflow as tf

    def make(agent):
        latent, action = agent.latent, agent.learner.action
        zero = lambda seed, leading: tf.zeros([*leading, *latent.noise_shape])
        uniform = agent.config.behavior.actor == "trunc_normal" and not agent.action_space.discrete
        median = 0.5 if uniform else 0.0
        middle = lambda seed, leading: tf.fill([*leading, action.size], median)
        monkeypatch.setattr(latent, "noise", zero)
        monkeypatch.setattr(action, "noise", middle)
        return agent

    return make


@pytest.fixture(scope="session")
def start_states():
    """`start_states(agent, count)`: states such as a posterior gives them, and not all alike."""
    import tensorflow as tf

    def make(agent, count: int = 5, seed: int = 0):
        rng = np.random.Generator(np.random.Philox(seed))
        rssm = agent.model.rssm
        embed = tf.constant(rng.normal(size=(count, 2, agent.model.encoder.size)), tf.float32)
        action = tf.constant(rng.uniform(-1, 1, (count, 2, rssm.action_size)), tf.float32)
        states, _ = rssm.observe(embed, action, tf.constant([seed, 7]))
        return {k: v[:, -1] for k, v in states.items()}

    return make


# What the behaviour learner can be made of; every test that asks for `case` runs with all of them.
CASES = {
    "veorl": ("metaworld veorl", {}),
    "veorl, categorical": ("minedojo veorl", {}),
    "veorl, both": ("metaworld veorl", {"behavior.gradient": "both", "behavior.mix": 0.3}),
    "veorl, dreamer's indexing": ("minedojo veorl", {"behavior.indexing": "dreamerv2"}),
    "dreamer": ("metaworld dreamerv2", {}),
    "dreamer, its own indexing": ("dmc_vision dreamerv2", {}),
    "dreamer, reinforce": (
        "dmc_vision dreamerv2",
        {"behavior.gradient": "reinforce", "v2.discount_head": True},
    ),
    "dreamerv3": ("dmc_vision dreamerv3", {}),
    "dreamerv3, discrete": ("minedojo dreamerv3", {}),
    "dreamerv3 of 2025": ("dmc_vision dreamerv3_nature", {}),
    "veorl_dv3": ("metaworld veorl_dv3", {}),
}


@pytest.fixture
def imagining(tiny_config, fresh_agent, silent, start_states, rng):
    """`imagining(blocks, overrides)`: an agent without noise whose heads say something, and five
    states to start from."""

    def make(names, overrides=None):
        overrides = {"behavior.entropy": 0.05} | dict(overrides or {})
        agent = silent(fresh_agent(tiny_config(names, overrides)))
        for name in ("reward", "critic", "slow_critic", "discount", "actor"):
            for variable in agent.nets[name].weights if name in agent.nets else ():
                variable.assign(rng.normal(0, 0.5, variable.shape))
        if "return_scale" in agent.nets:
            agent.nets["return_scale"].range.assign([-3.0, 5.0])
        return agent, start_states(agent)

    return make


@pytest.fixture(params=CASES)
def case(request, imagining):
    return imagining(*CASES[request.param])
