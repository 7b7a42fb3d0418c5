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

from envs.errors import MissingDependency, UnknownTask
from envs.options import Options

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
ACTION_SIZE = 4  # of all of them: the hand's three directions, and the gripper
FETCH_TASKS = ("fetch_reach", "fetch_push", "fetch_slide", "fetch_pick_and_place")


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


def check(task: str, **options) -> None:
    """Checks the arguments of `make` without loading a simulator; raises UnknownTask, BadOption."""
    if task not in TASKS():
        close = difflib.get_close_matches(str(task), TASKS(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}" if close else "envs.TASKS() lists them"
        raise UnknownTask(
            f"unknown task {task!r}: {hint}?" if close else f"unknown task {task!r}: {hint}"
        )
    Options(**options).check(task)


def make(task: str, **options) -> gymnasium.Env:
    """Builds one simulator.

    `task` is a name of `TASKS()`, e.g. 'metaworld_handle_press' or 'fetch_push', `options` are
    those of `Options`. Raises UnknownTask, BadOption, MissingDependency, RenderingError.
    """
    check(task, **options)
    from envs import rendering

    chosen = Options(**options)
    if chosen.render:
        rendering.prepare()
    if task.startswith("metaworld_"):
        from envs.metaworld import MetaWorld

        return MetaWorld(task.removeprefix("metaworld_"), chosen)
    from envs.fetch import Fetch

    return Fetch(task.removeprefix("fetch_"), chosen)
