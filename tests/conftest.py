"""Shared fixtures: tiny configurations, and batches of random windows.

TensorFlow is imported inside the fixtures that need it: tests of `core`, `data` and `envs` start
without it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veorl_tf.core.config import Config, load_blocks, resolve

CONFIGS = Path(__file__).parents[1] / "configs.yaml"

# Over `debug`: an update of any stage takes milliseconds, and a traced one compiles in seconds.
TINY = {
    "precision": "float32",
    "compiler": "graph",
    "updates_per_call": 1,
    "v2.deter": 16,
    "v2.hidden": 16,
    "v2.stoch": 4,
    "v2.classes": 4,
    "v2.depth": 4,
    "v2.units": 16,
    "v3.deter": 16,
    "v3.units": 16,
    "v3.stoch": 4,
    "v3.classes": 4,
    "v3.bins": 21,
    "nature.deter": 16,
    "nature.hidden": 8,
    "nature.units": 16,
    "nature.stoch": 4,
    "nature.classes": 4,
    "nature.blocks": 2,
    "nature.bins": 21,
    "data.batch": 3,
    "data.length": 4,
    "data.long_length": 7,
    "data.source_length": 5,
    "behavior.horizon": 4,
    "behavior.slow_every": 2,
}


FAULTS = pytest.StashKey[list]()


def pytest_configure(config) -> None:
    config.stash[FAULTS] = []


@pytest.fixture(scope="session")
def faults(request) -> list[tuple[str, str, str]]:
    """Rows (fault, where, what became of it) of the table that the tests print in the end."""
    return request.config.stash[FAULTS]


def pytest_terminal_summary(terminalreporter, config) -> None:
    rows = config.stash[FAULTS]
    if rows:
        terminalreporter.section("faults injected, and survived")
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        for fault, where, outcome in rows:
            terminalreporter.line(f"{fault:<{widths[0]}}  {where:<{widths[1]}}  {outcome}")


@pytest.fixture(scope="session")
def blocks() -> dict[str, dict[str, Any]]:
    """The blocks of `configs.yaml`."""
    return load_blocks(CONFIGS)[0]


@pytest.fixture(scope="session")
def tiny_config(blocks) -> Callable[..., Config]:
    """`tiny_config("metaworld veorl", {"behavior.horizon": 3})`: blocks, `debug`, tiny sizes."""

    def make(names: str, overrides: Mapping[str, Any] | None = None) -> Config:
        return resolve(blocks, [*names.split(), "debug"], TINY | dict(overrides or {}))

    return make


@pytest.fixture(scope="session")
def make_agent():
    """`make_agent(config)`: a fresh agent for the actions that the configuration names."""
    from veorl_tf.agents import registry
    from veorl_tf.agents.agent import ActionSpace

    return lambda config: registry.make_agent(
        config, ActionSpace(config.action.size, config.action.discrete)
    )


@pytest.fixture(scope="session")
def fresh_agent(make_agent):
    """As `make_agent`, but made once per configuration; its weights are drawn anew at each call."""
    from veorl_tf.nets.base import initialise

    agents = {}

    def make(config):
        agent = agents.setdefault(config, None) or make_agent(config)
        for net in agent.nets.values():
            initialise(net, config.seed)
        agents[config] = agent
        return agent

    return make


@pytest.fixture(scope="session")
def random_windows() -> Callable[..., dict[str, dict[str, Any]]]:
    """`random_windows(stage, config, seed=0)`: windows of every stream that a stage draws, as they
    are stored: with images, and nothing derived."""
    import tensorflow as tf

    def make(stage, config: Config, seed: int = 0) -> dict[str, dict[str, Any]]:
        rng = np.random.Generator(np.random.Philox(seed))
        return {
            name: {k: tf.constant(v) for k, v in _window(rng, stream, config).items()}
            for name, stream in sorted(stage.streams.items())
        }

    return make


@pytest.fixture(scope="session")
def derived() -> Callable[..., dict[str, dict[str, Any]]]:
    """`derived(stage, windows)`: the batches that a stage is given, its columns computed window by
    window and compacted, without what no stream reads."""
    import tensorflow as tf

    from veorl_tf.data.jumps import compact

    def make(stage, windows):
        batches = {}
        for name, stream in stage.streams.items():
            window = dict(windows[name])
            for column in stage.columns:
                if column.name in stream.reads:
                    rows = tf.stack([column.compute(image) for image in window["image"]])
                    padding = [[0, 0], [column.context, 0]] + [[0, 0]] * (len(rows.shape) - 2)
                    window[column.name] = tf.pad(rows, padding)
            batch = {key: window[key] for key in stream.keys}
            if stream.slots:
                index = window["code"].numpy()[:, 1:]
                jumps = compact(index, stream.slots)
                batch |= {k: tf.gather(v, jumps.frame, batch_dims=1) for k, v in batch.items()}
                parts = {"code": jumps.code, "mask": jumps.mask, "runs": jumps.runs}
                batch |= {k: tf.constant(v) for k, v in (parts | {"index": index}).items()}
            batches[name] = batch
        return batches

    return make


@pytest.fixture(scope="session")
def random_batches(random_windows, derived) -> Callable[..., dict[str, dict[str, Any]]]:
    """`random_batches(stage, config, seed=0)`: a batch of every stream that a stage draws."""
    return lambda stage, config, seed=0: derived(stage, random_windows(stage, config, seed))


def _window(rng: np.random.Generator, stream, config: Config) -> dict[str, np.ndarray]:
    """Windows whose frames come from a few images and often stay, so that behaviours have runs."""
    shape = (config.data.batch, stream.length)
    images = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    chosen = np.repeat(rng.integers(0, 4, shape), 2, 1)[:, : stream.length]
    size = config.action.size
    action = rng.uniform(-1, 1, (*shape, size))
    if config.action.discrete:
        action = np.eye(size)[rng.integers(0, size, shape)]
    arrays = {
        "image": images[chosen],
        "action": action.astype(np.float32),
        "reward": rng.normal(0, 2, shape).astype(np.float32),
        "discount": (rng.uniform(size=shape) > 0.2).astype(np.float32),
    }
    return {key: value for key, value in arrays.items() if key in (*stream.keys, "image")}
