"""A run that is stopped again and again ends with the numbers of one that was not."""

import os
import signal

import numpy as np
import pytest

from veorl_tf.agents.stage import Update
from veorl_tf.core import checkpoint, hardware
from veorl_tf.core.errors import Diverged, Interrupted, UserError
from veorl_tf.core.metrics import read_metrics
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.synthetic import random_episode
from veorl_tf.run import offline
from veorl_tf.run.datasets import open_store
from veorl_tf.run.directory import RunDirectory, load_config, load_weights, open_run
from veorl_tf.run.job import run

NAMES = ("veorl", "debug")


@pytest.fixture(scope="module")
def configured(random_data, tiny_config):
    """`configured(logdir)`: five updates a stage, everything logged, no simulator."""
    base = random_data | {
        "stages.(abstraction|model|behavior).updates": 5,
        "log.every": 1,
        "log.validation_every": 2,
        "log.video_every": 5,
        "log.checkpoint_every": 3,
    }
    return lambda logdir, agent="veorl", **more: tiny_config(
        agent, base | {"logdir": str(logdir)} | more
    )


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(3)`: SIGTERM (or another signal) in the midst of the third update from now on; None:
    never."""
    call, state = Update.__call__, {"left": None}

    def counted(self, batches, index, count=1):
        if state["left"] is not None:
            state["left"] -= 1
            if state["left"] == 0:
                os.kill(os.getpid(), state["number"])
        return call(self, batches, index, count)

    monkeypatch.setattr(Update, "__call__", counted)
    return lambda count, number=signal.SIGTERM: state.update(left=count, number=number)


@pytest.fixture(scope="module")
def undisturbed(configured, tmp_path_factory) -> RunDirectory:
    config = configured(tmp_path_factory.mktemp("logs") / "whole")
    directory = open_run(config, NAMES)
    run(config, directory, strict=True)
    return directory


def lines(directory: RunDirectory) -> list[dict]:
    """Metrics, without what a clock measured."""
    return [
        {k: v for k, v in line.items() if not k.startswith("time/")}
        for line in read_metrics(directory.path / "metrics.jsonl")
    ]


def weights(directory: RunDirectory, stage: str) -> dict[str, bytes]:
    arrays = load_weights(directory.path, checkpoint.stage_name(stage))[0]
    return {path: array.tobytes() for path, array in arrays.items()}


def test_stopped_in_every_stage(undisturbed, configured, tmp_path, stop_at, capfd):
    """In the midst of each stage, and at the last update of one, where nothing of it is left."""
    config = configured(tmp_path / "run")
    # Updates into this start, stage index and update at which it must have been saved.
    stops = [(2, 0, 2), (5, 1, 2), (3, 1, 5), (4, 2, 4)]
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM]
    for (count, stage, update), number in zip(stops, numbers, strict=True):
        stop_at(count, number)
        with pytest.raises(Interrupted) as caught:
            run(config, open_run(config, NAMES), strict=True)
        assert caught.value.exit_code == 128 + number
        directory = open_run(config, NAMES)
        assert directory.finished() is None
        assert checkpoint.latest(directory.checkpoints) == checkpoint.update_name(stage, update)
        assert f"saved at update {update}" in capfd.readouterr().err
    stop_at(None)
    result = run(config, open_run(config, NAMES), strict=True)
    assert "continuing" in capfd.readouterr().out
    assert result["updates"] == 15 and "policy" not in result
    for stage in ("abstraction", "model", "behavior"):
        expected = weights(undisturbed, stage)
        assert weights(directory, stage) == expected
        assert any(path.startswith("optimizer/") for path in expected)
    assert lines(directory) == lines(undisturbed)
    assert len(lines(directory)) == 15 + 3 * 3  # updates, validations at 2, 4, 5
    assert result["training_seconds"] >= 1


def test_stopped_before_there_is_anything_to_save(configured, tmp_path, stop_at):
    """While the first update is compiled a signal need not wait for it."""
    config = configured(tmp_path / "run")
    stop_at(1)
    with pytest.raises(Interrupted):
        run(config, open_run(config, NAMES), strict=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_several_updates_per_call(undisturbed, configured, tmp_path, monkeypatch):
    """On an accelerator: a loop in the program, and frames that stay on the device."""
    monkeypatch.setattr(hardware, "accelerated", lambda: True)
    counts, call = [], Update.__call__

    def counted(self, batches, index, count=1):
        assert all("image" not in batch for batch in batches.values())
        counts.append(count)
        return call(self, batches, index, count)

    pace = offline.Pace  # does not begin with single updates
    monkeypatch.setattr(Update, "__call__", counted)
    monkeypatch.setattr(offline, "Pace", lambda most, fixed: pace(most, fixed=True))
    options = {"log.every": 4, "log.validation_every": 0, "log.video_every": 0}
    options |= {"log.checkpoint_every": 0}
    config = configured(tmp_path / "run", updates_per_call=3, **options)
    run(config, open_run(config, NAMES), strict=True)
    assert counts == [3, 1, 1] * 3, "a call ends where something is logged"
    directory = open_run(config, NAMES)
    for stage in ("abstraction", "model", "behavior"):
        assert weights(directory, stage) == weights(undisturbed, stage)
    known = {line["step"]: line for line in lines(undisturbed) if "loss/total" in line}
    for line in lines(directory):
        assert line == known[line["step"]]


def test_without_a_simulator(undisturbed):
    """Validation losses and videos instead of an evaluation, and a policy all the same."""
    names = {name for line in lines(undisturbed) for name in line}
    assert {"validation/loss/image", "validation/loss/critic"} <= names
    assert not [name for name in names if name.startswith("evaluation")]
    assert (undisturbed.policy / "policy.json").exists() and not undisturbed.videos.exists()


def test_a_damaged_checkpoint_costs_only_its_updates(
    undisturbed, configured, tmp_path, stop_at, capfd
):
    config = configured(tmp_path / "run", "dreamerv2", **{"log.video_every": 0})
    stop_at(4)
    with pytest.raises(Interrupted):
        run(config, open_run(config, NAMES), strict=True)
    directory = open_run(config, NAMES)
    assert checkpoint.names(directory.checkpoints) == ["update-0-000000003", "update-0-000000004"]
    newest = directory.checkpoints / "update-0-000000004.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    stop_at(2)
    with pytest.raises(Interrupted):
        run(config, directory, strict=True)
    assert "passed over" in capfd.readouterr().err
    assert [line["step"] for line in lines(directory)] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert checkpoint.latest(directory.checkpoints) == "update-0-000000005"


def test_init_from(undisturbed, configured, tmp_path, stop_at):
    """Weights come from the other run; training begins at its beginning."""
    config = configured(
        tmp_path / "run",
        init_from=str(undisturbed.path),
        **{"stages.(abstraction|model).updates": 0, "actor.lr": 0.0},
    )
    stop_at(2)
    with pytest.raises(Interrupted):
        run(config, open_run(config, NAMES), strict=True)
    arrays, manifest, name = load_weights(tmp_path / "run")
    assert name == "update-2-000000002" and manifest["begun"] == ["behavior"]
    before, after = weights(undisturbed, "behavior"), {k: v.tobytes() for k, v in arrays.items()}
    same = [k for k in before if k.startswith(("trunk/", "encoder/", "actor/", "ban/"))]
    assert same and all(before[k] == after[k] for k in same)
    assert after["critic/out/kernel"] != before["critic/out/kernel"]
    other = configured(tmp_path / "other", init_from=str(undisturbed.path), **{"v2.deter": 17})
    with pytest.raises(UserError, match=r"trunk/.* the configuration wants"):
        run(other, open_run(other, NAMES))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data.length": 12}, "13 are needed"),
        ({"data.source_length": 9}, "10 are needed"),
        ({"data.long_length": 12}, "13 are needed"),  # of the second stage: found before the first
    ],
)
def test_episodes_too_short(configured, tmp_path, change, words):
    config = configured(tmp_path / "run", **change)
    with pytest.raises(UserError, match=words):
        run(config, open_run(config, NAMES))


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"data.length": 40}, "windows of 40 frames need .* metaworld_door_close-medium have 6"),
        ({"data.source_length": 60}, "windows of 60 frames need .* those of fetch-clips have 9"),
    ],
)
def test_episodes_that_would_be_too_short_are_not_made(configured, tmp_path, flags, words):
    made = {"task": "metaworld_door_close", "target_dataset": "", "source_videos": ""}
    made |= {"datadir": str(tmp_path / "data"), "env.time_limit": 10, "data.source_frames": 9}
    config = configured(tmp_path / "run", **made, **flags)
    with pytest.raises(UserError, match=words):
        run(config, open_run(config, NAMES))
    assert not (tmp_path / "data").exists()


def test_an_extended_run_is_a_longer_one(configured, tmp_path):
    """Also when a signal came at the last update, before the end of the stage was kept."""
    budgets = {"stages.model.updates": 3, "stages.behavior.updates": 3, "log.video_every": 0}
    longer = budgets | {"stages.behavior.updates": 5}
    whole, once = (configured(tmp_path / n, "dreamerv2", **longer) for n in ("whole", "run"))
    run(whole, open_run(whole, NAMES), strict=True)
    short = configured(tmp_path / "run", "dreamerv2", **budgets)
    assert run(short, open_run(short, NAMES), strict=True)["updates"] == 6
    directory = open_run(once, NAMES)
    assert directory.finished() is None
    assert run(once, directory, strict=True)["updates"] == 8
    assert weights(directory, "behavior") == weights(RunDirectory(tmp_path / "whole"), "behavior")
    assert load_config(directory.path) == once


def test_a_damaged_end_of_a_stage_is_saved_again(configured, tmp_path):
    budgets = {"stages.model.updates": 3, "stages.behavior.updates": 0, "log.video_every": 0}
    config = configured(tmp_path / "run", "dreamerv2", **budgets)
    directory = open_run(config, NAMES)
    run(config, directory, strict=True)
    expected = weights(directory, "model")
    directory.result.unlink()
    end = directory.checkpoints / "stage-model.json"
    end.write_text(end.read_text()[:-20])
    run(config, open_run(config, NAMES), strict=True)
    assert weights(directory, "model") == expected


def test_forced_changes_that_do_not_fit_spoil_nothing(configured, tmp_path, stop_at):
    config = configured(tmp_path / "run", "dreamerv2")
    stop_at(2)
    with pytest.raises(Interrupted):
        run(config, open_run(config, NAMES), strict=True)
    stop_at(None)
    for agent, change in (("dreamerv2", {"v2.deter": 17}), ("dreamerv3", {})):
        other = configured(tmp_path / "run", agent, force=True, **change)
        with pytest.raises(UserError, match="the configuration wants|the stages are|are missing"):
            run(other, open_run(other, NAMES), strict=True)
        assert load_config(tmp_path / "run") == config


def test_a_learning_rate_that_spoils_the_weights(configured, tmp_path, faults):
    """The first step makes numbers that no later loss can use: the run stops and says which."""
    flags = {"model.lr": 1e30, "max_skipped": 3, "stages.abstraction.updates": 50}
    config = configured(tmp_path / "run", **flags)
    with pytest.raises(Diverged) as caught:
        run(config, open_run(config, NAMES))
    line = str(caught.value)
    assert "3 updates in a row were skipped by update 4 of stage abstraction" in line
    assert "first loss/" in line and "were not finite" in line
    assert "the newest checkpoint is update-0-000000003" in line
    arrays, _, _ = load_weights(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in arrays.values())
    faults.append(("numbers", "a learning rate of 1e30", "stopped, the weights are finite"))


def test_frames_of_another_size_are_resized(configured, tmp_path):
    save_episode(tmp_path / "small", random_episode(12, image_size=32))
    flags = {"target_dataset": str(tmp_path / "small"), "imports.shortest": 5}
    store = open_store(configured(tmp_path / "run", **flags), "target")
    assert store.image_shape == (64, 64, 3) and len(store) == 12


def test_actions_come_from_the_data(configured, tmp_path, stop_at):
    """A robot log with seven numbers per action trains without a flag that says so."""
    for i in range(4):
        save_episode(tmp_path / "robot", random_episode(12, seed=i, action_size=7))
    config = configured(
        tmp_path / "run",
        "dreamerv2",
        target_dataset=str(tmp_path / "robot"),
        **{"log.video_every": 0, "log.validation_every": 0},
    )
    stop_at(2)
    with pytest.raises(Interrupted):
        run(config, open_run(config, NAMES), strict=True)
    arrays, manifest, _ = load_weights(tmp_path / "run")
    assert manifest["action"] == {"size": 7, "discrete": False}
    assert arrays["actor/out/bias"].shape == (2 * 7,)
    # A checkpoint knows its actions: no data is needed to load the agent.
    from veorl_tf.run.commands import load_agent

    agent, _, _ = load_agent(tmp_path / "run", config)
    assert agent.action_space.size == 7
    assert np.array_equal(agent.weights()["actor/out/bias"].numpy(), arrays["actor/out/bias"])


@pytest.mark.parametrize("agent", ["dreamerv3", "dreamerv3_nature"])
def test_what_dreamerv3_keeps_besides_weights(agent, configured, tmp_path, stop_at):
    """The running range of returns, the slow critic and its optimiser's moments survive a stop."""
    ends = []
    for name, stop in (("whole", None), ("stopped", 3)):
        config = configured(
            tmp_path / name, agent, **{"stages.joint.updates": 5, "log.video_every": 0}
        )
        stop_at(stop)
        if stop:
            with pytest.raises(Interrupted):
                run(config, open_run(config, NAMES), strict=True)
            stop_at(None)
        directory = open_run(config, NAMES)
        run(config, directory, strict=True)
        ends.append(load_weights(directory.path)[0])
    whole, stopped = ends
    assert whole.keys() == stopped.keys()
    kept = ("return_scale/range", "slow_critic/", "optimizer/joint/actor/v/")
    assert all(any(path.startswith(part) for path in whole) for part in kept)
    assert np.abs(whole["return_scale/range"]).max() > 0
    for path, array in whole.items():
        np.testing.assert_array_equal(stopped[path], array, err_msg=path)
