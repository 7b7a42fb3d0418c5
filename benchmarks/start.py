"""How long a run takes from the command to its first update, and what takes the time.

    python -m benchmarks.start --configs metaworld veorl small --json FILE

The data has to be there already (what is missing is made first, and counted). The run goes to a
temporary folder and ends after its first update.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import record


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl", "small"])
    parser.add_argument("--task", default="metaworld_door_close")
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-start-") as folder:
        phases = measure(options, str(Path(folder) / "run"))
    total = sum(phases.values())
    for name, seconds in phases.items():
        print(f"{name:44} {seconds:6.1f} s")
    print(f"{'all':44} {total:6.1f} s")
    rounded = {name: round(seconds, 2) for name, seconds in (phases | {"all": total}).items()}
    record.save(options.json, "start", {"seconds": rounded})
    return 0


def measure(options, logdir: str) -> dict[str, float]:
    """Seconds by phase, since this process was started."""
    phases, last = {}, age_of_process()
    phases["Python"] = last

    def mark(name: str) -> None:
        nonlocal last
        now = age_of_process()
        phases[name], last = now - last, now

    from veorl_tf.core.config import load_blocks, resolve
    from veorl_tf.run import job
    from veorl_tf.run.checking import check
    from veorl_tf.run.directory import RunDirectory

    overrides = {"task": options.task, "logdir": logdir}
    request = resolve(load_blocks(job.BLOCKS)[0], options.configs, overrides)
    check(request)
    mark("configuration")
    job.load_tensorflow()
    config = job.settle(request, RunDirectory(Path(logdir)))
    mark("importing TensorFlow")
    from veorl_tf.agents.stage import Update
    from veorl_tf.run.offline import OfflineTraining

    mark("importing the models, TensorFlow Probability")
    training = OfflineTraining(config, job.open_run(config, options.configs))
    mark("frame stores, nets and their weights")
    call = Update.__call__

    def first(self, *arguments):
        mark("first batch")
        call(self, *arguments)["loss/total"].numpy()
        mark("compiling, and the first update")
        raise _Done

    Update.__call__ = first
    try:
        training.run()
    except _Done:
        training.close()
    return phases


class _Done(Exception):
    """The first update was made."""


def age_of_process() -> float:
    """Seconds since this process was started."""
    started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
