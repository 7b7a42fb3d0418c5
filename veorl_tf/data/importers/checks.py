"""Arrays of strangers: what is read of them, and what libraries raise on damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from veorl_tf.core.errors import MACHINE_ERRNOS, Interrupted, MachineError, UserError, one_line
from veorl_tf.data.importers.base import Unreadable
from veorl_tf.data.layout import absurd

MAX_CLASSES = 4096  # discrete actions


@contextmanager
def damage(name: str, what: str = "cannot be read") -> Iterator[None]:
    """Whatever a library raises on a damaged file becomes Unreadable."""
    try:
        yield
    except (Unreadable, UserError, MachineError, Interrupted, MemoryError):
        raise
    except Exception as error:  # no list of what parsers raise on damage is complete
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise
        raise Unreadable(name, f"{what} ({one_line(error) or type(error).__name__})") from None


def check_size(name: str, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises Unreadable for an array of absurd size, before it is read."""
    if reason := absurd(key, shape, dtype):
        raise Unreadable(name, reason)


def one_hot(name: str, action: np.ndarray, classes: int) -> np.ndarray:
    """Integers `[n]` of 0 to `classes` - 1 as float32 `[n, classes]`."""
    if action.ndim != 1 or not classes or not ((action >= 0) & (action < classes)).all():
        raise Unreadable(name, f"action: integers of 0 to {classes - 1} expected")
    return (action[:, None] == np.arange(classes)).astype(np.float32)


def finite(name: str, key: str, array: np.ndarray) -> np.ndarray:
    """The array as float32. Raises Unreadable when a number is not finite."""
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise Unreadable(name, f"{key} holds a number that is not finite, in row {row}")
    return array
