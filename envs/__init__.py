"""Simulators behind gymnasium, by name. Nothing is imported or started until `make` is called.

`make('metaworld_door_close')` is a Meta-World task; `make('fetch_push')` a Fetch arm, used as the
source of unlabelled video. This package never imports TensorFlow: Mesa's software renderer and
TensorFlow crash each other in one process, so training code steps simulators through
`envs.workers.SimulatorPool`, never through `make` itself.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import pathlib
from typing import TYPE_CHECKING

from envs.errors import BadOption, MissingDependency, UnknownTask

if TYPE_CHECKING:
    import gymnasium

VEORL_TASKS = (  # the six of VeoRL's Meta-World table
    "metaworld_drawer_open",
    "metaworld_handle_press",
    "metaworld_handle_pull",
    "metaworld_plate_slide",
    "metaworld_coffee_push",
    "metaworld_button_press",
)
COWORLD_TASKS = (  # the six of CoWorld's Meta-World table
    "metaworld_door_close",
    "metaworld_button_press",
    "metaworld_window_close",
    "metaworld_handle_press",
    "metaworld_drawer_close",
    "metaworld_button_press_topdown",
)
FETCH_TASKS = ("fetch_reach", "fetch_push", "fetch_slide", "fetch_pick_and_place")

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


@functools.cache
def TASKS() -> tuple[str, ...]:
    """All task names, sorted; Meta-World's come from the installed package's own list.

    The list is read from the package's source rather than imported: importing it loads MuJoCo
    and with it the renderer, which has no place in a process that trains.
    Raises MissingDependency when Meta-World is not installed.
    """
    spec = importlib.util.find_spec("metaworld")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("metaworld is not installed: pip install metaworld==3.1.1")
    source = pathlib.Path(next(iter(spec.submodule_search_locations)), "env_dict.py")
    names = {
        node.value
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {name[: -len("-v3")] for name in names if name.endswith("-v3")}
    metaworld = sorted("metaworld_" + name.replace("-", "_") for name in names)
    return (*metaworld, *FETCH_TASKS)


def check(
    task: str,
    *,
    image_size: int = 64,
    camera: str = "corner",
    action_repeat: int = 1,
    time_limit: int = 500,
    render_quality: str = "fast",
    view: str = "rows",
    seed: int = 0,
    render: bool = True,
) -> None:
    """Checks the arguments of `make` without loading a simulator; raises UnknownTask, BadOption."""
    if task not in TASKS():
        close = difflib.get_close_matches(str(task), TASKS(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}" if close else "envs.TASKS() lists them"
        raise UnknownTask(
            f"unknown task {task!r}: {hint}?" if close else f"unknown task {task!r}: {hint}"
        )
    cameras = METAWORLD_CAMERAS if task.startswith("metaworld_") else FETCH_CAMERAS + ("corner",)
    _one_of("camera", camera, cameras)
    _one_of("render_quality", render_quality, ("fast", "full"))
    _one_of("view", view, ("rows", "true"))
    _in_range("image_size", image_size, 8, 1024)
    _in_range("time_limit", time_limit, 1, MAX_STEPS)
    _in_range("action_repeat", action_repeat, 1, MAX_STEPS)


def make(
    task: str,
    *,
    image_size: int = 64,
    camera: str = "corner",
    action_repeat: int = 1,
    time_limit: int = 500,
    render_quality: str = "fast",
    view: str = "rows",
    seed: int = 0,
    render: bool = True,
) -> gymnasium.Env:
    """Builds one simulator.

    Args:
      task: a name of `TASKS()`, e.g. 'metaworld_handle_press' or 'fetch_push'.
      image_size: S of the observation {'image': uint8 [S, S, 3]}.
      camera: one of METAWORLD_CAMERAS or FETCH_CAMERAS ('corner' means 'front' for Fetch).
      action_repeat: simulator steps per decision; rewards are summed, success is their maximum.
      time_limit: simulator steps (at most 500) after which the episode is truncated.
      render_quality: 'fast' (no shadows, reflections, multisampling) or 'full' (MuJoCo's
        defaults, ten times slower). Data, training and evaluation must agree on it.
      view: 'rows' (the original datasets' mirrored picture) or 'true' (not mirrored).
      seed: of the generator that `reset()` without a seed draws from.
      render: False gives all-zero images, for fast evaluation of policies that do not look.

    Raises UnknownTask, BadOption, MissingDependency, RenderingError.
    """
    options = dict(
        image_size=image_size,
        camera=camera,
        action_repeat=action_repeat,
        time_limit=time_limit,
        render_quality=render_quality,
        view=view,
        seed=seed,
        render=render,
    )
    check(task, **options)
    from envs import rendering

    if render:
        rendering.prepare()
    if task.startswith("metaworld_"):
        from envs.metaworld import MetaWorld

        return MetaWorld(task.removeprefix("metaworld_"), **options)
    from envs.fetch import Fetch

    return Fetch(task.removeprefix("fetch_"), **options)


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise BadOption(f"{key} is {value!r}, but must be one of {', '.join(valid)}")


def _in_range(key: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadOption(f"{key} is {value!r}, but must be a whole number from {low} to {high}")
