"""Rules for initial weights: functions of a shape and a generator."""

from collections.abc import Callable

import numpy as np

Rule = Callable[[tuple, np.random.Generator], np.ndarray]

# The standard deviation of a normal distribution that is cut off at two of its own.
TRUNCATED = 0.87962566103423978


def zeros(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ones(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    return np.ones(shape, np.float32)


def codebook(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Uniform in +-1/entries, `[entries, size]` (VeoRL's choice)."""
    return rng.uniform(-1 / shape[0], 1 / shape[0], shape).astype(np.float32)


def glorot_uniform(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Dreamer's choice up to its second version."""
    limit = np.sqrt(6.0 / sum(fans(shape)))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def truncated_normal(average: bool, scale: float = 1.0, fan_in: int | None = None) -> Rule:
    """A normal distribution cut off at two standard deviations, of variance `1 / fan`: DreamerV3's
    choice.

    The fan is the average of inputs and outputs, or the inputs alone (`fan_in` where the shape does
    not tell them). `scale` multiplies the variance if the fan is averaged (as in the code of 2023),
    the numbers if not (2025).
    """

    def rule(shape: tuple, rng: np.random.Generator) -> np.ndarray:
        inputs, outputs = fans(shape)
        std = np.sqrt(scale / ((inputs + outputs) / 2)) if average else 0.0
        std = std if average else scale / np.sqrt(fan_in or inputs)
        if std == 0.0:
            return zeros(shape, rng)
        return (std / TRUNCATED * _cut_normal(shape, rng)).astype(np.float32)

    return rule


def fans(shape: tuple) -> tuple[int, int]:
    """Inputs and outputs of a kernel `[..., inputs, outputs]`, the leading axes being space."""
    space = int(np.prod(shape[:-2]))
    return space * shape[-2], space * shape[-1]


def _cut_normal(shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Standard normal numbers of absolute value at most 2: others are drawn again."""
    x = rng.standard_normal(shape, np.float32)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()), np.float32)
    return x
