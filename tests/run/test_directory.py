"""A run's directory: new, continued, refused."""

import json
import re

import numpy as np
import pytest

from veorl_tf.core import checkpoint
from veorl_tf.core.errors import UserError
from veorl_tf.core.files import host
from veorl_tf.run.directory import (
    RunDirectory,
    accept,
    default_name,
    load_config,
    load_weights,
    open_run,
    owned,
    provenance,
)

NAMES = ("metaworld", "veorl", "debug")


@pytest.fixture
def config(tiny_config, tmp_path):
    """`config(overrides={})`: a configuration whose run directory is `tmp_path / "run"`."""
    base = {"logdir": str(tmp_path / "run"), "task": "metaworld_door_close"}
    return lambda **overrides: tiny_config("metaworld veorl", base | overrides)


def learn(
    run: RunDirectory,
    name: str = "update-0-000000004",
    value: float = 1.0,
    begun: tuple[str, ...] = ("abstraction",),
) -> None:
    manifest = {"update": 4, "begun": list(begun), "stage_name": begun[-1]}
    checkpoint.save(run.checkpoints, name, {"w": np.full(2, value, np.float32)}, manifest)


def test_a_new_run_keeps_what_it_was_started_with(config, tmp_path):
    run = open_run(config(), NAMES)
    assert run.path == tmp_path / "run" and run.finished() is None and not run.started
    assert load_config(run.path) == config()
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["configs"] == list(NAMES)
    assert versions["packages"]["tensorflow"].startswith("2.")
    assert versions["revision"] == provenance()["revision"]
    assert versions["date"] == provenance()["date"]
    assert re.match(r"(1 core|\d+ cores) of \w+", versions["machine"])


def test_default_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(config(logdir="", seed=3), NAMES)
    name = "metaworld-veorl-debug-metaworld_door_close-3"
    assert default_name(config(seed=3), NAMES) == name
    assert run.path.resolve() == tmp_path / "logs" / name


def test_the_same_configuration_continues(config):
    first = open_run(config(), NAMES)
    learn(first)
    assert first.started
    # What is written, where and how often may change; what is learnt may not.
    again = open_run(config(**{"log.every": 7, "env.workers": 1, "datadir": "x"}), NAMES)
    assert again == first and load_config(again.path)["log.every"] == config()["log.every"]


def test_another_configuration_is_refused_and_named(config, tmp_path):
    learn(open_run(config(), NAMES))
    changes = {"behavior.gamma": 0.5, "v2.deter": 17}
    with pytest.raises(UserError) as caught:
        open_run(config(**changes), NAMES)
    message = str(caught.value)
    assert "behavior.gamma 0.99 -> 0.5" in message and "v2.deter 16 -> 17" in message
    assert str(tmp_path / "run") in message and "--fresh" in message and "more" not in message
    changes |= {"v2.units": 9, "seed": 1, "data.batch": 2, "kl.free": 2.0}
    with pytest.raises(UserError, match="and 2 more"):
        open_run(config(**changes), NAMES)


def test_force_goes_on_with_another_configuration(config, capsys):
    run = open_run(config(), NAMES)
    learn(run)
    with pytest.raises(UserError, match="--force goes on with the new one"):
        open_run(config(**{"model.lr": 1e-5}), NAMES)
    forced = config(**{"model.lr": 1e-5}, force=True)
    open_run(forced, NAMES)
    assert "goes on with another configuration: model.lr" in capsys.readouterr().err
    assert load_config(run.path) == config(), "it has not proved to work yet"
    accept(run, forced)
    assert load_config(run.path)["model.lr"] == 1e-5
    open_run(config(**{"model.lr": 1e-5}), NAMES)  # which it has from now on


@pytest.mark.parametrize(
    "key, begun, taken",
    [
        ("abstraction", ("abstraction",), True),
        ("behavior", ("abstraction",), True),
        ("abstraction", ("model",), False),  # it was left out, and stays so
        ("abstraction", ("abstraction", "model"), False),  # what followed it saw fewer updates
        ("behavior", ("abstraction", "model", "behavior"), True),
    ],
)
def test_a_budget_may_grow(config, key, begun, taken):
    run = open_run(config(), NAMES)
    learn(run, begun=begun)
    run.result.write_text("{}")
    flag = f"stages.{key}.updates"
    if not taken:
        with pytest.raises(UserError, match=f"{flag} 6 -> 9"):
            open_run(config(**{flag: 9}), NAMES)
        return
    assert open_run(config(**{flag: 9}), NAMES).finished() is None
    accept(run, config(**{flag: 9}))
    assert load_config(run.path)[flag] == 9
    with pytest.raises(UserError, match=f"{flag} 9 -> 5"):
        open_run(config(**{flag: 5}), NAMES)


def test_other_versions_are_said(config, capsys):
    """A run may go on with them, and its numbers are not those of an unbroken one."""
    run = open_run(config(), NAMES)
    learn(run)
    open_run(config(), NAMES)
    assert capsys.readouterr().err == ""
    begun = json.loads(run.versions.read_text())
    now = begun["packages"]["tensorflow"], begun["packages"]["keras"], begun["python"]
    begun["packages"] |= {"tensorflow": "2.1.0", "keras": None}
    run.versions.write_text(json.dumps(begun | {"python": "3.1", "revision": "0123456789ab"}))
    open_run(config(), NAMES)
    line = capsys.readouterr().err
    assert line.startswith(f"warning: {run.path} goes on with other versions") and "\n" == line[-1]
    for change in (
        f"revision 0123456789ab -> {provenance()['revision']}",
        f"python 3.1 -> {now[2]}",
        f"tensorflow 2.1.0 -> {now[0]}",
        f"keras None -> {now[1]}",
    ):
        assert change in line
    assert line.count("->") == 4
    for content in ("", "[]", "{}"):
        run.versions.write_text(content)
        open_run(config(), NAMES)
        assert "versions.json: damaged or missing" in capsys.readouterr().err
    run.result.write_text('{"updates": 18}')  # nothing goes on
    open_run(config(), NAMES)
    assert capsys.readouterr().err == ""


def test_a_hooks_repository_is_not_ours(monkeypatch, tmp_path):
    revision = provenance()["revision"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert provenance()["revision"] == revision


def test_a_run_without_a_checkpoint_takes_mended_flags(config):
    open_run(config(target_dataset="typo"), NAMES)
    run = open_run(config(target_dataset="right"), NAMES)
    assert load_config(run.path).target_dataset == "right"


def test_a_finished_run_keeps_its_configuration(config):
    run = open_run(config(), NAMES)
    run.result.write_text('{"updates": 18}')
    assert run.finished() == {"updates": 18}
    for force in (False, True):
        with pytest.raises(UserError, match="seed 0 -> 1"):
            open_run(config(seed=1, force=force), NAMES)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '"updates"'])
def test_a_damaged_result_is_none(config, content, capsys):
    run = open_run(config(), NAMES)
    run.result.write_text(content)
    assert run.finished() is None
    assert "result.json: damaged" in capsys.readouterr().err


def test_a_configuration_that_is_no_text(config):
    run = open_run(config(), NAMES)
    learn(run)
    run.config.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="config.yaml: no text"):
        open_run(config(), NAMES)
    run.config.write_text("stages: {model: {updates: six}}")
    with pytest.raises(UserError, match="was started with another configuration"):
        open_run(config(), NAMES)


def test_killed_while_it_was_made(config, tmp_path):
    """Whatever came to be of a new directory, the same command takes it up."""
    (tmp_path / "run").mkdir()
    name = f".config.yaml.{host()}-999999999-0123abcd.tmp"
    (tmp_path / "run" / name).write_text("agent: ve")
    with owned(RunDirectory(tmp_path / "run")):
        run = open_run(config(), NAMES)
    assert load_config(run.path) == config()
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml",
        "versions.json",
        "run.lock",
    }


def test_no_such_user(config):
    with pytest.raises(UserError, match="--logdir ~nobody_has_this_name/x: no such user"):
        open_run(config(logdir="~nobody_has_this_name/x"), NAMES)


def test_other_peoples_folders_are_left_alone(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert open_run(config(), NAMES).config.exists()  # an empty one may be used
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        open_run(config(logdir=str(tmp_path / "thesis")), NAMES)
    with pytest.raises(UserError, match="a file; name a folder"):
        open_run(config(logdir=str(tmp_path / "thesis" / "thesis.tex")), NAMES)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_fresh_takes_the_next_number(config):
    names = [open_run(config(fresh=True), NAMES).path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_weights_by_name_and_the_newest(config):
    run = open_run(config(), NAMES)
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_weights(run.path)
    learn(run, "update-0-000000004", 1.0)
    learn(run, "stage-abstraction", 2.0)
    arrays, manifest, name = load_weights(run.path)
    assert name == "stage-abstraction" and arrays["w"].tolist() == [2, 2]
    assert manifest["update"] == 4
    assert load_weights(run.path, "update-0-000000004")[0]["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="'last'; there are: update-0-000000004, stage-abstraction"):
        load_weights(run.path, "last")


def test_no_run_directory(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        load_config(tmp_path)
