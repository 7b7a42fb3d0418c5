"""Whether half precision learns what float32 does: the same updates in both, losses compared.

    python -m benchmarks.precision --configs metaworld veorl small --task metaworld_door_close

Every stage is trained for `--updates` updates on the run's data in float32 and in another
precision, with the same weights, windows and noise, and the means over the last `--last` updates
are compared. Stages follow one another in each. Where losses are sensitive, small differences grow:
the control is float32 again, from initial weights that were rounded to bfloat16 once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
COMPARED = ("image", "kl", "reward", "vq", "plan_image_target", "plan_image_source")


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl", "small"])
    parser.add_argument("--task", default="metaworld_door_close")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--stages", nargs="+", default=["abstraction", "model"])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--last", type=int, default=20)
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    from veorl_tf.run.directory import provenance

    reference, other = (train(options, name) for name in ("float32", options.precision))
    control = train(options, "float32", rounded=True)
    losses = {}
    for stage in options.stages:
        for name in COMPARED:
            if name in reference[stage]:
                one, two = reference[stage][name], other[stage][name]
                three = control[stage][name]
                losses[f"{stage}/{name}"] = {
                    "float32": round(one, 4),
                    options.precision: round(two, 4),
                    "control": round(three, 4),
                    "ratio": round(two / one, 4),
                    "control_ratio": round(three / one, 4),
                }
                print(
                    f"{stage:12} {name:18} {one:10.4f} {two:10.4f}  ratio {two / one:.4f}  "
                    f"control {three / one:.4f}",
                    flush=True,
                )
    if options.json:
        command = "python -m benchmarks.precision " + " ".join(sys.argv[1:])
        text = json.dumps(provenance() | {"command": command, "losses": losses}, indent=1)
        Path(options.json).write_text(text + "\n")
    return 0


def train(options, precision: str, rounded: bool = False) -> dict[str, dict[str, float]]:
    """Mean losses of the last updates, by stage."""
    import tensorflow as tf

    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent
    from veorl_tf.agents.stage import Update
    from veorl_tf.core.config import load_blocks, resolve
    from veorl_tf.core.progress import progress
    from veorl_tf.data.windows import Batches, WindowSampler
    from veorl_tf.run import datasets
    from veorl_tf.run.columns import derive, remove

    overrides = {"task": options.task, "precision": precision, "compiler": "graph"}
    config = resolve(load_blocks(ROOT / "configs.yaml")[0], options.configs, overrides)
    stores = {kind: datasets.open_store(config, kind) for kind in ("target", "source")}
    agent = make_agent(config, ActionSpace(config.action.size, config.action.discrete))
    if rounded:
        for variable in agent.weights().values():
            variable.assign(tf.cast(tf.cast(variable, tf.bfloat16), tf.float32))
    means = {}
    for stage in agent.stages():
        if stage.name not in options.stages:
            continue
        stage.start()
        columns = derive(agent, stage, stores)
        samplers = {
            name: WindowSampler(
                stores[stream.dataset],
                stores[stream.dataset].split(config.data.validation)[0],
                stream.length,
                config.data.batch,
                config.data.oversample_ends,
                stream.keys,
                columns.get(stream.dataset),
                stream.slots,
            )
            for name, stream in stage.streams.items()
        }
        update, records = Update(stage, config.seed), []
        with (
            Batches(samplers, config.seed, stage.name, 0, options.updates) as batches,
            progress(options.updates, 0, f"{stage.name}, {precision}", "updates") as bar,
        ):
            for index, batch in enumerate(batches):
                metrics = update(tf.nest.map_structure(tf.constant, batch), index)
                records.append({name: float(metrics[f"loss/{name}"]) for name in stage.scales})
                bar.update()
        remove(agent, stage, stores)
        last = records[-options.last :]
        means[stage.name] = {k: float(np.mean([r[k] for r in last])) for k in last[0]}
    return means


if __name__ == "__main__":
    sys.exit(main())
