"""Whether half precision learns what float32 does: the same updates in both, losses compared.

    python -m benchmarks.precision --configs metaworld veorl small --task metaworld_door_close

Every stage is trained for `--updates` updates on the run's data in float32 and in another
precision, with the same initial weights, windows and noise; stages follow one another. Compared are

- the losses of the last updates at the *same* weights, those that float32 reached, on the same
  windows: what the arithmetic gets wrong;
- the means over the last `--last` updates of each training: where losses are sensitive, small
  differences grow. The control tells how much: float32 again, from initial weights that were
  rounded to bfloat16 once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("image", "kl", "reward", "vq", "plan_image_target", "plan_image_source")


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl", "small"])
    parser.add_argument("--task", default="metaworld_door_close")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--stages", nargs="+", default=["abstraction", "model"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--last", type=int, default=20)
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    reference, weights = train(options, "float32")
    trained, _ = train(options, options.precision)
    control, _ = train(options, "float32", rounded=True)
    same = evaluate(options, weights)
    losses = {}
    print(f"{'ratio to float32':32} same weights  trained  control")
    for stage in options.stages:
        for name in [name for name in COMPARED if name in reference[stage]]:
            one = reference[stage][name]
            losses[f"{stage}/{name}"] = row = {
                "float32": round(one, 4),
                options.precision: round(trained[stage][name], 4),
                "same_weights_ratio": round(same[stage][name], 4),
                "trained_ratio": round(trained[stage][name] / one, 4),
                "control_ratio": round(control[stage][name] / one, 4),
            }
            ratios = "  ".join(f"{v:11.4f}" for k, v in row.items() if k.endswith("ratio"))
            print(f"{stage:12} {name:18} {ratios}", flush=True)
    record.save(options.json, "precision", {"losses": losses})
    return 0


def prepare(options, precision: str):
    """Configuration, agent and stores."""
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent
    from veorl_tf.core.config import load_blocks, resolve
    from veorl_tf.run import datasets

    overrides = {"task": options.task, "precision": precision, "compiler": "graph"}
    overrides["seed"] = options.seed
    config = resolve(load_blocks(ROOT / "configs.yaml")[0], options.configs, overrides)
    agent = make_agent(config, ActionSpace(config.action.size, config.action.discrete))
    return config, agent, {k: datasets.open_store(config, k) for k in ("target", "source")}


def train(options, precision: str, rounded: bool = False) -> tuple[dict, dict]:
    """Mean losses of the last updates, and the weights that were reached, by stage."""
    import tensorflow as tf

    from veorl_tf.agents.stage import Update
    from veorl_tf.core.progress import progress
    from veorl_tf.data.windows import Batches
    from veorl_tf.run.batches import samplers
    from veorl_tf.run.columns import derive, remove

    config, agent, stores = prepare(options, precision)
    if rounded:
        for variable in agent.weights().values():
            variable.assign(tf.cast(tf.cast(variable, tf.bfloat16), tf.float32))
    means, weights = {}, {}
    for stage in [stage for stage in agent.stages() if stage.name in options.stages]:
        stage.start()
        training, _ = samplers(config, stage, stores, derive(agent, stage, stores))
        update, records = Update(stage, config.seed), []
        with (
            Batches(training, config.seed, stage.name, 0, options.updates) as batches,
            progress(options.updates, 0, f"{stage.name}, {precision}", "updates") as bar,
        ):
            for index, batch in enumerate(batches):
                metrics = update(tf.nest.map_structure(tf.constant, batch), index)
                records.append({name: float(metrics[f"loss/{name}"]) for name in stage.scales})
                bar.update()
        remove(agent, stage, stores)
        means[stage.name] = mean(records[-options.last :])
        weights[stage.name] = {path: v.numpy() for path, v in agent.weights().items()}
    return means, weights


def evaluate(options, weights: dict) -> dict[str, dict[str, float]]:
    """Losses in the other precision divided by those in float32, at the same weights."""
    import tensorflow as tf

    from veorl_tf.agents.stage import Update
    from veorl_tf.run.batches import draw_batch, samplers
    from veorl_tf.run.columns import derive, remove
    from veorl_tf.run.offline import assign

    means = []
    for precision in ("float32", options.precision):
        config, agent, stores = prepare(options, precision)
        means.append({})
        for stage in [stage for stage in agent.stages() if stage.name in options.stages]:
            assign(agent.weights(), weights[stage.name], "weights")
            training, _ = samplers(config, stage, stores, derive(agent, stage, stores))
            update, records = Update(stage, config.seed), []
            for index in range(options.updates - options.last, options.updates):
                batch = draw_batch(training, config.seed, stage.name, index)
                metrics = update.evaluate(tf.nest.map_structure(tf.constant, batch), index)
                records.append({name: float(metrics[f"loss/{name}"]) for name in stage.scales})
            remove(agent, stage, stores)
            means[-1][stage.name] = mean(records)
    one, two = means
    return {stage: {k: two[stage][k] / one[stage][k] for k in one[stage]} for stage in one}


def mean(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in records[0]}


if __name__ == "__main__":
    sys.exit(main())
