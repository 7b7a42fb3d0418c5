"""A run's directory: where it is, what it was started with, whether it is finished."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from veorl_tf.core import checkpoint, hardware
from veorl_tf.core.config import Config
from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_write

# Keys that change where or how often something is written, never what is learnt.
HARMLESS = re.compile(
    r"logdir|datadir|fresh|log\..*|env\.workers|data\.prefetch|updates_per_call|distribute"
)
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
        return json.loads(self.result.read_text()) if self.result.exists() else None


def open_run(config: Config, names: Sequence[str]) -> RunDirectory:
    """The directory of the run that `config` describes, new or to be continued.

    Raises UserError when the directory holds a run with another configuration. A run that has no
    checkpoint yet takes the new one: it may have failed at a flag that was mended since.
    """
    run = RunDirectory(run_path(config, names))
    path = run.path
    if run.started:
        _refuse_changes(load_config(path), config, path)
        return run
    if path.exists() and not path.is_dir():
        raise UserError(f"--logdir {path}: a file; name a folder")
    if path.exists() and not run.config.exists() and any(path.iterdir()):
        raise UserError(f"--logdir {path}: a folder with other files; name a new or empty one")
    path.mkdir(parents=True, exist_ok=True)
    with atomic_write(path / "versions.json", "w") as file:
        json.dump(provenance() | {"configs": list(names)}, file, indent=1)
    with atomic_write(run.config, "w") as file:
        file.write(config.to_yaml())
    return run


def run_path(config: Config, names: Sequence[str]) -> Path:
    """Where the run that `config` describes lives, or shall live."""
    path = Path(config.logdir or f"logs/{default_name(config, names)}").expanduser()
    return _next_free(path) if config.fresh else path


def settle(config: Config, names: Sequence[str]) -> Config:
    """`config` with what `auto` means here, or meant where the run was begun."""
    automatic = [key for key, auto in hardware.AUTO.items() if config[key] == auto]
    path = run_path(config, names)
    begun = RunDirectory(path).started
    found = load_config(path).flat if begun else hardware.resolve(config.distribute)
    return config.update({key: found[key] for key in automatic})


def default_name(config: Config, names: Sequence[str]) -> str:
    """`<configs>-<task>-<seed>`, for example `metaworld-veorl-small-metaworld_door_close-0`."""
    return "-".join([*names, config.task, str(config.seed)])


def load_config(logdir: str | Path) -> Config:
    """The resolved configuration that a run was started with."""
    path = Path(logdir) / "config.yaml"
    if not path.exists():
        raise UserError(f"{logdir}: not a run directory (it has no config.yaml)")
    return Config.from_yaml(path.read_text(), str(path))


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
    git = lambda *args: subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
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
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    count = hardware.cores()
    return f"{count} core{'s' if count > 1 else ''} of {model}, {platform.system()}"


def _next_free(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate


def _refuse_changes(before: Config, now: Config, path: Path) -> None:
    old, new = before.flat, now.flat
    changed = [
        key
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not HARMLESS.fullmatch(key)
    ]
    if changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"{path} was started with another configuration ({shown}{more}); use the "
            f"same flags, another --logdir, or --fresh"
        )
