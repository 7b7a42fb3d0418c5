"""Worker processes: in parallel, replaceable, counted."""

import ctypes.util
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from envs import rendering
from envs.workers import SimulatorPool, WorkerFailure, run_jobs

SPEC = dict(task="metaworld_reach", render=False, time_limit=20)


def test_importing_envs_imports_no_tensorflow():
    code = (
        "import sys, envs, envs.workers, envs.experts, envs.fetch; "
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_pool_steps_in_parallel_and_replaces_who_dies():
    with SimulatorPool(SPEC, 2) as pool:
        first = pool.reset({0: 5, 1: 5})
        assert set(first) == {0, 1} and first[0][0]["image"].shape == (64, 64, 3)
        action = np.full(4, 0.5, np.float32)
        step = pool.step({0: action, 1: action})
        assert step[0][1] == step[1][1] > 0  # the same seed, the same reward
        os.kill(pool.pids()[0], signal.SIGKILL)
        step = pool.step({0: action, 1: action})
        assert isinstance(step[0], WorkerFailure) and not isinstance(step[1], WorkerFailure)
        assert pool.failures == 1
        with pytest.raises(ValueError, match="reset"):
            pool.step({0: action})
        again = pool.reset({0: 5})
        assert np.array_equal(again[0][0]["image"], first[0][0]["image"])
        assert pool.step({0: action})[0][1] > 0


def test_a_bad_action_is_a_failure_with_its_reason():
    with SimulatorPool(SPEC, 1) as pool:
        pool.reset({0: 0})
        result = pool.step({0: np.full(4, np.nan)})[0]
        assert isinstance(result, WorkerFailure) and "finite" in result.reason


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("hang", "no answer within 2 s"),
        ("exit", r"the worker process died \(exit code 7\)"),
        ("raise", "RuntimeError: the door is gone"),
        ("nan", "the reward is nan"),
        ("inf", "the reward is inf"),
    ],
)
def test_whatever_a_simulator_does_the_others_go_on(fault, reason, faults):
    pool = SimulatorPool({"fault": fault}, 2, timeout=2.0, factory="tests.envs.jobs:Faulty")
    with pool:
        pool.reset({0: 0, 1: 0})
        for _ in range(2):
            assert not any(
                isinstance(r, WorkerFailure) for r in pool.step({0: None, 1: None}).values()
            )
        pool.reset({1: 0})
        step = pool.step({0: None, 1: None})
        assert isinstance(step[0], WorkerFailure) and re.search(reason, step[0].reason)
        assert step[1][1] == 1.0 and pool.failures == 1
        pool.reset({0: 0})
        assert pool.step({0: None})[0][1] == 1.0
    faults.append(("simulator", fault, "replaced, the others went on"))


def test_a_dead_renderer_names_the_library():
    libraries = {"egl": "EGL", "osmesa": "OSMesa"}
    missing = [key for key, name in libraries.items() if not ctypes.util.find_library(name)]
    if not missing:
        pytest.skip("EGL and OSMesa are both installed here")
    done = subprocess.run(
        [sys.executable, "-m", "envs.rendering"],
        env={**os.environ, "MUJOCO_GL": missing[0]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4 and done.stdout.count("\n") == 1
    assert f"lib{libraries[missing[0]]} is missing" in done.stdout and "apt-get" in done.stdout


@pytest.mark.parametrize("written", [str.upper, str.title, " {} ".format])
def test_a_renderer_in_any_spelling(written, monkeypatch):
    """As MuJoCo takes it; PyOpenGL, which a worker loads, does not."""
    works = rendering.environment()["MUJOCO_GL"]
    monkeypatch.setenv("MUJOCO_GL", written(works))
    monkeypatch.setenv("PYOPENGL_PLATFORM", written(works))
    assert rendering.check() == (True, f"headless rendering works ({works})")
    spec = dict(task="metaworld_reach", camera="topview", time_limit=20)
    with SimulatorPool(spec, 1) as pool:
        assert np.ptp(pool.reset({0: 5})[0][0]["image"]) > 50
    # and in a process of the user's own
    code = "import envs, sys; env = envs.make('metaworld_reach'); env.reset(seed=0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_no_process_is_left():
    pool = SimulatorPool(SPEC, 2)
    pids = pool.pids()
    pool.close()
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_jobs_are_tried_twice(tmp_path):
    jobs = [dict(marker=str(tmp_path / "marker"))]
    failures = []
    results = run_jobs(
        "tests.envs.jobs:fails_once", jobs, 1, rendering=False, failed=failures.append
    )
    assert list(results) == [(0, "done")]
    assert [failure.reason for failure in failures] == ["RuntimeError: the first time"]
    ((index, result),) = run_jobs("tests.envs.jobs:always_fails", [{}], 1, rendering=False)
    assert index == 0 and isinstance(result, WorkerFailure) and "always" in result.reason


def test_a_job_that_hangs_is_ended():
    ((_, result),) = run_jobs("tests.envs.jobs:hangs", [{}], 1, timeout=1, rendering=False)
    assert isinstance(result, WorkerFailure)
