"""Meta-World's fifty tasks as pixels in, four actions out (built on metaworld 3.1.1).

What is ours: goals are drawn anew at each reset from its seed (metaworld ignores the seed of
`reset`), actions are repeated, the episode is cut at `time_limit`, and pictures are cheap and
upright. The reward is metaworld's dense "v2" one, in [0, 10] per simulator step.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from envs.camera import Camera
from envs.errors import MissingDependency


class MetaWorld(gymnasium.Env):
    """One task. Observation {'image': uint8 [S, S, 3]}, action float32 [4] in [-1, 1].

    The action moves the gripper by (x, y, z) * 1 cm per simulator step and closes the fingers.
    `step` returns the reward summed over the repeated simulator steps and `info['success']`, their
    maximum (0.0 or 1.0); `terminated` is never True; `truncated` is True once `time_limit`
    simulator steps are done (the last decision is shorter when the repeat does not divide it).
    Arguments as in `envs.make`, `name` without its prefix: 'door_close'.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        camera: str,
        action_repeat: int,
        time_limit: int,
        render_quality: str,
        view: str,
        seed: int,
        render: bool,
    ):
        self.name = name
        self._repeat, self._limit, self._size = action_repeat, time_limit, image_size
        self._sim = _simulator(name)
        self.observation_space = gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._goals = np.random.Generator(np.random.Philox(seed))
        self._done = self._limit  # no step before the first reset
        self._camera = None
        if render:
            # The corner cameras hang upside down in the model; the others are upright as they are.
            turn = {"rows": "rows", "true": "half"}[view] if camera.startswith("corner") else "none"
            self._camera = Camera(
                self._sim.model, self._sim.data, image_size, camera, render_quality, turn
            )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Draws a goal from `seed` (without one: from the environment's own generator)."""
        if seed is None:
            seed = int(self._goals.integers(2**31))
        self._sim.seed(int(seed))
        self._state, _ = self._sim.reset()
        self._done = 0
        return self._observation(), {"success": 0.0}

    def step(self, action: np.ndarray):
        """Repeats the clipped action; raises ValueError for a bad action or a finished episode."""
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 4 finite numbers, not {action.tolist()}")
        if self._done >= self._limit:
            raise ValueError("the episode is over (or not begun): call reset first")
        action = np.clip(action, -1.0, 1.0)
        reward, success = 0.0, 0.0
        for _ in range(min(self._repeat, self._limit - self._done)):
            self._state, step_reward, _, _, info = self._sim.step(action)
            reward += float(step_reward)
            success = max(success, float(info["success"]))
            self._done += 1
        truncated = self._done >= self._limit
        return self._observation(), reward, False, truncated, {"success": success}

    def state(self) -> np.ndarray:
        """float64 [39]: gripper, object poses of this and the last step, goal (metres).

        For scripted experts only: it is not part of the observation.
        """
        return np.array(self._state)

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
        return {"image": self._camera.image()}


def _simulator(name: str):
    """Meta-World's own environment with the goal in its state and seeded goals."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed: pip install metaworld==3.1.1"
        ) from error
    sim = ALL_V3_ENVIRONMENTS[name.replace("_", "-") + "-v3"](reward_function_version="v2")
    # What its MT1 set-up does by way of pickled tasks: show the goal, and draw a new one from the
    # environment's generator at each reset.
    sim._partially_observable = False
    # The bounds that observations are clipped to were cached with the goal hidden (zeros).
    sim.__dict__.pop("sawyer_observation_space", None)
    sim._set_task_called = True
    sim._freeze_rand_vec = False
    sim.seeded_rand_vec = True
    return sim
