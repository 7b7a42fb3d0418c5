"""What all simulators here have in common: pixels in, four actions out, repeats, a time limit."""

from __future__ import annotations

import gymnasium
import numpy as np

from envs.camera import Camera
from envs.options import Options


class PixelEnv(gymnasium.Env):
    """Observation {"image": uint8 [S, S, 3]}, action float32 [4] in [-1, 1].

    `step` returns the reward summed over `action_repeat` simulator steps and `info["success"]`,
    their maximum (0.0 or 1.0). `terminated` is never True; `truncated` is True once `time_limit`
    simulator steps are done (the last decision is shorter when the repeat does not divide it).

    A subclass implements `_restart(seed)`, `_advance(action) -> (reward, success)` for one
    simulator step, and perhaps `_before_picture`. `simulator` has MuJoCo's `model` and `data`;
    `camera` and `turn` are what `Camera` calls so.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, options: Options, simulator, camera: str | dict, turn: str):
        size = options.image_size
        self.observation_space = gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._size, self._repeat, self._limit = size, options.action_repeat, options.time_limit
        self._camera = None  # images of zeros
        if options.render:
            model, data = simulator.model, simulator.data
            self._camera = Camera(model, data, size, camera, options.render_quality, turn)
        self._seeds = np.random.Generator(np.random.Philox(options.seed))
        self._done = self._limit  # no step before the first reset

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Begins an episode drawn from `seed` (without one: from the environment's generator)."""
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        self._restart(int(seed))
        self._done = 0
        return self._observation(), {"success": 0.0}

    def step(self, action: np.ndarray):
        """Repeats the clipped action; raises ValueError for a bad action, a finished episode, or a
        reward that is not finite."""
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 4 finite numbers, not {action.tolist()}")
        if self._done >= self._limit:
            raise ValueError("the episode is over (or not begun): call reset first")
        action = np.clip(action, -1.0, 1.0)
        total, best = 0.0, 0.0
        for _ in range(min(self._repeat, self._limit - self._done)):
            reward, success = self._advance(action)
            total, best = total + float(reward), max(best, float(success))
            self._done += 1
        if not np.isfinite(total):
            raise ValueError(f"the simulator's reward is {total}")
        truncated = self._done >= self._limit
        return self._observation(), total, False, truncated, {"success": best}

    def render(self) -> np.ndarray:
        """The present picture, uint8 [S, S, 3]."""
        return self._observation()["image"]

    def close(self) -> None:
        """Frees the renderer."""
        if self._camera is not None:
            self._camera.close()

    def _observation(self) -> dict[str, np.ndarray]:
        if self._camera is None:
            return {"image": np.zeros((self._size, self._size, 3), np.uint8)}
        self._before_picture()
        return {"image": self._camera.image()}

    def _restart(self, seed: int) -> None:
        raise NotImplementedError("_restart(seed: int) -> None")

    def _advance(self, action: np.ndarray) -> tuple[float, float]:
        raise NotImplementedError("_advance(action: float32 [4]) -> (reward, success)")

    def _before_picture(self) -> None:
        """What the model needs for the picture alone, such as the mark of a goal."""
