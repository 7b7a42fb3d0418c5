"""How every command ends: with an exit code, and at most one line that says why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from veorl_tf.core.errors import Diverged, Interrupted, MachineError, UserError, one_line
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.places import explained


def run_main(function: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Call `function(argv)` and turn what it raises into an exit code and at most one line on
    stderr.

    Args:
        function: a command; returns an exit code, or None for 0.
        argv: the arguments without the program's name.
    Returns:
        The process's exit code. Exceptions that are not listed here are bugs and pass through.
    """
    try:
        with StopRequest(at_once=True):
            return int(function(argv) or 0)
    except (UserError, MachineError, Diverged) as error:
        return _ended(error)
    except Interrupted as error:
        print(str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        known = explained(error)
        if known is None:
            raise
        return _ended(known)


def _ended(error: UserError | MachineError | Diverged) -> int:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return error.exit_code
