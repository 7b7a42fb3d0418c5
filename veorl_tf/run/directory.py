"""A run's directory: where it is, what it was started with, whether it is finished."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from veorl_tf.core import checkpoint, hardware
from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError, warn
from veorl_tf.core.files import atomic_write, naming, sweep_leftovers
from veorl_tf.core.lock import locked
from veorl_tf.core.places import expanded

# Keys that change where or how often something is written, never what is learnt.
HARMLESS = re.compile(
    r"logdir|datadir|fresh|force|log\..*|env\.workers|data\.prefetch|updates_per_call|distribute"
    r"|max_skipped"
)
BUDGET = re.compile(r"stages\.(\w+)\.updates")
SHOWN = 4  # changed keys in a line
# What `make table` itself changes, and other prose, makes no other revision.
NOT_CODE = (":!README.md", ":!docs", ":!results", ":!benchmarks/results")
PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-probability",
    "numpy",
    "mujoco",
    "metaworld",
    "gymnasium",
    "gymnasium-robotics",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        """What the run was begun with."""
        return self.path / "versions.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / "run.lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """Written last: the run's outcome; a run that has it is finished."""
        return self.path / "result.json"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def started(self) -> bool:
        """Whether anything was learnt here that another configuration would spoil."""
        return self.config.exists() and (
            self.result.exists() or any(self.checkpoints.glob("*.json"))
        )

    def finished(self) -> dict | None:
        """The outcome of a finished run, else None."""
        if not self.result.exists():
            return None
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
            if isinstance(result, dict) and "updates" in result:
                return result
        except ValueError:
            pass
        warn(f"{self.result}: damaged; it is made again")
        return None


def open_run(config: Config, names: Sequence[str], run: RunDirectory | None = None) -> RunDirectory:
    """The directory of the run that `config` describes, new or to be continued.

    Raises UserError when the directory holds a run with another configuration, unless the change is
    harmless, extends a budget, or `config.force`. A run that has no checkpoint yet takes the new
    one: it may have failed at a flag that was mended since.
    """
    run = run or RunDirectory(run_path(config, names))
    path = run.path
    if run.started:
        _check_changes(run, config)
        if not run.result.exists():
            _tell_versions(run)
        return run
    require_place(run)
    path.mkdir(parents=True, exist_ok=True)
    with atomic_write(run.config, "w") as file:  # first: it marks the folder as a run's
        file.write(config.to_yaml())
    with atomic_write(run.versions, "w") as file:
        json.dump(provenance() | {"configs": list(names)}, file, indent=1)
    return run


@contextmanager
def owned(run: RunDirectory) -> Iterator[None]:
    """Only one process trains in a run's directory. Raises UserError when another one does."""
    sweep_leftovers(run.path)
    require_place(run)
    with locked(run.lock, f"trains in {run.path}"):
        yield


def require_place(run: RunDirectory) -> None:
    """Raises UserError when the directory is somebody else's."""
    path = run.path
    if path.exists() and not path.is_dir():
        raise UserError(f"--logdir {path}: a file; name a folder")
    others = path.exists() and any(one != run.lock for one in path.iterdir())
    if others and not run.config.exists():
        raise UserError(f"--logdir {path}: a folder with other files; name a new or empty one")


def run_path(config: Config, names: Sequence[str]) -> Path:
    """Where the run that `config` describes lives, or shall live."""
    path = expanded("--logdir", config.logdir or f"logs/{default_name(config, names)}")
    return _next_free(path) if config.fresh else path


def settle(config: Config, run: RunDirectory) -> Config:
    """`config` with what `auto` means here, or meant where the run was begun."""
    automatic = [key for key, auto in hardware.AUTO.items() if config[key] == auto]
    found = load_config(run.path).flat if run.started else hardware.resolve(config.distribute)
    return config.update({key: found.get(key, config[key]) for key in automatic})


def default_name(config: Config, names: Sequence[str]) -> str:
    """`<configs>-<task>-<seed>`, for example `metaworld-veorl-small-metaworld_door_close-0`."""
    return "-".join([*names, config.task, str(config.seed)])


def load_config(logdir: str | Path) -> Config:
    """The resolved configuration that a run was started with."""
    path = Path(logdir) / "config.yaml"
    if not path.exists():
        raise UserError(f"{logdir}: not a run directory (it has no config.yaml)")
    try:
        with naming(path):
            return Config.from_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: no text; name a new --logdir, or mend it") from None


def load_weights(logdir: str | Path, name: str = "") -> tuple[dict, dict, str]:
    """Arrays by path and manifest of a run's checkpoint (the newest whole one by default)."""
    directory = RunDirectory(Path(logdir)).checkpoints
    known = checkpoint.names(directory) if directory.is_dir() else []
    if name and name not in known:
        raise UserError(
            f"{directory}: no checkpoint {name!r}; there are: {', '.join(known) or 'none'}"
        )
    name = name or checkpoint.latest(directory) or ""
    if not name:
        raise UserError(f"{logdir}: the run has no checkpoint yet")
    arrays, manifest = checkpoint.load(directory, name)
    return arrays, manifest, name


def provenance() -> dict:
    """Revision, package versions and machine, to be kept beside results."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "revision": revision(),
        "packages": versions,
        "python": platform.python_version(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def revision() -> str:
    """Git revision of the code, with `+` when files were changed since; empty outside a clone."""
    root = Path(__file__).resolve().parents[2]
    # A hook's GIT_DIR would name another repository.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git = lambda *args: subprocess.run(
        ["git", "-C", str(root), *args],
        capture_output=True,
        text=True,
        errors="replace",
        env=environ,
        check=False,
    ).stdout.strip()
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + (
            "+"
            if head and git("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE)
            else ""
        )
    except FileNotFoundError:
        return ""


def machine() -> str:
    """Processor, cores and operating system in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"model name\s*:\s*(.+)", text)
        model = found.group(1) if found else model
    count = hardware.cores()
    return f"{count} core{'s' if count > 1 else ''} of {model}, {platform.system()}"


def _tell_versions(run: RunDirectory) -> None:
    """Warns when a run goes on with other software than it was begun with: its numbers may be
    others than those of an unbroken run."""
    try:
        then = _versions(json.loads(run.versions.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return warn(f"{run.versions}: damaged or missing; the run may go on with other versions")
    now = _versions(provenance())
    changed = [
        f"{name} {then.get(name)} -> {now.get(name)}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if changed:
        warn(f"{run.path} goes on with other versions than it was begun with: {', '.join(changed)}")


def _versions(provenance: Mapping) -> dict[str, str | None]:
    return {
        "revision": provenance["revision"],
        "python": provenance["python"],
        **provenance["packages"],
    }


def _next_free(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def accept(run: RunDirectory, config: Config) -> None:
    """Makes `config` the run's, once it has proved to work with what the run has saved."""
    if _changes(load_config(run.path).flat, config.flat):
        with atomic_write(run.config, "w") as file:
            file.write(config.to_yaml())


def _changes(old: Mapping, now: Mapping) -> list[str]:
    """Keys whose change matters."""
    keys = sorted({*old, *now})
    return [k for k in keys if old.get(k) != now.get(k) and not HARMLESS.fullmatch(k)]


def _check_changes(run: RunDirectory, config: Config) -> None:
    """Raises UserError unless the run can go on with `config`; a longer one is finished no more."""
    old, now = load_config(run.path).flat, config.flat
    changed = _changes(old, now)
    extended = [key for key in changed if _extends(run, key, old, now)]
    shown = ", ".join(f"{k} {old.get(k)!r} -> {now.get(k)!r}" for k in changed[:SHOWN])
    shown += f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    finished = run.result.exists()
    if extended != changed and (finished or not config.force):
        raise UserError(
            f"{run.path} was started with another configuration ({shown}); use the "
            f"same flags, another --logdir, or --fresh"
            + ("" if finished else "; --force goes on with the new one")
        )
    if not changed:
        return
    warn(f"{run.path} goes on with another configuration: {shown}")
    if extended:
        run.result.unlink(missing_ok=True)


def _extends(run: RunDirectory, key: str, old: Mapping, now: Mapping) -> bool:
    """Whether a change gives more updates to a stage after which no other has begun: so far the
    weights are what they would be with the larger budget."""
    budget = BUDGET.fullmatch(key)
    if not budget or not all(isinstance(x.get(key), int) for x in (old, now)):
        return False
    if now[key] < old[key]:
        return False
    newest = checkpoint.latest(run.checkpoints) if run.checkpoints.is_dir() else None
    if newest is None:
        return True
    reached = checkpoint.manifest(run.checkpoints, newest)["stage_name"]
    order = [BUDGET.fullmatch(one)[1] for one in old if BUDGET.fullmatch(one)]
    return reached in order and order.index(budget[1]) >= order.index(reached)
