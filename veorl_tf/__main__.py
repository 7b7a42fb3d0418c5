"""`python -m veorl_tf COMMAND ...`: everything around training.

TensorFlow is imported in the commands that need it, and not here.
"""

import sys

COMMANDS = {
    "evaluate": ("veorl_tf.run.commands:evaluate", "score a run's policy in the simulator"),
    "export": ("veorl_tf.run.commands:export", "write a run's policy as a SavedModel"),
    "collect": ("veorl_tf.run.commands:collect", "make an offline dataset from scripted policies"),
    "import": ("veorl_tf.run.importing:import_", "make episodes of videos and foreign datasets"),
    "inspect": ("veorl_tf.run.inspecting:inspect", "say what episodes, videos or a dataset hold"),
    "table": ("veorl_tf.run.table:table", "train and compare algorithms; write the results table"),
}


def main(argv: list[str] | None = None) -> int:
    import importlib

    from veorl_tf.core.command import run_main
    from veorl_tf.core.errors import UserError, nearest

    def command(arguments):
        if not arguments or arguments[0] in ("-h", "--help"):
            print("usage: python -m veorl_tf COMMAND ... (each has --help)\n")
            print("\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()))
            return 0 if arguments else 2
        name, *rest = arguments
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        module, function = COMMANDS[name][0].split(":")
        return getattr(importlib.import_module(module), function)(rest)

    return run_main(command, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    from envs import streams

    streams.settle()
    sys.exit(main())
