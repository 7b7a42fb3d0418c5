"""`python -m veorl_tf`: evaluate and export a finished run, collect, inspect; what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veorl_tf.__main__ import COMMANDS, main
from veorl_tf.core import checkpoint
from veorl_tf.data.episodes import load_episode, scan
from veorl_tf.run.directory import load_weights

ROOT = Path(__file__).parents[2]
DATA = [
    "--configs",
    "metaworld",
    "debug",
    "--task",
    "metaworld_door_close",
    "--env.time_limit",
    "20",
    "--data.collect_episodes",
    "2",
]


@pytest.fixture
def run(trained):
    return trained("dreamerv2")


@pytest.mark.parametrize("argv, code", [([], 2), (["--help"], 0)])
def test_the_list_of_commands(argv, code, capsys):
    assert main(argv) == code
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_lists_every_flag(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code in (0, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m veorl_tf {command}")
    from veorl_tf.run import commands, import_flags, inspecting, table

    keys = {
        "evaluate": commands.EVALUATE,
        "export": commands.EXPORT,
        "table": table.OPTIONS,
        "import": import_flags.IMPORT,
        "inspect": inspecting.INSPECT,
        "collect": ["data.collect_quality", "env.camera"],
    }
    assert all(f"--{key} " in printed for key in keys[command])


def test_unknown_command(refused):
    assert "did you mean evaluate" in refused(main, ["evaluat", "logs"])


def test_the_command_line_starts_without_tensorflow():
    code = (
        "import sys\nfrom veorl_tf.__main__ import main\n"
        "main(['inspect', 'nowhere'])\nsys.exit('tensorflow' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        ).returncode
        == 0
    )


# ----- evaluate ---------------------------------------------------------------------------------


def test_evaluate_repeats_the_runs_own_score(run, capsys):
    """The newest checkpoint, the run's own number of episodes: the very result of training."""
    assert main(["evaluate", str(run.path), "--episodes", "2", "--videos", "1"]) == 0
    out = run.path / "evaluations" / "stage-behavior-seed0-2"
    scores = json.loads((out / "scores.json").read_text())
    result = run.finished()["policy"]
    assert {key: scores[key] for key in result} == result
    assert np.mean(scores["returns"]) == pytest.approx(result["return"])
    assert scores["checkpoint"] == "stage-behavior" and scores["simulator_failures"] == 0
    assert {"revision", "machine", "date"} <= set(scores) and len(scores["successes"]) == 2
    assert sorted(p.name for p in out.iterdir()) == ["episode-0.mp4", "scores.json"]
    printed = capsys.readouterr().out
    assert f"return {result['return']:.1f} +- {result['return_error']:.1f}" in printed
    assert str(out / "scores.json") in printed


def test_evaluate_random(run):
    argv = ["evaluate", str(run.path), "--policy", "random", "--episodes", "10", "--videos", "0"]
    assert main(argv) == 0
    out = run.path / "evaluations" / "random-seed0-10" / "scores.json"
    random = run.finished()["random"]
    scores = json.loads(out.read_text())
    assert {key: scores[key] for key in random} == random


def test_evaluate_records(run, tmp_path, refused):
    """Episodes that can be trained on; the scores are those without recording."""
    out, logdir = tmp_path / "episodes", str(run.path)
    argv = ["evaluate", logdir, "--episodes", "3", "--videos", "1", "--record"]
    assert main([*argv, str(out)]) == 0
    scores = json.loads((run.path / "evaluations/stage-behavior-seed0-3/scores.json").read_text())
    infos, damaged = scan(out)
    assert len(infos) == 3 and not damaged and len(list(out.iterdir())) == 3
    episodes = [load_episode(info.path) for info in infos]
    assert [e["reward"].sum() for e in episodes] == pytest.approx(scores["returns"])
    for episode in episodes:
        assert not episode["action"][0].any() and np.abs(episode["action"][1:]).max() <= 1
        assert episode["action"][1:].any(-1).all() and (episode["discount"] == 1).all()
        assert (episode["image"][1:] != episode["image"][:-1]).any((1, 2, 3)).all()
    assert main(argv[:-1] + ["--goals", "other"]) == 0
    assert (run.path / "evaluations/stage-behavior-seed0-3-other/scores.json").exists()
    assert main(argv[:-1]) == 0
    again = json.loads((run.path / "evaluations/stage-behavior-seed0-3/scores.json").read_text())
    assert again["returns"] == scores["returns"]
    assert "exists; name a new folder" in refused(main, [*argv, out])
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--checkpoint", "best"], ["no checkpoint 'best'", "stage-model", "update-1-000000006"]),
        (["--policy", "greedy"], ["--policy greedy", "agent, random"]),
        (["--episodes", "0"], ["--episodes", "at least 1"]),
        (["--episods", "3"], ["--episods", "did you mean episodes"]),
        (["--configs", "metaworld"], ["--configs means nothing"]),
        (["--videos", "some"], ["--videos", "a whole number"]),
        (["--goals", "all"], ["--goals all", "evaluation, other"]),
        (["--record"], ["--record", "text expected", "nothing"]),
        (["--record", f"{__file__}/x/y"], ["--record", "is a file", "name a new folder"]),
        (["--record", str(ROOT)], ["--record", "exists; name a new folder"]),
    ],
)
def test_evaluate_refuses(run, flags, words, refused):
    line = refused(main, ["evaluate", run.path, *flags])
    assert all(word in line for word in words), line


def test_collect_into_a_file(refused):
    assert "is a file; name a new folder" in refused(main, ["collect", __file__, *DATA])


def test_no_run(tmp_path, refused, tiny_config):
    for command in (["evaluate", tmp_path], ["export", tmp_path, tmp_path / "out"]):
        assert "not a run directory" in refused(main, command)
    assert "LOGDIR is missing; usage" in refused(main, ["evaluate"])
    assert "OUT is missing" in refused(main, ["export", tmp_path])
    (tmp_path / "config.yaml").write_text(tiny_config("carla veorl").to_yaml())
    assert "--task none" in refused(main, ["evaluate", tmp_path])
    assert "no checkpoint yet" in refused(main, ["export", tmp_path, tmp_path / "out"])


# ----- export -----------------------------------------------------------------------------------


def test_export_of_any_checkpoint(run, tmp_path, capsys):
    import tensorflow as tf

    assert main(["export", str(run.path), str(tmp_path / "new")]) == 0
    assert "policy of stage-behavior" in capsys.readouterr().out
    assert (
        main(
            [
                "export",
                str(run.path),
                str(tmp_path / "old"),
                "--checkpoint",
                checkpoint.stage_name("model"),
            ]
        )
        == 0
    )
    same = json.loads((run.policy / "policy.json").read_text())
    assert json.loads((tmp_path / "new" / "policy.json").read_text()) == same
    new, old, own = (
        actor(tf.saved_model.load(str(folder)))
        for folder in (tmp_path / "new", tmp_path / "old", run.policy)
    )
    assert np.array_equal(new, own) and not np.array_equal(new, old)
    stored = load_weights(run.path, "stage-model")[0]["actor/out/kernel"]
    assert np.array_equal(old, stored)


def actor(policy) -> np.ndarray:
    """The last kernel of a loaded policy's actor."""
    return next(v.numpy() for v in policy.agent_variables if "actor/out/kernel" in v.name)


def test_export_refuses(run, tmp_path, refused):
    assert "exists; name a new folder" in refused(main, ["export", run.path, tmp_path])
    line = refused(main, ["export", run.path, tmp_path / "x", "--checkpoint", "best"])
    assert "no checkpoint 'best'" in line and not (tmp_path / "x").exists()


# ----- collect and inspect ----------------------------------------------------------------------


def test_collect_then_inspect(tmp_path, capfd, refused, monkeypatch):
    out = tmp_path / "episodes"
    argv = ["collect", str(out), *DATA, "--data.collect_quality", "random"]
    assert main(argv) == 0
    assert '"name": "metaworld_door_close-random"' in capfd.readouterr().out
    infos, damaged = scan(out)
    assert [info.length for info in infos] == [11, 11] and not damaged
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert main(argv) == 0  # it is there already
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert "another recipe" in refused(main, [*argv, "--data.seed", "1"])

    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(out)]) == 0
    printed = capfd.readouterr().out
    assert "episodes       2" in printed and "22 (20 steps)" in printed
    assert "damaged files  0" in printed and "contact sheet: contact-sheet.png" in printed
    from PIL import Image

    with Image.open("contact-sheet.png") as sheet:
        assert sheet.size == (10 * 66 - 2, 2 * 66 - 2)
    assert main(["inspect", str(out), "--sheet", "deep/sheet.png"]) == 0
    assert Path("deep/sheet.png").exists()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_two_dashes_end_the_flags(command, refused, tmp_path, monkeypatch):
    """What follows is an argument, whatever it begins with."""
    monkeypatch.chdir(tmp_path)
    Path("-runs").mkdir()
    argv, words = {
        "evaluate": (["--episodes", "2", "--", "-runs"], "-runs: not a run directory"),
        "export": (["--", "-runs", "--out"], "-runs: not a run directory"),
        "collect": ([*DATA, "--data.seed", "1", "--", "-x", "-y"], "unexpected argument '-y'"),
        "import": (["--fps", "5", "--", "-none", "-out"], "-none: no such file or folder"),
        "inspect": (["--", "-none"], "-none: no such file or folder"),
        "table": (["--train", "false", "--", "--help"], "unexpected argument '--help'"),
    }[command]
    assert words in refused(main, [command, *argv])


@pytest.mark.parametrize(
    "argv, words",
    [
        (["collect", *DATA], ["OUT is missing"]),
        (["collect", "OUT", "stray", *DATA], ["unexpected argument 'stray'"]),
        (["collect", "OUT", *DATA, "--data.collect_quality", "best"], ["random, medium, expert"]),
        (["collect", "OUT", *DATA, "--task", "none"], ["--task none"]),
        (["collect", "OUT", *DATA, "--task", "metaworld_dor_close"], ["metaworld_door_close"]),
        (["collect", "OUT", "--task", "metaworld_reach"], ["--configs is missing"]),
        (["inspect"], ["SOURCE is missing"]),
        (["inspect", "OUT"], ["OUT: no such file or folder"]),
    ],
)
def test_collect_and_inspect_refuse(argv, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(main, argv)
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())
