"""Whole runs on real Meta-World data, made once for all tests; and what a command prints."""

from collections.abc import Callable
from pathlib import Path

import pytest

from veorl_tf.core.command import run_main
from veorl_tf.core.quiet import load_tensorflow
from veorl_tf.run.directory import RunDirectory

load_tensorflow()

REAL = ["--task", "metaworld_door_close", "--precision", "float32", "--env.time_limit", "60"]


@pytest.fixture
def refused(capfd) -> Callable[..., str]:
    """`refused(command, argv, code=2)`: the one line on stderr with which a command ends.

    `command` is a function that raises, or the whole `main`, which gives the exit code itself.
    """

    def call(command, argv, code: int = 2) -> str:
        capfd.readouterr()
        assert run_main(command, list(map(str, argv))) == code
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return call


@pytest.fixture(scope="module")
def random_data(tmp_path_factory) -> dict[str, Path]:
    """Ten episodes of random numbers, and clips of which only the images count: the keys of a
    configuration that name them."""
    from veorl_tf.data.episodes import save_episode
    from veorl_tf.data.synthetic import random_episode

    root = tmp_path_factory.mktemp("random")
    for i in range(10):
        save_episode(root / "target", random_episode(12, seed=i))
        save_episode(root / "source", {"image": random_episode(9, seed=100 + i)["image"]})
    return {
        "task": "none",
        "target_dataset": str(root / "target"),
        "source_videos": str(root / "source"),
        "datadir": str(root),
        "data.validation": 0.2,
    }


@pytest.fixture(scope="session")
def datadir(tmp_path_factory) -> Path:
    """Where the runs of `trained` keep their data; the first of them makes it."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def arguments(datadir, tmp_path_factory) -> Callable[[str], list[str]]:
    """`arguments("veorl")`: the command line of the agent's `debug` run."""
    logs = tmp_path_factory.mktemp("logs")
    return lambda agent: [
        "--configs",
        "metaworld",
        agent,
        "debug",
        *REAL,
        "--datadir",
        str(datadir),
        "--logdir",
        str(logs / agent),
    ]


@pytest.fixture(scope="session")
def trained(arguments) -> Callable[[str], RunDirectory]:
    """`trained("veorl")`: directory of the agent's finished `debug` run."""
    from veorl_tf.run.job import train

    done = {}

    def make(agent: str) -> RunDirectory:
        if agent not in done:
            argv = arguments(agent)
            assert train(argv) == 0
            done[agent] = RunDirectory(Path(argv[-1]))
        return done[agent]

    return make
