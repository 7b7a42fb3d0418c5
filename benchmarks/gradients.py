"""Whether half precision learns what float32 does: gradients at the weights of a trained run.

    python train.py --configs metaworld veorl small --precision float32 --logdir RUN
    python -m benchmarks.gradients RUN

For every stage whose end RUN has saved, one batch of its data, the same noise and the same weights
in both types: how many variables have a gradient of another direction (cosine under 0.99) or size
(norm off by more than 3 %) than in float32, and which.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import record

COSINE, NORM = 0.99, 0.03


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.gradients", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--scale", type=float, default=1.0, help="of the loss; 128 for float16")
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    stages = {}
    for name in saved_stages(options.run):
        batch = draw(options.run, name)
        exact = gradients(options.run, name, "float32", batch, 1.0)
        found = gradients(options.run, name, options.precision, batch, options.scale)
        rows = compare(exact, found)
        off = [row for row in rows if row["cosine"] < COSINE or abs(row["norm"] - 1) > NORM]
        stages[name] = {"variables": len(rows), "off": off}
        print(f"{name}: {len(off)} of {len(rows)} variables are off", flush=True)
        for row in off:
            print("  " + "  ".join(f"{k} {v}" for k, v in row.items()))
    record.save(options.json, "gradients", {"precision": options.precision, "stages": stages})
    return 0


def saved_stages(run: Path) -> list[str]:
    """Names of the stages of which the run kept the end, in order."""
    from veorl_tf.core import checkpoint

    agent, _ = build(run, "float32")
    kept = set(checkpoint.names(run / "checkpoints"))
    names = [stage.name for stage in agent.stages()]
    return [name for name in names if checkpoint.stage_name(name) in kept]


def build(run: Path, precision: str, stage: str = ""):
    """The run's agent in a precision, with the weights that a stage ended with, and its stores."""
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent
    from veorl_tf.core import checkpoint
    from veorl_tf.run import datasets
    from veorl_tf.run.directory import load_config
    from veorl_tf.run.offline import assign

    config = load_config(run).update({"precision": precision, "compiler": "graph"})
    agent = make_agent(config, ActionSpace(config.action.size, config.action.discrete))
    if stage:
        name = checkpoint.stage_name(stage)
        assign(agent.weights(), checkpoint.load(run / "checkpoints", name)[0], name)
    return agent, {k: datasets.open_store(config, k) for k in ("target", "source")}


def draw(run: Path, name: str):
    """A batch of a stage; what a frozen part says of its frames, said in float32."""
    import tensorflow as tf

    from veorl_tf.run.batches import draw_batch, samplers
    from veorl_tf.run.columns import derive, remove

    agent, stores = build(run, "float32", name)
    stage = next(s for s in agent.stages() if s.name == name)
    training, _ = samplers(agent.config, stage, stores, derive(agent, stage, stores))
    batch = tf.nest.map_structure(tf.constant, draw_batch(training, 0, name, 0))
    remove(agent, stage, stores)
    return batch


def gradients(run: Path, name: str, precision: str, batch, scale: float) -> dict[str, np.ndarray]:
    """Of the stage's loss, by variable, computed of `scale` times the loss."""
    import tensorflow as tf

    from veorl_tf.agents.stage import weighted_sum

    agent, _ = build(run, precision, name)
    stage = next(s for s in agent.stages() if s.name == name)
    variables = stage.variables

    def compute(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(variables.values()))
            terms, _ = stage.losses(batch, tf.constant([0, 1]))
            loss = scale * weighted_sum(terms, stage.scales)
        found = tape.gradient(loss, variables, unconnected_gradients="zero")
        return {path: tf.convert_to_tensor(gradient) for path, gradient in found.items()}

    found = tf.function(compute, autograph=False)(batch)
    return {path: g.numpy().astype(np.float64) / scale for path, g in found.items()}


def compare(exact: dict, found: dict) -> list[dict]:
    """Of every variable that learns something: cosine and ratio of norms of its two gradients, and
    its share of the whole gradient."""
    whole, rows = np.sqrt(sum(np.sum(g**2) for g in exact.values())), []
    for path, one in exact.items():
        size, other = np.linalg.norm(one), np.linalg.norm(found[path])
        if size == 0 and other == 0:  # under the free nats, for example
            continue
        cosine = np.sum(one * found[path]) / max(size * other, 1e-30)
        row = {"cosine": cosine, "norm": other / max(size, 1e-30), "share": size / whole}
        rows.append({"variable": path, **{k: float(f"{v:.4g}") for k, v in row.items()}})
    return rows


if __name__ == "__main__":
    sys.exit(main())
