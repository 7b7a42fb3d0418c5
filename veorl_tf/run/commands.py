"""The commands around training: evaluate, export, collect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from veorl_tf.core.config import Config, load_blocks
from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_directory, atomic_write, sweep_leftovers
from veorl_tf.core.flags import parse_options
from veorl_tf.core.interrupt import going_on
from veorl_tf.core.media import write_mp4
from veorl_tf.core.places import expanded, named_folder, new_folder
from veorl_tf.core.quiet import load_tensorflow
from veorl_tf.data.episodes import save_episode
from veorl_tf.run import datasets
from veorl_tf.run.checking import check_values
from veorl_tf.run.directory import load_config, load_weights, provenance
from veorl_tf.run.job import BLOCKS
from veorl_tf.run.simulators import check_task, env_options

EVALUATE = {
    "checkpoint": "",
    "episodes": 50,
    "videos": 3,
    "workers": 2,
    "seed": 0,
    "policy": "agent",
    "goals": "evaluation",
    "record": "",
}
EVALUATE_HELP = {
    "checkpoint": "name of a checkpoint; empty: the newest",
    "episodes": "how many; goal seeds are the same for every policy",
    "videos": "how many episodes to film",
    "workers": "simulator processes",
    "seed": "of the policy's own noise",
    "policy": "agent | random",
    "goals": "evaluation (those of the one that ends a run) | other (episodes to train on)",
    "record": "new folder for all of the episodes as .npz, which can be trained on",
}
EXPORT = {"checkpoint": ""}
EXPORT_HELP = {"checkpoint": "name of a checkpoint; empty: the newest"}


def evaluate(argv: Sequence[str]) -> int:
    """`evaluate LOGDIR`: mean and standard error of return and success, and videos."""
    given, options = parse_options(
        argv,
        Config(EVALUATE),
        EVALUATE_HELP,
        "python -m veorl_tf evaluate LOGDIR [--key value ...]",
        ["LOGDIR"],
    )
    if options.policy not in ("agent", "random"):
        raise UserError(f"--policy {options.policy}: one of agent, random")
    if options.goals not in ("evaluation", "other"):
        raise UserError(f"--goals {options.goals}: one of evaluation, other")
    if options.episodes < 1 or options.workers < 1:
        raise UserError("--episodes and --workers must be at least 1")
    logdir = expanded("LOGDIR", given["LOGDIR"])
    config = load_config(logdir)
    if config.task == "none":
        raise UserError(f"{logdir}: the run has --task none, so there is nothing to evaluate in")
    with going_on("the same command begins anew"):
        summary = _evaluate(logdir, config, options)
    print(
        f"success {summary['success']:.3f} +- {summary['success_error']:.3f}, "
        f"return {summary['return']:.1f} +- {summary['return_error']:.1f}, "
        f"{summary['episodes']} episodes, {summary['checkpoint']}"
    )
    print(f"written to {summary['file']}")
    return 0


def _evaluate(logdir: Path, config: Config, options: Config) -> dict:
    from veorl_tf.run.evaluate import FIRST_GOAL, OTHER_GOAL, AgentPolicy, Evaluator, random_policy

    recording = new_folder("--record", options.record) if options.record else None
    blind = options.policy == "random" and options.videos == 0 and not recording
    spec = {"task": config.task, **env_options(config), "render": not blind}
    if options.policy == "agent":
        agent, name, manifest = load_agent(logdir, config, options.checkpoint)
        policy = AgentPolicy(agent, options.seed, options.workers, manifest["step"])
    else:
        name = "random"
        policy = random_policy(
            config.action.size, config.action.discrete, options.seed, options.workers
        )
    first, suffix = (FIRST_GOAL, "") if options.goals == "evaluation" else (OTHER_GOAL, "-other")
    out = logdir / "evaluations" / f"{name}-seed{options.seed}-{options.episodes}{suffix}"
    with _recorder(recording) as record, Evaluator(spec, options.workers) as evaluator:
        scores = evaluator.run(policy, options.episodes, options.videos, record, first)
    for i, frames in enumerate(scores.videos):
        write_mp4(out / f"episode-{i}.mp4", frames, fps=20)
    summary = {
        **scores.summary(),
        "checkpoint": name,
        "seed": options.seed,
        "goals": options.goals,
        "returns": scores.returns,
        "successes": scores.success,
        "simulator_failures": scores.failures,
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "scores.json", "w") as file:
        json.dump(summary, file, indent=1)
    sweep_leftovers(out)
    return summary | {"file": out / "scores.json"}


@contextmanager
def _recorder(out: Path | None):
    """What writes finished episodes to the folder `out`, which is there when all of them are."""
    if out is None:
        yield None
        return
    stamp = datetime.now().strftime("%Y%m%dT%H%M%S")
    with atomic_directory(out, replace=False) as folder:
        yield lambda index, arrays: save_episode(folder, arrays, stamp=stamp, ident=f"{index:032x}")


def load_agent(logdir: Path, config: Config, name: str = ""):
    """An agent with a checkpoint's weights, and the checkpoint's name and manifest."""
    load_tensorflow()
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent
    from veorl_tf.run.offline import assign

    arrays, manifest, name = load_weights(logdir, name)
    agent = make_agent(config, ActionSpace(**manifest["action"]))
    assign(agent.weights(), arrays, name)
    return agent, name, manifest


def export(argv: Sequence[str]) -> int:
    """`export LOGDIR OUT`: a SavedModel that acts without this code base."""
    given, options = parse_options(
        argv,
        Config(EXPORT),
        EXPORT_HELP,
        "python -m veorl_tf export LOGDIR OUT [--key value ...]",
        ["LOGDIR", "OUT"],
    )
    load_tensorflow()
    from veorl_tf.run import export as exporting

    logdir, out = expanded("LOGDIR", given["LOGDIR"]), new_folder("OUT", given["OUT"])
    config = load_config(logdir)
    agent, name, manifest = load_agent(logdir, config, options.checkpoint)
    exporting.export(agent, config, out, manifest.get("bounds"))
    print(f"{out}: policy of {name}; signatures initial_state and act, see {exporting.METADATA}")
    return 0


def collect(argv: Sequence[str]) -> int:
    """`collect --configs metaworld small --task T`: the default dataset of a configuration, or one
    of another quality, into a folder of choice."""
    from veorl_tf.core.flags import parse_flags
    from veorl_tf.run.collect import RECIPE, make_dataset

    usage = (
        "python -m veorl_tf collect OUT --configs metaworld [small] [--task T] "
        "[--data.collect_quality medium] [--data.collect_episodes N] [--data.seed S]"
    )
    blocks, comments = load_blocks(BLOCKS)
    request = parse_flags(argv, blocks, comments, usage, ["OUT"])
    config = request.config
    check_values(config)
    check_task(config)
    out = named_folder("OUT", request.given["OUT"])
    recipe, made = datasets.default_recipe(config, "target"), out / RECIPE
    if made.exists() and recipe.hash not in made.read_text(encoding="utf-8"):
        raise UserError(f"{out}: holds a dataset of another recipe; name another folder")
    make_dataset(recipe, out, config.env.workers)
    print(made.read_text(encoding="utf-8"))
    return 0
