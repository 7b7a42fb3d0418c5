"""What `train.py` refuses, each in one line and before anything is written; and its last lines."""

import subprocess
import sys
from pathlib import Path

import pytest

from veorl_tf.run.checking import check
from veorl_tf.run.directory import RunDirectory
from veorl_tf.run.job import dataset_scores, outcome, train, where

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing may be written before the command line is right."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def test_train_without_blocks():
    """A fresh process: one line, exit code 2, and no TensorFlow, which takes seconds to load."""
    code = (
        "import runpy, sys\nsys.argv = ['train.py']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: --configs is missing")
    assert "metaworld" in done.stderr and "veorl" in done.stderr


BASE = ["--configs", "metaworld", "veorl", "debug"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--configs", "metaworl", "veorl"],
            ["unknown block 'metaworl'", "did you mean metaworld"],
        ),
        ([*BASE, "--behavior.horizn", "3"], ["--behavior.horizn", "did you mean behavior.horizon"]),
        ([*BASE, "--horizon", "3"], ["behavior.horizon"]),
        ([*BASE, "--behavior", "3"], ["--behavior is a group", "behavior.gamma"]),
        ([*BASE, "--seed", "one"], ["--seed", "a whole number expected", "'one'"]),
        ([*BASE, "--data.batch", "0.5"], ["--data.batch", "a whole number expected"]),
        ([*BASE, "--compiler", "maybe"], ["--compiler maybe", "auto, graph, xla"]),
        ([*BASE, "--task", "metaworld_door_clos"], ["--task", "metaworld_door_close"]),
        ([*BASE, "--task", "atari_pong"], ["--task", "atari_pong"]),
        ([*BASE, "--env.camera", "corner9"], ["camera", "corner9", "corner2"]),
        ([*BASE, "--env.time_limit", "501"], ["time_limit", "501", "500"]),
        ([*BASE, "--env.image_size", "84"], ["--env.image_size 84", "64"]),
        ([*BASE, "--env.workers", "0"], ["--env.workers 0", "at least 1"]),
        ([*BASE, "--log.final_episodes", "0"], ["--log.final_episodes 0"]),
        ([*BASE, "--stages.model.updates", "-1"], ["--stages.model.updates -1"]),
        ([*BASE, "--behavior.horizon", "1"], ["--behavior.horizon 1", "at least 3"]),
        ([*BASE, "--precision", "float8"], ["--precision float8", "mixed_bfloat16"]),
        ([*BASE, "--agent", "dreamer"], ["--agent dreamer", "dreamerv2, dreamerv3, veorl"]),
        ([*BASE, "--v2.latent", "vector"], ["--v2.latent vector", "gaussian, categorical"]),
        (
            [*BASE, "--behavior.actor", "onehot"],
            ["--behavior.actor onehot", "trunc_normal, normal"],
        ),
        ([*BASE, "--backbone", "v4"], ["--backbone v4", "v2, v3, nature"]),
        ([*BASE, "--optimizer", "sgd"], ["--optimizer sgd", "adam, laprop"]),
        ([*BASE, "--v3.bins", "64"], ["--v3.bins 64", "odd"]),
        ([*BASE, "--nature.deter", "33"], ["--nature.deter 33", "blocks"]),
        ([*BASE, "--nature.blocks", "32"], ["--nature.depth 4", "32 blocks"]),
        ([*BASE, "--model.agc", "-0.1"], ["--model.agc -0.1", "at least 0"]),
        ([*BASE, "--behavior.replay_value", "0.3"], ["replay_value 0.3", "dreamerv3", "veorl"]),
        ([*BASE, "--v3.units", "64"], ["--v3.units", "sizes of v3", "backbone is v2"]),
        (
            ["--configs", "metaworld", "dreamerv3_nature", "size_s"],
            ["--configs size_s", "sizes of v3", "backbone is nature"],
        ),
        ([*BASE, "--v2.classes", "16"], ["--v2.classes", "v2.latent is gaussian", "categorical"]),
        ([*BASE, "--kl.dyn", "1"], ["--kl.dyn", "backbone is v2", "v3 or nature"]),
        ([*BASE, "--action.discrete"], ["--action.discrete", "continuous"]),
        ([*BASE, "--action.size", "7"], ["--action.size 7", "4 numbers"]),
        ([*BASE, "--model.lr", "-1e-4"], ["--model.lr -0.0001", "at least 0"]),
        ([*BASE, "--model.lr", "inf"], ["--model.lr inf", "finite"]),
        ([*BASE, "--model.lr", "nan"], ["--model.lr", "a number expected"]),
        ([*BASE, "--behavior.gamma", "1.1"], ["--behavior.gamma 1.1", "at most 1"]),
        ([*BASE, "--critic.eps", "0"], ["--critic.eps 0.0", "at least 1e-30"]),
        ([*BASE, "--model.agc", "1e-9"], ["--model.agc 1e-09", "at least 1e-06"]),
        ([*BASE, "--stages.model.updates", "1e9"], ["updates 1000000000", "at most 999999999"]),
        ([*BASE, "--data.collect_quality", "foo"], ["--data.collect_quality foo", "expert"]),
        ([*BASE, "--data.seed", "5000"], ["--data.seed 5000", "999"]),
        ([*BASE, "--data.source_clips", "0"], ["--data.source_clips 0"]),
        ([*BASE, "--imports.format", "zzz"], ["--imports.format zzz", "lerobot"]),
        ([*BASE, "--datadir", "~nobody_has_this_name/x"], ["--datadir", "no such user"]),
        ([*BASE, "--seed", "-1"], ["--seed -1", "at least 0"]),
        ([*BASE, "--v3.unimix", "1.0"], ["--v3.unimix 1.0", "less than 1"]),
        ([*BASE, "--behavior.slow_fraction", "0.0"], ["slow_fraction 0.0", "more than 0"]),
        (
            [*BASE, "--target_dataset", "nowhere"],
            ["--target_dataset nowhere", "no such file or folder"],
        ),
        (
            [*BASE, "--source_videos", "nowhere"],
            ["--source_videos nowhere", "no such file or folder"],
        ),
        ([*BASE, "--init_from", "nowhere"], ["nowhere", "not a run directory"]),
        (["--configs", "veorl", "debug"], ["--task none needs --target_dataset"]),
        ([*BASE, "stray"], []),
        (["stray", *BASE], ["unexpected argument 'stray'"]),
        ([*BASE, "--", "--stray"], ["unexpected argument '--stray'"]),
    ],
)
def test_one_line_says_what_is_wrong(argv, words, refused):
    line = refused(train, argv)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("names", ["metaworld veorl", "metaworld dreamerv2 small"])
def test_blocks_with_a_simulator_pass(names, blocks):
    from veorl_tf.core.config import resolve

    check(resolve(blocks, names.split()))


@pytest.mark.parametrize("names", ["carla veorl", "minedojo veorl", "dmc_vision dreamerv2"])
def test_blocks_without_one_need_data(names, blocks, tmp_path_factory):
    from veorl_tf.core.config import resolve

    data = tmp_path_factory.mktemp("logs")
    (data / "episode.npz").touch()
    check(resolve(blocks, names.split(), {"target_dataset": str(data)}))


def test_outcome_and_where(tmp_path_factory):
    scores = {"success": 0.85, "return": 1234.5, "episodes": 20}
    result = {"policy": scores, "random": scores | {"success": 0.0}, "dataset": scores}
    assert outcome(result) == (
        "policy: success 85%, return 1234 (20 episodes); "
        "random: success 0%, return 1234 (20 episodes); "
        "dataset: success 85%, return 1234 (20 episodes)"
    )
    assert outcome({"updates": 18}) == "18 updates; no simulator, so no evaluation"
    run = RunDirectory(tmp_path_factory.mktemp("my logs") / "run")
    assert str(run.policy) in where(run) and f"--logdir '{run.path}'" in where(run)
    assert str(run.videos) not in where(run)
    run.videos.mkdir(parents=True)
    assert f"videos {run.videos}, " in where(run)


def test_scores_of_a_dataset(tmp_path_factory):
    import numpy as np

    from veorl_tf.data.episodes import save_episode
    from veorl_tf.data.store import FrameStore
    from veorl_tf.data.synthetic import random_episode

    folder = tmp_path_factory.mktemp("episodes")
    for seed, (length, wins) in enumerate([(5, True), (9, False), (7, False), (6, True)]):
        episode = random_episode(length, seed)
        episode["reward"] = np.full(length, seed + 1, np.float32)
        episode["success"] = np.zeros(length, np.float32)
        episode["success"][length // 2] = wins
        save_episode(folder, episode)
    store = FrameStore.build_or_open(folder, folder / "stores")
    mean = (5 * 1 + 9 * 2 + 7 * 3 + 6 * 4) / 4
    assert dataset_scores(store) == {"return": mean, "success": 0.5, "episodes": 4}
