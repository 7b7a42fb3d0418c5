"""Errors of the simulators. Each message is one line: what is wrong, and what to do about it."""

from __future__ import annotations


class UnknownTask(ValueError):
    """A task name that no simulator here knows; the message names the nearest valid ones."""


class BadOption(ValueError):
    """A simulator option out of its range (camera, image size, time limit, ...)."""


class RenderingError(RuntimeError):
    """No headless renderer works here, or it would crash in this process."""


class MissingDependency(ImportError):
    """A simulator package is not installed; the message holds the command that installs it."""
