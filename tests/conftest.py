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
    "v2.deter": 16,
    "v2.hidden": 16,
    "v2.stoch": 4,
    "v2.classes": 4,
    "v2.depth": 4,
    "v2.units": 16,
    "data.batch": 3,
    "data.length": 4,
    "data.long_length": 7,
    "data.source_length": 5,
    "behavior.horizon": 4,
    "behavior.slow_every": 2,
}


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
def random_batches() -> Callable[..., dict[str, dict[str, Any]]]:
    """`random_batches(stage, config, seed=0)`: a batch of every stream that a stage draws."""
    import tensorflow as tf

    def make(stage, config: Config, seed: int = 0) -> dict[str, dict[str, Any]]:
        rng = np.random.Generator(np.random.Philox(seed))
        return {
            name: {k: tf.constant(v) for k, v in _window(rng, stream, config).items()}
            for name, stream in sorted(stage.streams.items())
        }

    return make


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
    return {key: arrays[key] for key in stream.keys}
