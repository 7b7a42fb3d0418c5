"""`train.py` that ends at a chosen place as if its machine had lost power: a program for the tests.

    python tests/run/faulty.py PLACE COUNT --configs ...

At the COUNT-th time that PLACE is reached the process kills itself with SIGKILL. Places are
functions ('module:name' or 'module:Class.name', before they are called), and, as 'writing:WORD',
the moment when a file with WORD in its name is written but has not got its name yet.
"""

import importlib
import os
import signal
import sys


def install(place: str, count: int) -> None:
    module, _, name = place.partition(":")
    reached = 0

    def arrive() -> None:
        nonlocal reached
        reached += 1
        if reached == count:
            os.kill(os.getpid(), signal.SIGKILL)

    if module == "writing":
        rename = os.replace

        def replace(source, target):
            if name in str(target):
                arrive()
            return rename(source, target)

        os.replace = replace
        return
    owner = importlib.import_module(module)
    *parts, name = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def counted(*args, **kwargs):
        arrive()
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def main() -> int:
    from veorl_tf.core.command import run_main
    from veorl_tf.core.quiet import load_tensorflow
    from veorl_tf.run import job

    place, count, *argv = sys.argv[1:]
    load_tensorflow()
    if place != "nowhere":
        install(place, int(count))
    return run_main(job.train, argv)


if __name__ == "__main__":
    sys.exit(main())
