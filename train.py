"""Trains an agent: `python train.py --configs metaworld veorl`.

TensorFlow is imported inside the functions called here and not at the top, since a spawned
simulator process may run this module again, and TensorFlow beside Mesa's renderer crashes.
"""

import sys


def main() -> int:
    from veorl_tf.core.command import run_main

    def train(argv):
        from veorl_tf.run import job

        return job.train(argv)

    return run_main(train, sys.argv[1:])


if __name__ == "__main__":
    from envs import streams

    streams.settle()
    sys.exit(main())
