"""A folder of episodes means the same to training where it lies and imported."""

import json
import os

import numpy as np
import pytest

from veorl_tf.__main__ import main
from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import Options
from veorl_tf.data.store import FrameStore
from veorl_tf.run import datasets
from veorl_tf.run.importing import import_source

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
ROWS = np.arange(30)


def arrays(seed: int = 0, actions: int = 2, length: int = 30) -> dict[str, np.ndarray]:
    """An episode of 64x64 pictures."""
    rng = np.random.default_rng(seed)
    begun = np.arange(length) > 0
    return {
        "image": rng.integers(0, 256, (length, 64, 64, 3), np.uint8),
        "action": (begun[:, None] * rng.uniform(-1, 1, (length, actions))).astype(np.float32),
        "reward": (begun * rng.uniform(size=length)).astype(np.float32),
    }


def grey(seed: int) -> np.ndarray:
    return arrays(seed)["image"][..., :1]


CHANGES = {  # what is different in each of three episodes
    "nothing": [{}, {}, {}],
    "copies": [arrays(50)] * 3,
    "is_terminal": [{"is_terminal": ROWS == i} for i in (29, 12, 40)],
    "discount": [{"discount": np.where(ROWS == 29, i, 0.9)} for i in (0, 0.0, 0.5)],
    "both": [{"discount": ROWS < 29, "is_terminal": ROWS < 0}] * 3,
    "rows_of_one": [{"reward": np.float32(ROWS > 0)[:, None], "is_terminal": (ROWS == 29)[:, None]}]
    * 3,
    "grey": [{"image": grey(0)}, {"image": grey(1)[..., 0]}, {"image": grey(2)}],
    "channels_first": [{"image": np.moveaxis(grey(i), -1, 1)} for i in range(3)],
    "not_finite": [{}, {"reward": np.where(ROWS == 3, np.nan, 0)}, {}],
    "other_action": [{}, {"action": arrays(1, 3)["action"]}, {}],
    "ends_short": [{"is_terminal": ROWS[1:] > 0}, {}, {}],
    "uncertain": [{"is_terminal": np.where(ROWS == 29, i, 0)} for i in (0.5, np.nan, -1)],
    "nonsense": [{"image": np.zeros((30, 64, 64, 4), np.uint8)}, {"action": ROWS}, {}],
}
LEFT_OUT = {
    "not_finite-1": "reward holds a number that is not finite, in row 3",
    "other_action-1": "its actions have 3 numbers, those of most have 2",
    "ends_short-0": "is_terminal is [29]; [30] expected for 30 frames",
    "uncertain-1": "is_terminal holds a number that is not finite, in row 29",
    "nonsense-0": "image is uint8 [30, 64, 64, 4]; uint8 [n, H, W, 3], or grey, expected",
    "nonsense-1": "action is [30]; [30, A] expected for 30 frames",
    "lfs": "a Git LFS pointer: fetch the file with `git lfs pull`",
}
ENDS = {"is_terminal": ([29], [12], []), "discount": ([29], [29], []), "uncertain": ([29], [], [])}
ENDS |= dict.fromkeys(("both", "rows_of_one"), ([29], [29], [29]))


def test_the_same_in_place_and_imported(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for seed, (kind, changes) in enumerate(CHANGES.items()):
        for i, change in enumerate(changes):
            np.savez(source / f"{kind}-{i}.npz", **{**arrays(3 * seed + i), **change})
    (source / "lfs.npz").write_bytes(POINTER)
    (source / ".hidden.npz").write_bytes(b"")
    assert datasets.is_ready(source)
    told = import_source(source, tmp_path / "out", Options(), workers=2).skipped
    here, imported = (
        FrameStore.build_or_open(place, tmp_path / "cache") for place in (source, tmp_path / "out")
    )
    assert [name.split(".")[0] for name in imported.episodes.names] == [
        name.split(".")[0] for name in here.episodes.names
    ]
    for key in here.arrays:
        np.testing.assert_array_equal(here.arrays[key], imported.arrays[key], key)
    for left_out in (told, here.damaged):
        assert {name.removesuffix(".npz"): reason for name, reason in left_out} == LEFT_OUT
    discount = here.arrays["discount"].reshape(-1, 30)
    assert np.isin(discount, (0, 1)).all()
    for name, rows in zip(here.episodes.names, discount, strict=True):
        kind, i = name.removesuffix(".npz").split("-")
        assert np.flatnonzero(rows == 0).tolist() == ENDS.get(kind, ([], [], []))[int(i)], name
    of_grey = here.arrays["image"][here.episodes.starts[here.episodes.names.index("grey-1.npz")]]
    np.testing.assert_array_equal(of_grey, np.repeat(grey(1)[0], 3, -1))


NO_FILES = {
    "6.npz": "a git-annex link to what is not here: fetch the file with `git annex get`",
    "7.npz": "no regular file",
    "8.npz": "no regular file",
    "9.npz": "a link that leads nowhere",
}


def test_headers_tell_the_usual_size_of_actions(tmp_path, monkeypatch, capfd):
    """An episode that cannot be read counts by its header, in place and imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    np.savez("source/0.npz", **arrays(0))
    np.savez("source/1.npz", **{**arrays(1), "action": np.full((30, 2), np.nan)})
    np.savez("source/2.npz", **arrays(2, 3))
    told = {
        "1": "action holds a number that is not finite, in row 0",
        "2": "its actions have 3 numbers, those of most have 2",
    }
    here = FrameStore.build_or_open("source", tmp_path / "cache")
    assert {name.removesuffix(".npz"): reason for name, reason in here.damaged} == told
    skipped = import_source(tmp_path / "source", tmp_path / "out", Options(), workers=2).skipped
    assert {name.removesuffix(".npz"): reason for name, reason in skipped} == told
    assert main(["inspect", "source", "--format", "episodes"]) == 0
    assert f"2: {told['2']}" in capfd.readouterr().out


def test_discounts_between_0_and_1_are_told_once(tmp_path, capfd):
    (tmp_path / "source").mkdir()
    for i in range(2):
        np.savez(tmp_path / f"source/{i}.npz", **arrays(i), discount=np.where(ROWS < 28, 0.99, i))
    said = "source: 56 discounts lie between 0 and 1 and count as 1, as 0.99 does"
    for i in range(2):
        store = FrameStore.build_or_open(tmp_path / "source", tmp_path / "cache")
        import_source(tmp_path / "source", tmp_path / "out", Options(), workers=2)
        assert capfd.readouterr().err.count(said) == (0 if i else 2)
    imported = FrameStore.build_or_open(tmp_path / "out", tmp_path / "cache")
    for one in (store, imported):
        assert one.arrays["discount"].tolist() == [1] * 28 + [0] * 2 + [1] * 30
    assert said not in capfd.readouterr().err


def test_what_is_no_file_is_named_and_left_out(tmp_path, monkeypatch, capfd):
    """Links that lead nowhere, a folder and a pipe, in place and imported."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    (source / "7.npz").mkdir(parents=True)
    for i in range(3):
        np.savez(source / f"{i}.npz", **arrays(i))
    (source / "6.npz").symlink_to("../.git/annex/objects/aa/MD5E-s12--ab.npz")
    os.mkfifo(source / "8.npz")
    (source / "9.npz").symlink_to("nowhere")
    assert datasets.is_ready(source)
    here = FrameStore.build_or_open(source, tmp_path / "cache")
    assert dict(here.damaged) == NO_FILES and len(here.episodes) == 3
    assert main(["import", "source", "out"]) == 3
    told = json.loads((tmp_path / "out/import.json").read_text())["left_out"]
    assert dict(told) == NO_FILES and len(list((tmp_path / "out").glob("*.npz"))) == 3
    assert FrameStore.build_or_open(source, tmp_path / "cache").episodes.names == (
        here.episodes.names
    )
    capfd.readouterr()
    for argv in ([], ["--format", "episodes"]):
        assert main(["inspect", "source", *argv]) == 0
        printed = capfd.readouterr().out
        assert all(f"{name}: {reason}" in printed for name, reason in NO_FILES.items())
    for i in range(3):
        (source / f"{i}.npz").unlink()
    assert main(["import", "source", "other"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "6.npz: a git-annex link" in line


def test_no_most_common_size_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    for i in range(4):
        np.savez(tmp_path / "source" / f"{i}.npz", **arrays(i, 2 + i % 2))
    with pytest.raises(UserError, match="2 episodes each have actions of 2 and 3 numbers"):
        FrameStore.build_or_open(tmp_path / "source", tmp_path / "cache")
    for argv in (["import", "source", "out"], ["inspect", "source"]):
        assert main(argv) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "source: 2 episodes each have actions of 2 and 3 numbers" in error
    assert not list((tmp_path / "out").glob("*.npz"))
    assert FrameStore.build_or_open(tmp_path / "source", tmp_path / "cache", "source")
    np.savez(tmp_path / "source" / "4.npz", **arrays(4, 3))
    np.savez(
        tmp_path / "source" / "5.npz", **{**arrays(5, 3), "image": np.zeros((30, 84, 84), np.uint8)}
    )
    assert main(["inspect", "source", "--sample", "2"]) == 0  # which may be another than most
    assert "5: its actions have 3 numbers, those of 0 have 2" in capsys.readouterr().out


def test_what_an_import_would_change_is_imported(tmp_path):
    """Pictures of other sizes, files in folders, actions outside of -1 to 1, and those of a row
    0, the reset's, which the import takes away."""
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        np.savez(source / f"{i}.npz", **arrays(i))
    assert datasets.is_ready(source)
    for change in (
        {"image": np.zeros((30, 84, 84, 3), np.uint8)},
        {"image": np.zeros((30, 3, 84, 84), np.uint8)},
        {"action": 3 * arrays()["action"]},
        {"action": np.full((30, 2), 0.5)},
        {"reward": np.ones(30)},
    ):
        np.savez(source / "3.npz", **{**arrays(3), **change})
        assert not datasets.is_ready(source)
    (source / "3.npz").unlink()
    (source / "more").mkdir()
    assert datasets.is_ready(source)
    np.savez(source / "more" / "a.npz", **arrays(4))
    assert not datasets.is_ready(source)


def test_a_stray_archive_makes_no_folder_of_episodes(tmp_path):
    (tmp_path / "calibration.npz").touch()
    for i in range(2):
        (tmp_path / f"{i}.mp4").touch()
    assert not datasets.is_ready(tmp_path)


def test_one_hot_actions_name_the_flag(tmp_path, tiny_config, capfd):
    one_hot = np.eye(4, dtype=np.float32)[np.arange(30) % 4]
    one_hot[0] = 0
    for name, size in (("one_hot", 4), ("other", 2)):
        (tmp_path / name).mkdir()
        np.savez(
            tmp_path / name / "a.npz",
            **{**arrays(0, size), **({"action": one_hot} if size == 4 else {})},
        )
    store, other = (
        FrameStore.build_or_open(tmp_path / name, tmp_path / "cache")
        for name in ("one_hot", "other")
    )
    words = "one-hot, each one of 4, and learnt as numbers: --task none --action.discrete true"
    for flags in ({"task": "none"}, {"task": "none", "action.size": 2}, {"action.size": 4}, {}):
        config = tiny_config("metaworld veorl", {"action.size": 4, **flags})
        space = datasets.action_space(config, store)
        warning = capfd.readouterr().err
        assert words in warning and warning.count("\n") == 1
        assert space.size == 4 and not space.discrete
    flags = {"task": "none", "action.discrete": True}
    space = datasets.action_space(tiny_config("metaworld veorl", flags), store)
    assert space.size == 4 and space.discrete and not capfd.readouterr().err
    datasets.check_actions(store, datasets.action_bounds(store), space)
    assert not datasets.action_space(
        tiny_config("metaworld veorl", {"task": "none"}), other
    ).discrete
    with pytest.raises(UserError, match="wants one-hot actions, but these are not"):
        datasets.check_actions(other, datasets.action_bounds(other), space)
