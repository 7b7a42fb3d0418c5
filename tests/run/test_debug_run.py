"""`--configs metaworld ALGORITHM debug`: whole runs on real Meta-World episodes."""

import json
import math
import os
import signal

import numpy as np
import pytest

from veorl_tf.core import checkpoint
from veorl_tf.core.errors import Interrupted
from veorl_tf.core.metrics import describe, read_metrics
from veorl_tf.run import job
from veorl_tf.run.directory import load_weights, open_run
from veorl_tf.run.evaluate import FIRST_GOAL, TRAINING_GOAL, Evaluator

STAGES = {
    "veorl": ["abstraction", "model", "behavior"],
    "dreamerv2": ["model", "behavior"],
    "dreamerv3": ["joint"],
    "dreamerv3_nature": ["joint"],
    "veorl_dv3": ["abstraction", "model", "behavior"],
}
ALGORITHM = {
    "veorl_dv3": "veorl",
    "dreamerv3_nature": "dreamerv3",
}  # where it has another name than the block
UPDATES = 6  # of every stage of `debug`

agents = pytest.mark.parametrize("agent", list(STAGES))


@agents
def test_result(agent, trained):
    run = trained(agent)
    result = run.finished()
    assert result["task"] == "metaworld_door_close" and result["agent"] == ALGORITHM.get(
        agent, agent
    )
    assert result["updates"] == UPDATES * len(STAGES[agent]) and result["training_seconds"] > 0
    for name, episodes in (("policy", 2), ("random", 10), ("dataset", 8)):
        scores = result[name]
        assert scores["episodes"] == episodes and 0 <= scores["success"] <= 1
        assert math.isfinite(scores["return"]) and scores["return"] > 0
    assert result["policy"]["length"] == result["random"]["length"] == 30
    assert {"revision", "packages", "machine", "date"} <= set(result)
    assert json.loads((run.path / "versions.json").read_text())["configs"][-1] == "debug"


def test_the_comparison_is_fair(trained):
    """Random acts on the same goals for all algorithms, and all saw the same data."""
    first, *others = (trained(agent).finished() for agent in STAGES)
    for other in others:
        assert first["random"] == other["random"] and first["dataset"] == other["dataset"]
        assert first["policy"] != other["policy"]


@agents
def test_videos(agent, trained):
    import av

    run = trained(agent)
    paths = sorted(run.videos.iterdir())
    assert [p.name for p in paths] == ["episode-0.mp4", "episode-1.mp4"]
    with av.open(str(paths[0])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 31 and frames[0].shape == (256, 256, 3) and frames[0].std() > 10


@agents
def test_policy_says_what_it_expects(agent, trained):
    run = trained(agent)
    assert (run.policy / "saved_model.pb").exists()
    policy = json.loads((run.policy / "policy.json").read_text())
    assert policy["task"] == "metaworld_door_close" and policy["action_repeat"] == 2
    assert policy["image"]["camera"] == "corner" and policy["image"]["view"] == "rows"
    bounds = policy["action"]["data_bounds"]
    assert all(-1 <= low < high <= 1 for low, high in zip(bounds["low"], bounds["high"]))
    assert len(bounds["low"]) == policy["action"]["size"] == 4


@agents
def test_every_metric_is_described_and_finite(agent, trained):
    lines = read_metrics(trained(agent).path / "metrics.jsonl")
    names = {name for line in lines for name in line} - {"step", "stage"}
    assert not [name for name in names if describe(name) is None]
    assert not [(line["step"], k) for line in lines for k, v in line.items() if v is None]
    assert {
        "loss/image",
        "loss/actor",
        "return",
        "validation/loss/total",
        "evaluation/success",
        "time/updates_per_second",
        "time/data",
        "time/update",
        "time/total",
    } <= names
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == UPDATES * len(STAGES[agent])


@agents
def test_lines_come_when_they_are_due(agent, trained):
    lines = read_metrics(trained(agent).path / "metrics.jsonl")
    for i, stage in enumerate(STAGES[agent]):

        def due(name, stage=stage, first=i * UPDATES):
            return [
                line["step"] - first for line in lines if line["stage"] == stage and name in line
            ]

        assert due("loss/total") == [2, 4, 6]
        assert due("validation/loss/total") == [4, 6]
        assert due("evaluation/return") == ([5] if stage == STAGES[agent][-1] else [])
        assert due("evaluation/final_return") == ([6] if stage == STAGES[agent][-1] else [])


@agents
def test_tensorboard(agent, trained):
    """Scalars, and open-loop videos whose frames are truth, prediction and error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained(agent).path), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    trunk = [stage for stage in STAGES[agent] if stage != "abstraction"]
    expected = {f"{stage}/open_loop/trunk" for stage in trunk}
    expected |= {"evaluation/episode"}
    if "abstraction" in STAGES[agent]:
        expected |= {f"{stage}/open_loop/plan" for stage in ("abstraction", "model")}
        expected |= {f"{stage}/codebook" for stage in STAGES[agent]}
    assert set(tags["images"]) == expected
    assert {"loss/total", "evaluation/success", "validation/loss/image"} <= set(tags["scalars"])
    shown = events.Images(f"{trunk[0]}/open_loop/trunk")
    first = UPDATES * STAGES[agent].index(trunk[0])
    assert [image.step - first for image in shown] == [5, 6]
    frames = gif(shown[-1].encoded_image_string)
    assert frames.shape == (10, 3 * 64, 4 * 64, 3)
    truth, error = frames[:, :64], frames[:, 128:]
    assert truth.std() > 10 and error.std() > 1 and abs(float(error.mean()) - 128) < 64
    assert frames.dtype == np.uint8


def gif(data: bytes) -> np.ndarray:
    import io

    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(data)) as image:
        return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)])


@agents
def test_checkpoints_that_are_kept(agent, trained):
    run = trained(agent)
    last = len(STAGES[agent]) - 1
    ends = [checkpoint.stage_name(stage) for stage in STAGES[agent]]
    names = checkpoint.names(run.checkpoints)
    assert set(names) == {*ends, checkpoint.update_name(last, 4), checkpoint.update_name(last, 6)}
    assert names[-1] == ends[-1] and len(list(run.checkpoints.iterdir())) == 2 * len(names)
    _, manifest, _ = load_weights(run.path)
    assert manifest["step"] == UPDATES * len(STAGES[agent]) and manifest["begun"] == STAGES[agent]


@pytest.mark.parametrize("agent", [agent for agent in STAGES if len(STAGES[agent]) > 1])
def test_each_stage_leaves_the_others_nets_alone(agent, trained):
    run = trained(agent)
    ends = {
        stage: load_weights(run.path, checkpoint.stage_name(stage))[0] for stage in STAGES[agent]
    }
    learnt = {"actor", "critic", "slow_critic"}
    learnt |= {"return_scale"} if agent == "veorl_dv3" else set()
    assert changed(ends["model"], ends["behavior"]) == learnt
    if "abstraction" in STAGES[agent]:
        # What KL losses below the free nats train may stand still this early.
        moved = changed(ends["abstraction"], ends["model"])
        assert moved >= {"encoder", "trunk", "image", "image_latent", "reward", "bc"}
        assert not moved & {"encoder_ban", "ban", "actor", "critic", "slow_critic"}


def changed(before: dict, after: dict) -> set[str]:
    """Names of the nets in which some weight differs."""
    weights = [
        path for path in after if not path.startswith(("optimizer/", "loss_scale/", "skips/"))
    ]
    return {path.split("/")[0] for path in weights if not np.array_equal(before[path], after[path])}


@agents
def test_the_same_command_again(agent, trained, arguments, capfd, monkeypatch):
    run = trained(agent)
    times = lambda: {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p != run.lock}
    before = times()
    monkeypatch.setattr(job, "run", None)
    assert job.train(arguments(agent)) == 0
    printed = capfd.readouterr().out
    assert f"{run.path}: this run is finished. policy: success" in printed
    assert times() == before


def test_other_flags_are_refused(trained, arguments, refused):
    trained("dreamerv2")
    line = refused(job.train, [*arguments("dreamerv2"), "--behavior.gamma", "0.9"])
    assert "behavior.gamma 0.99 -> 0.9" in line


def test_an_evaluation_that_was_cut_short_is_made_up_for(
    trained, datadir, tiny_config, tmp_path, monkeypatch
):
    trained("dreamerv2")
    (data,) = (datadir / "episodes").glob("metaworld_door_close-*")
    config = tiny_config(
        "metaworld dreamerv2",
        {
            "task": "metaworld_door_close",
            "target_dataset": str(data),
            "datadir": str(datadir),
            "logdir": str(tmp_path / "run"),
            "env.time_limit": 20,
            "stages.model.updates": 0,
            "stages.behavior.updates": 3,
            "log.every": 1,
            "log.validation_every": 0,
            "log.video_every": 0,
            "log.eval_every": 2,
            "log.final_episodes": 1,
        },
    )
    evaluate, goals = Evaluator.run, []

    def interrupted(*args, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **more)

    def watched(*args, first_goal=FIRST_GOAL):
        goals.append(first_goal)
        return evaluate(*args, first_goal=first_goal)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", interrupted)
        for _ in range(2):  # once where it is due, once where it is made up for
            with pytest.raises(Interrupted):
                job.run(config, open_run(config, ["x"]), strict=True)
            assert checkpoint.names(tmp_path / "run" / "checkpoints") == ["update-1-000000002"]
    monkeypatch.setattr(Evaluator, "run", watched)
    result = job.run(config, open_run(config, ["x"]), strict=True)
    assert goals == [TRAINING_GOAL, FIRST_GOAL, FIRST_GOAL], "the last ones have goals of their own"
    steps = [
        (line["step"], "evaluation/return" in line)
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
    ]
    assert steps == [(1, False), (2, False), (2, True), (3, False), (3, False)]  # the final one
    assert result["policy"]["episodes"] == 1 and result["random"]["episodes"] == 5


@pytest.mark.slow
def test_a_debug_run_takes_less_than_a_minute(trained, arguments):
    """Once its data is there. Counted in seconds of processors, the simulators' included, since
    other jobs stretch those of the clock; a quiet machine needs no more of these than of those."""
    trained("veorl")
    before = os.times()
    assert job.train([*arguments("veorl"), "--fresh"]) == 0
    assert sum(os.times()[:4]) - sum(before[:4]) < 60
