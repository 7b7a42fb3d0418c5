"""The comparison: algorithms, tasks and seeds trained on the same data, as a table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from veorl_tf.core.config import Config
from veorl_tf.core.errors import Interrupted, MachineError, UserError
from veorl_tf.core.files import atomic_write
from veorl_tf.core.flags import parse_options
from veorl_tf.core.interrupt import SIGNALS, StopRequest
from veorl_tf.core.places import expanded

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "tasks": ["metaworld_door_close", "metaworld_drawer_open"],
    "agents": ["veorl", "veorl_dv3", "dreamerv2", "dreamerv3"],
    "seeds": [0, 1],
    "budget": "small",
    "results": "results",
    "logs": "logs/table",
    "train": True,
}
HELP = {
    "tasks": "simulator tasks, comma separated",
    "agents": "algorithm blocks of configs.yaml",
    "seeds": "seeds of every algorithm on every task",
    "budget": "budget block of configs.yaml",
    "results": "folder of the result files, one per run; those that are there are not run again",
    "logs": "folder of the run directories",
    "train": "false: only write the table from the results that are there",
}
MARKS = ("<!-- results table: begin -->", "<!-- results table: end -->")


def table(argv: Sequence[str]) -> int:
    """`python -m veorl_tf table`: runs what has no result yet, then writes the table. Interrupted
    or killed, the same command continues."""
    _, options = parse_options(
        argv, Config(OPTIONS), HELP, "python -m veorl_tf table [--key value ...]"
    )
    results = expanded("--results", options.results)
    if options.train:
        for task in options.tasks:
            for seed in options.seeds:
                for agent in options.agents:
                    train_one(options, task, agent, seed, results)
    rows = read_results(results)
    if not rows:
        raise UserError(f"{results}: no results yet")
    text = render(rows)
    print(text)
    for name in ("README.md", "docs/results.md"):
        insert(ROOT / name, text)
    return 0


def train_one(options: Config, task: str, agent: str, seed: int, results: Path) -> None:
    """Runs one cell of the table, unless its result is there already."""
    name = f"{options.budget}-{task}-{agent}-{seed}"
    target = results / f"{name}.json"
    if target.exists():
        return
    logdir = expanded("--logs", options.logs) / name
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--configs",
        "metaworld",
        agent,
        options.budget,
        "--task",
        task,
        "--seed",
        str(seed),
        "--logdir",
        str(logdir),
    ]
    print(" ".join(["python", "train.py", *command[2:]]), flush=True)
    code = wait_for(command)
    if code - 128 in SIGNALS:
        raise Interrupted(code - 128)
    if code:
        raise MachineError(f"{name}: training ended with exit code {code}; its last lines say why")
    results.mkdir(parents=True, exist_ok=True)
    row = json.loads((logdir / "result.json").read_text(encoding="utf-8"))
    with atomic_write(target, "w") as file:
        json.dump(row | {"budget": options.budget, "algorithm": agent}, file, indent=1)


def wait_for(command: Sequence[str]) -> int:
    """Exit code of a command. It is given the time to save when a signal asks us to stop (Ctrl-C
    reaches it too, the others are passed on); then Interrupted is raised."""
    with StopRequest() as stop:
        child = subprocess.Popen(command)
        told = False
        while True:
            try:
                return child.wait(1)
            except subprocess.TimeoutExpired:
                if stop.signum not in (None, signal.SIGINT) and not told:
                    child.send_signal(stop.signum)
                    told = True


def read_results(folder: Path) -> list[dict]:
    """Results by task, algorithm and seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(rows, key=lambda r: (r["task"], algorithm(r), r["seed"]))


def algorithm(row: dict) -> str:
    """The block that was trained, for example `veorl_dv3`: its agent is `veorl`."""
    return row.get("algorithm", row["agent"])


def render(rows: list[dict]) -> str:
    """A Markdown table: for each task random, the data, then every trained agent by seed."""
    lines = [
        "| task | policy | seed | success | return | p against random | training | "
        "revision | machine, date |",
        "|" + "---|" * 9,
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        lines += [
            _plain_line(here[0], "random"),
            _plain_line(here[0], "dataset"),
        ]
        lines += [_agent_line(row) for row in here]
    return "\n".join(lines)


def _plain_line(row: dict, name: str) -> str:
    """What every agent of a task is compared with, as its first run measured it."""
    scores = row[name]
    return (
        f"| {row['task']} | {name} | | {_share(scores)} | {scores['return']:.0f} | | | "
        f"{_source(row)} |"
    )


def _source(row: dict) -> str:
    return f"`{row['revision']}` | {row['machine']}, {row['date']}"


def _agent_line(row: dict) -> str:
    scores, random = row["policy"], row["random"]
    p = fisher(scores, random)
    return (
        f"| {row['task']} | {algorithm(row)} | {row['seed']} | {_share(scores)} | "
        f"{scores['return']:.0f} ± {scores['return_error']:.0f} | {p:.1e} | "
        f"{row['training_seconds'] / 60:.0f} min | {_source(row)} |"
    )


def _share(scores: dict) -> str:
    count = round(scores["success"] * scores["episodes"])
    return f"{scores['success']:.2f} ({count}/{scores['episodes']})"


def fisher(left: dict, right: dict) -> float:
    """One-sided Fisher's exact test: p of `left` succeeding this much more often than `right`."""
    from scipy.stats import fisher_exact

    counts = [(round(s["success"] * s["episodes"]), s["episodes"]) for s in (left, right)]
    grid = [[won, total - won] for won, total in counts]
    return float(fisher_exact(grid, alternative="greater").pvalue)


def insert(path: Path, text: str) -> None:
    """Puts the table between the marks of a Markdown file, where it has them."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    before, begin, rest = old.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        return
    with atomic_write(path, "w") as file:
        file.write(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
