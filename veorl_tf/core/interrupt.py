"""Ctrl-C, SIGTERM and SIGHUP: an exception where nothing would be lost, and in loops a flag that
they look at between updates, to save and leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from veorl_tf.core.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INSTALLED = {"site-packages", "dist-packages"}  # folders
PYTHON, LIBRARY, OURS = "python", "library", "ours"


class StopRequest:
    """Context manager; inside it the first signal to stop only sets `requested`, the second leaves
    at once. A SIGHUP hurries nobody, as the second or before it: a terminal that closes sends
    several, and others follow. Where it is ignored from the start (`nohup`), it stays so.

        with StopRequest() as stop:
            for update in ...:
                ...
                if stop.requested:
                    save()
                    stop.raise_if_requested()

    Attributes:
        at_once: while true, the first signal raises `Interrupted`: there is nothing to save yet.
            While a library runs, that waits until it returns or calls back: TensorFlow's C++,
            which calls its Python, would take the exception for an error of its own.
        requested: whether a signal came, or `request()` was called.
        signum: which one, or None.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.at_once = at_once
        self.signum: int | None = None
        self.asked = False
        self._former: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.asked or self.signum is not None

    def request(self) -> None:
        """Another process of this run was asked to stop. A first signal that comes here after it
        is still the first."""
        self.asked = True

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` (exit code 128 + signal) when this process, or another one, was asked
        to stop."""
        if self.requested:
            raise Interrupted(self.signum or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {
                number: signal.signal(number, self._handle)
                for number in SIGNALS
                if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)
            }
        return self

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """A signal in this block, or before it, raises `Interrupted` there and then."""
        before, self.at_once = self.at_once, True
        try:
            self.raise_if_requested()
            yield
        finally:
            self.at_once = before

    def __exit__(self, kind, *_) -> None:
        if sys.getprofile() == self._raise_outside:
            sys.setprofile(None)
        self._restore()
        if kind is None and self.signum is not None:
            raise Interrupted(self.signum)  # it came after the last look

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGHUP:
            return
        if self.signum not in (None, signal.SIGHUP):
            self._restore()
            os._exit(128 + signum)
        self.signum = signum
        if self.at_once:
            if not _in_library(frame):
                raise Interrupted(signum)
            sys.setprofile(self._raise_outside)
            return
        with suppress(OSError):  # the terminal may be gone
            # os.write, not print: the handler may run in the middle of another print.
            os.write(2, b"\nstopping after this step; once more leaves at once without saving\n")

    def _raise_outside(self, frame: FrameType, event: str, _argument: object) -> None:
        """A profile function: raises where a library calls a function that is none, or returns to
        one, which is within the `try` that the call stands in."""
        if event == "return" and _origin(frame) != OURS:
            frame = frame.f_back
        elif event != "call":
            return
        if frame is not None and _origin(frame) == OURS:
            raise Interrupted(self.signum)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """What an interruption says of how to go on."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.signum, how) from None


def _in_library(frame: FrameType | None) -> bool:
    """Whether an installed package runs, or has called the part of Python's library that does."""
    while frame is not None and _origin(frame) == PYTHON:
        frame = frame.f_back
    return frame is not None and _origin(frame) == LIBRARY


def _origin(frame: FrameType) -> str:
    return _origin_of(str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename)


@cache
def _origin_of(module: str, file: str) -> str:
    """Whose a module's code is: of Python (also what it makes while it runs, and this file, where
    nothing may be raised), of an installed package, or ours."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or file.startswith("<") or file == __file__:
        return PYTHON
    if package != __name__.partition(".")[0] and _INSTALLED & set(Path(file).parts):
        return LIBRARY
    return OURS
