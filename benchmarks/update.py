"""How fast updates are, as a share of what this machine can do.

    python -m benchmarks.update --configs metaworld veorl --batch 16 --length 32 --large 64 \
        --source 25 --precision float32 --json FILE

Each stage runs in a process of its own, which also measures its matrix product peak; a share is
nominal operations / (time x float32 peak). Nominal is what the specification's update costs:
nothing cached, every slot padded. Frames are random numbers; behaviours change as often as they
did in trained runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    options = parse()
    if options.stage:
        print(json.dumps(measure(options)))
        return 0
    stages = {}
    for name in stage_names(options):
        command = [sys.executable, "-m", "benchmarks.update", *sys.argv[1:], "--stage", name]
        out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        stages[name] = json.loads(out.stdout.splitlines()[-1])
        print(f"{name:12}", "  ".join(f"{k} {v:,.4g}" for k, v in stages[name].items()), flush=True)
    result = {
        "precision": options.precision,
        "peak_gflops": round(max(s["peak_gflops"] for s in stages.values()), 1),
        "stages": stages,
    }
    record.save(options.json, "update", result)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.update", description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument("--xla", action="store_true", help="compile with XLA")
    parser.add_argument("--unroll", action="store_true", help="unroll loops over time")
    parser.add_argument("--updates", type=int, default=15, help="timed updates")
    parser.add_argument("--stages", nargs="+", help="only these")
    parser.add_argument("--uncounted", action="store_true", help="time alone, no operations")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Arguments of whatever times or exports an update."""
    parser.add_argument("--configs", nargs="+", default=["metaworld", "veorl"])
    parser.add_argument("--batch", type=int, help="windows; default: the configuration's")
    parser.add_argument("--length", type=int, help="frames of a target window")
    parser.add_argument("--large", type=int, help="frames of a window before compaction")
    parser.add_argument("--source", type=int, help="frames of a source window")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--changes",
        type=float,
        nargs=2,
        default=[0.15, 0.27],
        metavar=("TARGET", "SOURCE"),
        help="share of transitions at which the behaviour changes",
    )


def settings(options, **more):
    """The configuration that the options describe."""
    from veorl_tf.core import hardware
    from veorl_tf.core.config import load_blocks, resolve

    sizes = {
        "data.batch": options.batch,
        "data.length": options.length,
        "data.long_length": options.large,
        "data.source_length": options.source,
    }
    overrides = {k: v for k, v in sizes.items() if v is not None} | {
        "precision": hardware.resolve()["precision"]
        if options.precision == "auto"
        else options.precision,
        "compiler": "xla" if options.xla else "graph",
        "unroll": options.unroll,
    }
    return resolve(load_blocks(ROOT / "configs.yaml")[0], options.configs, overrides | more)


def build(config):
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent

    return make_agent(config, ActionSpace(config.action.size, config.action.discrete))


def stage_names(options) -> list[str]:
    """Names of the algorithm's stages; asked of a child process, which may have a GPU to itself."""
    code = (
        "import sys; from benchmarks import update as u\n"
        "from veorl_tf.core.quiet import load_tensorflow; load_tensorflow()\n"
        "print(*[s.name for s in u.build(u.settings(u.parse())).stages()])"
    )
    command = [sys.executable, "-c", code, *sys.argv[1:]]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = out.split()
    return [name for name in found if not options.stages or name in options.stages]


def measure(options) -> dict:
    """One stage: median time of an update, operations, peak of the machine, memory."""
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    from veorl_tf.agents.stage import Update

    config = settings(options)
    stage = next(s for s in build(config).stages() if s.name == options.stage)
    stage.start()
    update = Update(stage, config.seed, options.xla)
    batches = [random_batch(stage, config, options.changes, i) for i in range(4)]
    began = time.perf_counter()
    settle(update(batches[0], 0))
    compiled = time.perf_counter() - began
    for index in (1, 2):
        settle(update(batches[index], index))
    peaks, times = [matmul_peak("float32")], []
    for index in range(options.updates):
        began = time.perf_counter()
        settle(update(batches[index % 4], index))
        times.append(time.perf_counter() - began)
    peaks.append(matmul_peak("float32"))
    seconds, peak = float(np.median(times)), max(peaks)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    frames = config.data.batch * config.data.length
    timing = {"ms": round(1e3 * seconds, 1), "frames_per_s": round(frames / seconds, 1)}
    machine = {
        "peak_gflops": round(peak, 1),
        "compile_s": round(compiled - seconds, 1),
        "peak_rss_mb": round(memory),
    }
    if options.uncounted:
        return timing | machine
    nominal, executed = operations(options, batches)
    counted = {
        "nominal_gflop": round(nominal / 1e9, 4),
        "executed_gflop": round(executed / 1e9, 4),
        "nominal_share": round(nominal / 1e9 / seconds / peak, 3),
        "executed_share": round(executed / 1e9 / seconds / peak, 3),
    }
    return timing | counted | machine


def settle(metrics) -> None:
    """Waits until an update has really been done."""
    metrics["loss/total"].numpy()


def matmul_peak(dtype: str, size: int = 3072) -> float:
    """GFLOP/s of a square matrix product, the best of eight."""
    import tensorflow as tf

    left = tf.cast(tf.random.stateless_normal([size, size], [0, 1]), dtype)
    product = tf.function(lambda a: tf.reduce_sum(tf.cast((a @ a)[0], tf.float32)))
    best = 0.0
    for _ in range(9):
        began = time.perf_counter()
        product(left).numpy()
        best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def random_batch(stage, config, changes, seed: int, raw: bool = False) -> dict:
    """A batch of every stream; `raw`: as the specification has it, images in place of columns."""
    import tensorflow as tf

    from veorl_tf.data.jumps import compact

    rng = np.random.Generator(np.random.Philox(seed))
    batch = {}
    for name, stream in sorted(stage.streams.items()):
        shape = (config.data.batch, stream.length)
        change = rng.uniform(size=shape) < changes[stream.dataset == "source"]
        code = (np.cumsum(change, 1) % config.veorl.codes).astype(np.int32)
        slots = {}
        if stream.slots:
            jumps = compact(code[:, 1:], stream.slots)
            slots = {"code": jumps.code, "mask": jumps.mask, "runs": jumps.runs}
            slots["index"] = code[:, 1:]
            shape = jumps.code.shape
        image = raw and "embed" in stream.keys
        keys = {"image" if image and key == "embed" else key for key in stream.keys}
        arrays = {key: random_array(key, shape, config, rng) for key in sorted(keys - {"code"})}
        arrays |= slots or ({"code": code} if "code" in keys else {})
        batch[name] = {key: tf.constant(array) for key, array in arrays.items()}
    return batch


def random_array(key: str, shape, config, rng: np.random.Generator) -> np.ndarray:
    """Windows `[B, T, ...]` of one of the stored arrays."""
    if key == "image":
        return rng.integers(0, 256, (*shape, 64, 64, 3), np.uint8)
    if key == "action" and config.action.discrete:
        return np.eye(config.action.size, dtype=np.float32)[
            rng.integers(0, config.action.size, shape)
        ]
    sizes = {"action": (config.action.size,), "embed": (embed_size(config),)}
    return rng.uniform(-1, 1, (*shape, *sizes.get(key, ()))).astype(np.float32)


@lru_cache(maxsize=None)
def embed_size(config) -> int:
    """Width of what the encoder makes of a frame."""
    from veorl_tf.agents.registry import BACKBONES, find

    return find(BACKBONES, "backbone", config.backbone)(config).encoder("encoder").size


def operations(options, batches) -> tuple[float, float]:
    """Nominal and executed operations of an update.

    Both are counted in an unrolled graph of static shapes. Executed leaves out what the columns
    save, and frames in slots that no behaviour fills.
    """
    import tensorflow as tf

    from benchmarks import flops
    from veorl_tf.agents.stage import Update

    config = settings(options, unroll=True, compiler="graph", **{"veorl.bucket": 0})
    agent = build(config)
    stage = next(s for s in agent.stages() if s.name == options.stage)
    index = tf.constant(0)
    step = Update(stage, 0)._update

    def cost(batch) -> int:
        return flops.count(step.get_concrete_function(batch, index))

    executed = cost(random_batch(stage, config, options.changes, 0))
    nominal = executed
    if any("embed" in stream.keys for stream in stage.streams.values()):
        nominal = cost(random_batch(stage, config, options.changes, 0, raw=True))
    for name, stream in stage.streams.items():
        if not stream.slots:
            continue
        images = tf.TensorSpec([stream.length, 64, 64, 3], tf.uint8)
        label = tf.function(agent.label).get_concrete_function(images)
        nominal += config.data.batch * flops.count(label)
        mask = [batch[name]["mask"].numpy() for batch in batches]
        filled = float(np.mean([m.sum() for m in mask]))
        bucket = 0 if options.xla else settings(options).veorl.bucket
        packed = min(mask[0].size, -(-filled // bucket) * bucket) if bucket else mask[0].size
        executed -= (mask[0].size - packed) * frame_cost(agent)
    return nominal, executed


def frame_cost(agent) -> int:
    """Operations of a key frame: encoder and plan decoder, forward and backward."""
    import tensorflow as tf

    from benchmarks import flops

    @tf.function(autograph=False)
    def step(image, features):
        nets = ("encoder", "image_latent")
        with tf.GradientTape() as tape:
            tape.watch(features)
            out = tf.reduce_sum(tf.cast(agent.model.encoder(image), tf.float32))
            out += tf.reduce_sum(tf.cast(agent.plan_decoder(features), tf.float32))
        return tape.gradient(out, [*agent.weights(*nets).values(), features])

    width = agent.plan.feature_size
    return flops.count(
        step.get_concrete_function(
            tf.TensorSpec([1, 64, 64, 3], tf.float32), tf.TensorSpec([1, width], tf.float32)
        )
    )


if __name__ == "__main__":
    sys.exit(main())
