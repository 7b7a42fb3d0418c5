"""`train.py` as one of several processes, or with several devices: a program for the tests.

`DEVICES` in the environment is the number of logical CPUs. With `STOP_AT=n` the process sends
itself SIGTERM (or the signal `SIGNAL`) in the midst of its n-th call of an update. Calls make as
many updates as they may.
"""

import os
import signal
import sys


def prepare() -> None:
    """What has to happen before TensorFlow's first operation, and what after its import."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * int(os.environ.get("DEVICES", 1))
    tf.config.set_logical_device_configuration(cpu, logical)
    from veorl_tf.agents.stage import Update
    from veorl_tf.run import offline

    calls, call = [], Update.__call__

    def counted(self, *args):
        calls.append(args)
        if len(calls) == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.Signals[os.environ.get("SIGNAL", "SIGTERM")])
        return call(self, *args)

    Update.__call__ = counted
    pace = offline.Pace
    offline.Pace = lambda most, fixed=False: pace(most, fixed=True)


def main() -> int:
    from veorl_tf.core.command import run_main
    from veorl_tf.run import job

    prepare()
    return run_main(job.train, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
