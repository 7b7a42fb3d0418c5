"""Episodes of random numbers, for tests, benchmarks and domains whose simulator is not at hand."""

from __future__ import annotations

import numpy as np

from veorl_tf.core import seeds


def random_episode(
    length: int, seed: int = 0, action_size: int = 4, image_size: int = 64, discrete: bool = False
) -> dict[str, np.ndarray]:
    """An episode with the layout of target data and no sense.

    Args:
        length: n, stored frames with the reset's.
        seed: equal seeds give equal episodes.
        discrete: actions are one-hot instead of uniform in [-1, 1].
    Returns:
        image uint8 [n, S, S, 3], action float32 [n, A], reward, discount, success float32 [n]; row
        0 of action and reward is zero.
    """
    rng = seeds.generator(seed, "data", "random_episode")
    if discrete:
        action = np.eye(action_size, dtype=np.float32)[rng.integers(action_size, size=length)]
    else:
        action = rng.uniform(-1, 1, (length, action_size)).astype(np.float32)
    reward = rng.uniform(0, 1, length).astype(np.float32)
    action[0], reward[0] = 0, 0
    return {
        "image": rng.integers(0, 256, (length, image_size, image_size, 3), np.uint8),
        "action": action,
        "reward": reward,
        "discount": np.ones(length, np.float32),
        "success": (reward > 0.8).astype(np.float32),
    }
