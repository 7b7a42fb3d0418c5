"""An update exported as StableHLO gives under JAX the numbers that TensorFlow gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veorl_tf.core.quiet import load_tensorflow

load_tensorflow()

from benchmarks import portable  # noqa: E402
from veorl_tf.agents.stage import Update  # noqa: E402

ROOT = Path(__file__).parents[2]
UPDATES = 10


def test_ten_updates_under_jax(tmp_path, tiny_config, make_agent, random_batches):
    """The program makes two updates a call, on the same two batches every time."""
    pytest.importorskip("jax", reason="jax is a development dependency (requirements-dev.txt)")
    config = tiny_config("metaworld dreamerv2", {"compiler": "xla"})
    agent = make_agent(config)
    stage = next(s for s in agent.stages() if s.name == "model")
    batches = [random_batches(stage, config, seed) for seed in (0, 1)]
    stage.start()
    variables = agent.weights() | stage.state
    portable.export(tmp_path, stage, variables, batches, config.seed)
    before = {path: v.numpy().copy() for path, v in agent.weights().items()}
    command = [sys.executable, str(tmp_path / "run.py"), "--calls", str(UPDATES // 2)]
    command += ["--state", str(tmp_path / "state.npz")]
    env = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)

    update = Update(stage, config.seed, jit=True)
    for index in range(UPDATES):
        update(batches[index % 2], index)
    with np.load(tmp_path / "state.npz") as state:
        assert set(state.files) == set(variables)
        assert state["optimizer/model/model/steps"] == UPDATES
        for path, variable in variables.items():
            scale = np.abs(variable).max() + 1e-12
            np.testing.assert_allclose(
                state[path], variable, atol=2e-3 * scale, rtol=0, err_msg=path
            )
        changed = [path for path, old in before.items() if not np.array_equal(state[path], old)]
    assert {path.split("/")[0] for path in changed} == {"encoder", "trunk", "image", "reward"}
