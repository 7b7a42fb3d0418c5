"""A stage's compiled update as a StableHLO program, to be run where there is no TensorFlow.

    python -m benchmarks.portable DIR --configs metaworld veorl --stage model
    python DIR/run.py --calls 5            # needs jax alone; on a CPU or an accelerator

DIR then holds `program.mlir` (StableHLO), `inputs.npz` (weights, optimiser, batches),
`program.json` (its parameters and results) and `run.py`. A call makes `--updates` updates: it takes
the state and their batches and returns the new state and the metrics of every update.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    from benchmarks import update

    parser = argparse.ArgumentParser("benchmarks.portable", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    update.add_settings(parser)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--updates", type=int, default=1, help="updates of one call")
    options = parser.parse_args()
    options.xla, options.unroll = True, False
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    config = update.settings(options)
    agent = update.build(config)
    stage = next(s for s in agent.stages() if s.name == options.stage)
    stage.start()
    batches = [
        update.random_batch(stage, config, options.changes, i) for i in range(options.updates)
    ]
    variables = agent.weights() | stage.state
    export(options.folder, stage, variables, batches, config.seed)
    return 0


def export(folder: Path, stage, variables: dict, batches: list, seed: int) -> None:
    """Writes the program that makes one update on each of `batches`.

    The values of `variables`, by path, are parameters and results: the program assigns what it is
    given, makes the updates, and returns what the variables hold then.
    """
    import tensorflow as tf

    from veorl_tf.agents.stage import Update

    count = len(batches)
    update = Update(stage, seed, jit=True, per_call=count)
    stacked = batches[0]
    if count > 1:
        stacked = tf.nest.map_structure(lambda *x: tf.stack(x), *batches)
    arrays = tf.nest.flatten(stacked)
    step = update._train if count == 1 else update._train_several

    def run(index, *arrays):
        extra = [] if count == 1 else [tf.constant(count)]
        return step(tf.nest.pack_sequence_as(stacked, arrays), index, *extra)

    index = tf.constant(0)
    traced = tf.function(run, autograph=False).get_concrete_function(index, *arrays)
    state = list(variables.values())

    @tf.function(jit_compile=True, autograph=False)
    def program(values, index, arrays):
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)
        out = run(index, *arrays)
        metrics = list(out.values()) if count == 1 else [out]
        return [v.read_value() for v in state], [tf.cast(m, tf.float32) for m in metrics]

    values = [tf.convert_to_tensor(v) for v in state]
    concrete = program.get_concrete_function(values, index, arrays)
    serialized = program.experimental_get_compiler_ir(values, index, arrays)(stage="hlo_serialized")
    folder.mkdir(parents=True, exist_ok=True)
    from jax._src.lib import _jax

    (folder / "program.mlir").write_bytes(_jax.mlir.hlo_to_stablehlo(serialized))
    captured = [_value(x) for x in concrete.captured_inputs]
    given = [*values, index, *arrays, *captured]
    np.savez(folder / "inputs.npz", *[np.asarray(x) for x in given])
    names = list(traced.structured_outputs) if count == 1 else update._names
    described = {
        "stage": stage.name,
        "updates": count,
        "state": list(variables),
        "index": len(values),
        "captured": len(values) + 1 + len(arrays),
        "metrics": names,
    }
    (folder / "program.json").write_text(json.dumps(described, indent=1) + "\n")
    shutil.copy(Path(__file__).with_name("portable_run.py"), folder / "run.py")


def _value(captured):
    """A captured tensor, or what the variable behind a captured handle holds."""
    import tensorflow as tf

    if captured.dtype != tf.resource:
        return captured
    dtype = tf.as_dtype(captured._handle_data.shape_and_type[0].dtype)
    return tf.raw_ops.ReadVariableOp(resource=captured, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
