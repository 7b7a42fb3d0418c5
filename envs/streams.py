"""Standard streams that are always there, whoever started this process and whoever stops reading.

A command may be started without some of them (`2>&-`), and a terminal, or the reader of a pipe, may
go away. Nobody is left to be told then, which is no reason to fail: /dev/null takes their place.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF)  # EIO: of a terminal that hung up


def settle() -> None:
    """Makes the three streams of this process ones that last. Before it opens a file of its own.

    What cannot be encoded is escaped. An error that is not the reader's absence, as of a full disk
    under stdout, is raised once.
    """
    fill()
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def fill() -> None:
    """Opens /dev/null where a standard descriptor is closed: the next file or socket would take
    the number, and get what is meant for the stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _silence(number)


def _silence(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
        return
    os.dup2(null, number)
    os.close(null)


def _lasting(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # closed from the start; its number may be another's by now
        return open(os.devnull, "w", errors="backslashreplace")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=True,
    )


class _Lasting(io.FileIO):
    """Writes to a descriptor as long as somebody reads it, and then to nobody."""

    def write(self, data) -> int:
        try:
            while (count := super().write(data)) is None:  # full, of a pipe that does not wait
                select.select([], [self], [])
            return count
        except OSError as error:
            _silence(self.fileno())
            if error.errno not in GONE and self.fileno() != 2:
                error.filename = "/dev/stdout"
                raise
            return len(data)
