"""A SavedModel acts in a Python that cannot see this project as the live policy does here."""

import json
import subprocess
import sys

import numpy as np
import pytest

from veorl_tf.core import seeds
from veorl_tf.core.errors import UserError

SEED, ROWS, STEPS = 5, 3, 5

# What somebody with a robot would write; `-I` keeps the current folder and PYTHONPATH away.
ELSEWHERE = """
import importlib.util, sys
import numpy as np
import tensorflow as tf
assert importlib.util.find_spec("veorl_tf") is None and importlib.util.find_spec("envs") is None
for folder in sys.argv[1:]:
    policy = tf.saved_model.load(folder)
    inputs = np.load(folder + ".inputs.npz")
    act, initial = policy.signatures["act"], policy.signatures["initial_state"]
    state, actions = initial(batch=tf.constant(len(inputs["is_first"][0]), tf.int32)), []
    for image, is_first, seed in zip(inputs["image"], inputs["is_first"], inputs["seed"]):
        result = dict(act(image=tf.constant(image), is_first=tf.constant(is_first),
                          seed=tf.constant(seed), **state))
        actions.append(result.pop("action").numpy())
        state = result
    np.save(folder + ".actions.npy", np.stack(actions))
foreign = [name for name in sys.modules
           if name.split(".")[0] in ("veorl_tf", "envs", "tensorflow_probability", "tf_keras")]
assert not foreign, foreign
"""

AGENTS = {
    "gaussian": ("metaworld veorl", {}),
    "categorical": ("minedojo dreamerv2", {"target_dataset": "x"}),
    "dreamerv3": ("metaworld dreamerv3", {}),
    "dreamerv3_nature": ("minedojo dreamerv3_nature", {"target_dataset": "x"}),
    "veorl_dv3": ("metaworld veorl_dv3", {}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config):
    """{name: (agent, configuration, folder)} of agents with weights as they were drawn."""
    from veorl_tf.agents.agent import ActionSpace
    from veorl_tf.agents.registry import make_agent
    from veorl_tf.run.export import export

    root, made = tmp_path_factory.mktemp("exports"), {}
    for name, (blocks, more) in AGENTS.items():
        config = tiny_config(blocks, {"seed": 3, "v2.depth": 4, **more})
        agent = make_agent(config, ActionSpace(config.action.size, config.action.discrete))
        export(agent, config, root / name, {"low": [-1.0], "high": [1.0]})
        made[name] = agent, config, root / name
    return made


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """Five frames of three episodes; the second begins anew at its third, the third at its last."""
    import tensorflow as tf

    rng = np.random.Generator(np.random.Philox(1))
    is_first = np.zeros((STEPS, ROWS), bool)
    is_first[0] = is_first[2, 1] = is_first[4, 2] = True
    base = tf.random.fold_in(seeds.graph_seed(SEED, "evaluate"), 0)  # of update 0
    return {
        "image": rng.integers(0, 256, (STEPS, ROWS, 64, 64, 3), np.uint8),
        "is_first": is_first,
        "seed": np.stack([tf.random.fold_in(base, step).numpy() for step in range(STEPS)]),
    }


def live(agent, inputs) -> np.ndarray:
    """Actions [STEPS, ROWS, A] of the policy that evaluations run."""
    from veorl_tf.run.evaluate import AgentPolicy

    policy = AgentPolicy(agent, SEED, ROWS)
    return np.stack(
        [
            policy(image, first, step)
            for step, (image, first) in enumerate(zip(inputs["image"], inputs["is_first"]))
        ]
    )


@pytest.fixture(scope="module")
def elsewhere(exported, inputs, tmp_path_factory) -> dict[str, np.ndarray]:
    """{name: actions} of all exported policies, from one fresh process."""
    folders = [str(folder) for _, _, folder in exported.values()]
    for folder in folders:
        np.savez(folder + ".inputs.npz", **inputs)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *folders],
        text=True,
        cwd=tmp_path_factory.mktemp("home"),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: np.load(f"{folder}.actions.npy") for name, (_, _, folder) in exported.items()}


@pytest.mark.parametrize("name", list(AGENTS))
def test_the_very_same_actions(name, exported, inputs, elsewhere):
    agent, config, _ = exported[name]
    expected = live(agent, inputs)
    assert elsewhere[name].dtype == expected.dtype == np.float32
    assert elsewhere[name].shape == (STEPS, ROWS, config.action.size)
    assert np.array_equal(elsewhere[name], expected)
    if config.action.discrete:
        assert np.array_equal(np.sort(expected, -1)[..., -2:], np.full((STEPS, ROWS, 2), [0, 1]))
    else:
        assert np.abs(expected).max() <= 1
        assert len(np.unique(expected)) == expected.size  # nothing is constant in it


def test_is_first_forgets(exported, inputs):
    """The state before a row's first frame does not matter; without the mark it does."""
    agent, *_ = exported["gaussian"]
    expected = live(agent, inputs)
    other = dict(inputs, image=inputs["image"].copy())
    other["image"][:2, 1] = 255 - other["image"][:2, 1]
    changed = live(agent, other)
    assert np.array_equal(changed[2:, 1], expected[2:, 1])
    assert not np.array_equal(changed[:2, 1], expected[:2, 1])
    unmarked = {"is_first": inputs["is_first"] & (np.arange(STEPS) == 0)[:, None]}
    assert not np.array_equal(
        live(agent, other | unmarked)[2:, 1], live(agent, inputs | unmarked)[2:, 1]
    )


@pytest.mark.parametrize("name", list(AGENTS))
def test_what_it_says_of_itself(name, exported):
    agent, config, folder = exported[name]
    policy = json.loads((folder / "policy.json").read_text())
    assert policy["action"] == {
        "size": config.action.size,
        "discrete": config.action.discrete,
        "range": [-1.0, 1.0],
        "data_bounds": {"low": [-1.0], "high": [1.0]},
    }
    camera = None if config.task == "none" else "corner"  # how foreign frames were taken: unknown
    assert policy["image"]["shape"] == [64, 64, 3] and policy["image"]["camera"] == camera
    assert policy["agent"] == config.agent and policy["seed"] == 3
    statistics = {"mean", "std"} if name == "gaussian" else {"logit"}
    assert set(policy["state"]) == {"deter", "stoch", "action"} | statistics
    assert policy["state"]["deter"] == [config[config.backbone].deter]


def test_the_command_never_overwrites(exported, tmp_path):
    from veorl_tf.run.commands import export

    _, config, _ = exported["gaussian"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists; name a new folder"):
        export([str(tmp_path / "run"), str(tmp_path / "mine")])
