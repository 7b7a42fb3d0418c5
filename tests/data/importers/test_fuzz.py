"""Damage of every kind in every format: no crash, no hang, nothing malformed, and a word about it
wherever checksums show it."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRIES = 300  # of every format
SECONDS = 30.0  # for one try

sys.path.insert(0, str(HERE))

pytest.importorskip("pyarrow", reason="pyarrow is in requirements-dev.txt")
import fuzzing  # noqa: E402

from envs.workers import WorkerFailure, run_jobs  # noqa: E402

FORMATS = (
    "episodes dreamerv3 vd4rl minari lerobot rlds video cliplist images bridge nuscenes".split()
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return fuzzing.samples(tmp_path_factory.mktemp("samples"))


def attempts(format, source, seeds) -> list[dict]:
    """Results in the order of the seeds; a worker that fails is an error."""
    jobs = [{"format": format, "source": str(source), "seed": seed} for seed in seeds]
    results = dict(run_jobs("fuzzing:attempt", jobs, 2, SECONDS, rendering=False))
    for index, result in sorted(results.items()):
        if isinstance(result, WorkerFailure):
            pytest.fail(f"{format}, seed {seeds[index]}: {result.reason}\n{result.details}")
    return [results[i] for i in range(len(seeds))]


def check(format, source, seeds) -> int:
    """How many of the damages were told."""
    whole, *damaged = attempts(format, source, [-1, *seeds])
    assert whole["episodes"] and not whole["problems"], whole["problems"]
    for result in damaged:
        changed = {
            name: keys
            for name, keys in result["episodes"].items()
            if name not in whole["episodes"] or whole["episodes"][name] != keys
        }
        missing = set(whole["episodes"]) - set(result["episodes"])
        if format in fuzzing.CHECKED and (changed or missing):
            assert result["problems"], f"{result['how']}: not told"
    return sum(bool(result["problems"]) for result in damaged)


@pytest.mark.parametrize("format", FORMATS)
def test_some_damage(format, sources):
    check(format, sources[format], range(12))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_much_damage(format, sources, faults):
    told = check(format, sources[format], range(1000, 1000 + TRIES))
    faults.append(("damaged data", format, f"{TRIES} survived, {told} of them told"))
    assert told > TRIES / 10
