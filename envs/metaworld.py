"""Meta-World's fifty tasks as pixels in, four actions out (built on metaworld 3.1.1).

What is ours: goals are drawn anew at each reset from its seed (metaworld ignores the seed of
`reset`), actions are repeated, the episode is cut at `time_limit`, and pictures are cheap and
upright. The reward is metaworld's dense "v2" one, in [0, 10] per simulator step.
"""

from __future__ import annotations

import numpy as np

from envs.base import PixelEnv
from envs.errors import MissingDependency
from envs.options import Options


class MetaWorld(PixelEnv):
    """One task; the rest as `PixelEnv` says.

    The action moves the gripper by (x, y, z) * 1 cm per simulator step and closes the fingers.
    A reset draws a goal from the seed. `name` is the task without its prefix: "door_close".
    """

    def __init__(self, name: str, options: Options):
        self.name = name
        self._sim = _simulator(name)
        # The corner cameras hang upside down in the model; the others are upright as they are.
        corner = options.camera.startswith("corner")
        turn = {"rows": "rows", "true": "half"}[options.view] if corner else "none"
        super().__init__(options, self._sim, options.camera, turn)

    def state(self) -> np.ndarray:
        """float64 [39]: gripper, object poses of this and the last step, goal (metres).

        For scripted experts only: it is not part of the observation.
        """
        return np.array(self._state)

    def _restart(self, seed: int) -> None:
        self._sim.seed(seed)
        self._state, _ = self._sim.reset()

    def _advance(self, action: np.ndarray) -> tuple[float, float]:
        self._state, reward, _, _, info = self._sim.step(action)
        return float(reward), float(info["success"])


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
