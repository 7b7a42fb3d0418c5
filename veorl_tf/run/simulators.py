"""Between this code and `envs`: options of a simulator, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from veorl_tf.core.config import Config
from veorl_tf.core.errors import MachineError, UserError


def env_options(config: Config) -> dict:
    """Keyword arguments of `envs.make` from the configuration."""
    options = config.env.to_dict()
    options.pop("workers")
    return options


def check_task(config: Config) -> None:
    """Fails early, in one line, when the task or an option of its simulator is wrong."""
    if config.task == "none":
        return
    import envs

    with simulator_errors():
        envs.check(config.task, **env_options(config))


@contextmanager
def simulator_errors() -> Iterator[None]:
    """Turns the errors of `envs` into those that end a command with one line and an exit code."""
    from envs.errors import BadOption, MissingDependency, RenderingError, UnknownTask

    try:
        yield
    except UnknownTask as error:
        raise UserError(f"--task: {error}") from None
    except BadOption as error:
        raise UserError(f"--env: {error}") from None
    except (MissingDependency, RenderingError) as error:
        raise MachineError(str(error)) from None
