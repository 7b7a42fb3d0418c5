"""What every simulator can be asked for, written once."""

from __future__ import annotations

from dataclasses import dataclass

from envs.errors import BadOption

METAWORLD_CAMERAS = (
    "corner",
    "corner2",
    "corner3",
    "corner4",
    "topview",
    "behindGripper",
    "gripperPOV",
)
FETCH_CAMERAS = (  # three of the model, then four of our own (envs/fetch.py)
    "external_camera_0",
    "head_camera_rgb",
    "gripper_camera_rgb",
    "front",
    "left",
    "right",
    "top",
)
MAX_STEPS = 500  # Meta-World refuses to step further


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `envs.make`.

    Attributes:
      image_size: S of the observation {'image': uint8 [S, S, 3]}.
      camera: one of METAWORLD_CAMERAS or FETCH_CAMERAS ('corner' means 'front' for Fetch).
      action_repeat: simulator steps per decision; rewards are summed, success is their maximum.
      time_limit: simulator steps (at most 500) after which the episode is truncated.
      render_quality: 'fast' (no shadows, reflections, multisampling) or 'full' (MuJoCo's
        defaults, ten times slower). Data, training and evaluation must agree on it.
      view: 'rows' (the original datasets' mirrored picture) or 'true' (not mirrored).
      seed: of the generator that `reset()` without a seed draws from.
      render: False gives all-zero images, for fast evaluation of policies that do not look.
    """

    image_size: int = 64
    camera: str = "corner"
    action_repeat: int = 1
    time_limit: int = MAX_STEPS
    render_quality: str = "fast"
    view: str = "rows"
    seed: int = 0
    render: bool = True

    def check(self, task: str) -> None:
        """Raises BadOption when a simulator of `task` cannot be made so."""
        fetch = not task.startswith("metaworld_")
        _one_of("camera", self.camera, FETCH_CAMERAS + ("corner",) if fetch else METAWORLD_CAMERAS)
        _one_of("render_quality", self.render_quality, ("fast", "full"))
        _one_of("view", self.view, ("rows", "true"))
        _in_range("image_size", self.image_size, 8, 1024)
        _in_range("time_limit", self.time_limit, 1, MAX_STEPS)
        _in_range("action_repeat", self.action_repeat, 1, MAX_STEPS)


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise BadOption(f"{key} is {value!r}, but must be one of {', '.join(valid)}")


def _in_range(key: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadOption(f"{key} is {value!r}, but must be a whole number from {low} to {high}")
