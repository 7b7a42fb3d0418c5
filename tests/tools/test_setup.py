"""The set-up: what it installs is what the code imports, and what it says where it cannot work."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ["train.py", "envs", "veorl_tf", "tests", "benchmarks"]


def requirements(name):
    """The requirements in a file that apply to this Python, {canonical name: Requirement}."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonical(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules():
    """Top-level names of every import in the project's code, with one file that holds it."""
    files = [
        path
        for source in SOURCES
        for path in (
            [ROOT / source] if source.endswith(".py") else sorted((ROOT / source).rglob("*.py"))
        )
    ]
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], path.relative_to(ROOT))
    return found


def installed_modules():
    """{top-level module: names of the installed packages with files in it}."""
    found = {}  # importlib.metadata.packages_distributions() misses NumPy under Python 3.10
    for package in importlib.metadata.distributions():
        name = canonical(package.metadata["Name"])
        for top in {path.parts[0].removesuffix(".py") for path in package.files or []}:
            found.setdefault(top, set()).add(name)
    return found


def test_every_import_is_a_pinned_requirement():
    own = {"veorl_tf", "envs", "tests", "train", "benchmarks"}
    own |= {path.stem for path in (ROOT / "tests").rglob("*.py")}  # helpers of tests
    providers = installed_modules()
    pinned = set(requirements("requirements.txt")) | {"packaging"}  # pytest's own dependency
    development = set(requirements("requirements-dev.txt"))
    development |= pinned | set(requirements("requirements-import.txt"))
    missing = {}
    for module, path in imported_modules().items():
        if module in own or module in sys.stdlib_module_names:
            continue
        allowed = development if path.parts[0] in ("benchmarks", "tests") else pinned
        if not allowed & providers.get(module, set()):
            missing[module] = str(path)
    assert not missing, f"imported, but not in requirements.txt: {missing}"


FILES = [path.name for path in sorted(ROOT.glob("requirements*.txt"))]


def locked(name):
    """{package: (version, hashes)} of a lock, as far as it concerns this machine."""
    text = (ROOT / "locks" / name).read_text().replace("\\\n", " ")
    entries = {}
    for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
        text, *hashes = line.split("--hash=")
        requirement = Requirement(text.strip())
        version = re.fullmatch("==([^*,]+)", str(requirement.specifier))
        assert version, f"not pinned: {text}"
        if requirement.marker is None or requirement.marker.evaluate():
            entries[canonical(requirement.name)] = version[1], [h.strip() for h in hashes]
    return entries


@pytest.mark.parametrize("name", FILES)
def test_locks_hold_what_is_asked_for_with_hashes(name):
    lock = locked(name)
    for package, requirement in requirements(name).items():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"not pinned: {requirement}"
        assert lock[package][0] == str(requirement.specifier).removeprefix("=="), package
    for package, (_, hashes) in lock.items():
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in hashes), package
    for package, (version, hashes) in locked("requirements.txt").items():
        assert lock[package] == (version, hashes), "one lock contradicts another"


def test_what_is_installed_is_what_is_locked():
    lock = locked("requirements-dev.txt")
    wrong = []
    places = sorted({sysconfig.get_paths()[key] for key in ("purelib", "platlib")})
    for package in importlib.metadata.distributions(path=places):
        name, version = canonical(package.metadata["Name"]), package.version
        if name in lock and lock[name][0] != version:
            wrong.append(f"{name} {version}, locked {lock[name][0]}")
    assert not wrong


def test_names_no_index():
    for path in (ROOT / "locks").iterdir():
        assert "://" not in path.read_text(), path


def run_setup(tmp_path, *options, python_version=None):
    """Runs tools/setup.sh in a folder with a space, where only basic tools and no Python exist."""
    project = tmp_path / "a folder"
    shutil.copytree(ROOT / "tools", project / "tools")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ["bash", "cat", "df", "dirname", "flock", "head", "id", "mkdir", "tail"]:
        tools.joinpath(tool).symlink_to(shutil.which(tool))
    if python_version:
        fake = tools / "python3"
        fake.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {python_version}"\n')
        fake.chmod(0o755)
    environment = {**os.environ, "PATH": str(tools), "CDPATH": "/", "PYTHON": ""}
    return subprocess.run(
        [shutil.which("bash"), str(project / "tools" / "setup.sh"), *options],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("version, words", [("3.8.10", "found Python 3.8.10"), (None, "found")])
def test_unsuitable_python_is_one_clear_line(tmp_path, version, words):
    done = run_setup(tmp_path, python_version=version)
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith("setup: error: needs a 64-bit Python >= 3.11 and < 3.14")
    assert words in line
    assert not (tmp_path / "a folder" / ".venv" / "bin").exists()


def test_unknown_option_shows_the_known_ones(tmp_path):
    done = run_setup(tmp_path, "--gpu")
    assert done.returncode == 2
    assert "--gpu" in done.stderr and "--rootless-rendering" in done.stderr
    assert not (tmp_path / "a folder" / ".venv").exists()
