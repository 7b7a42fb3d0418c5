"""`python -m veorl_tf inspect`: foreign data as they are, without importing them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veorl_tf.__main__ import main
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.synthetic import random_episode
from veorl_tf.run.inspecting import warnings

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "importers"))

import fuzzing  # noqa: E402


@pytest.fixture
def inspected(tmp_path, monkeypatch, capfd):
    """`inspected(source, *flags)`: what the command prints; its code is 0."""
    monkeypatch.chdir(tmp_path)

    def call(source, *flags) -> str:
        before = sorted(Path(source).rglob("*"))
        assert main(["inspect", str(source), *flags]) == 0
        assert sorted(Path(source).rglob("*")) == before
        return capfd.readouterr().out

    return call


def test_videos(inspected, tmp_path):
    fuzzing.video(tmp_path / "videos" / "a.mp4", 30)
    fuzzing.video(tmp_path / "videos" / "b.mp4", 20)
    (tmp_path / "videos" / "c.mp4").write_text("no video")
    printed = inspected(tmp_path / "videos", "--sheet", "sheet.png")
    for row in (
        "format    video: mp4, mkv",
        "items     3, of which 3 were read",
        "frames    50; mean 25, from 20 to 30",
        "becomes   1 episodes of 30 frames, 20 frames left out in stretches that are too",
        "seconds   mean 2.4, from 1.9 to 2.9",
        "pictures  32x24 in 2",
        "left out  1",
        "c.mp4: no whole video",
    ):
        assert row in printed
    assert "warning:" not in printed and "\nwarning" not in printed
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (10 * 66 - 2, 2 * 66 - 2)


def test_an_import_makes_what_was_said(inspected, tmp_path, capfd):
    for i in range(4):
        fuzzing.video(tmp_path / "videos" / f"{i}.mp4", 40 + 10 * i)
    flags = ["--fps", "5", "--shortest", "5", "--clip", "8"]
    said = inspected(tmp_path / "videos", *flags)
    assert main(["import", str(tmp_path / "videos"), str(tmp_path / "out"), *flags]) == 0
    counts = json.loads((tmp_path / "out" / "import.json").read_text())["counts"]
    assert counts["clips"] >= 8
    assert f"becomes   {counts['clips']} episodes of {counts['kept']} frames" in said
    capfd.readouterr()
    said = inspected(tmp_path / "videos", *flags, "--sample", "2")
    assert "becomes   about 1" in said


def test_logs(inspected, tmp_path):
    fuzzing.minari(tmp_path / "minari")
    fuzzing.replay(tmp_path / "replay")
    assert "format    dreamerv3" in inspected(tmp_path / "replay")
    printed = inspected(tmp_path / "minari")
    assert "keys      action, image, reward" in printed and "frames    13" in printed
    assert "action    2 numbers: 0 to 0, 0 to 0" in printed and "return    mean 0.00" in printed


def test_warnings(inspected, tmp_path):
    constant = np.full((30, 64, 64, 3), 90, np.uint8)
    folder = tmp_path / "pictures" / "still"
    for i in range(3):
        fuzzing.put(folder / f"{i}.png", fuzzing.encoded(0))
    printed = inspected(tmp_path / "pictures")
    assert "1 of 1 items show the same picture throughout" in printed

    ramp = np.broadcast_to(np.arange(64)[:, None, None] * 3, (64, 64, 3)).astype(np.uint8)
    upright = np.broadcast_to(ramp, constant.shape)
    save_episode(tmp_path / "reference", {"image": upright}, "a.npz")
    save_episode(tmp_path / "flipped", {"image": upright[:, ::-1]}, "a.npz")
    printed = inspected(tmp_path / "flipped", "--reference", str(tmp_path / "reference"))
    assert "warning: the pictures are upside down against" in printed
    printed = inspected(tmp_path / "reference", "--reference", str(tmp_path / "reference"))
    assert "warning:" not in printed and "\nwarning" not in printed


def test_logs_that_warn():
    pictures = list(fuzzing.pictures())
    good = {"pictures": pictures, "keys": ["action", "image", "reward"], "rewards": [0, 0, 0]}
    good |= {"low": [-1.0, -0.5], "high": [1.0, 0.0]}
    assert warnings([good]) == []
    assert warnings([good, {"pictures": pictures, "keys": ["image"]}]) == [
        "1 of 2 episodes have no rewards: source videos only"
    ]
    assert warnings([good | {"high": [1.0, 0.6], "bounds": [[-1, -1], [1, 0.5]]}]) == [
        "actions leave the bounds that the data state; an import clips them"
    ]
    assert warnings([good | {"high": [1.0, 3.0]}]) == [
        "actions leave -1 to 1; an import scales them"
    ]


@pytest.mark.parametrize(
    "argv, words, code",
    [
        (["nowhere"], ["nowhere", "no such file or folder"], 2),
        (["empty"], ["empty", "none of the known formats"], 2),
        (["bad"], ["bad", "nothing in it can be read"], 3),
        (["bad", "--format", "vidoe"], ["--format vidoe"], 2),
    ],
)
def test_refused(argv, words, code, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_text("no video")
    assert main(["inspect", *argv]) == code
    lines = capfd.readouterr().err.strip().splitlines()
    error = [line for line in lines if line.startswith("error: ")]
    assert len(error) == 1 and all(word in error[0] for word in words), lines


@pytest.mark.parametrize("size", [64, 84])
def test_nothing_that_can_be_read_is_code_3_as_of_an_import(size, tmp_path, monkeypatch, capfd):
    """In place and foreign: the table says what is wrong with which file."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        arrays = random_episode(30, i, image_size=size)
        np.savez(put_folder("source") / f"{i}.npz", **{**arrays, "reward": np.full(30, np.nan)})
    assert main(["import", "source", "out"]) == 3 and main(["inspect", "source"]) == 3
    printed = capfd.readouterr()
    for i in range(2):
        words = f"{i}.npz: reward holds a number that is not finite, in row 0"
        assert printed.out.count(words) == 2  # the import's and the table's
    (error,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert "source: no" in error and not Path("contact-sheet.png").exists()
    np.savez("source/9.npz", **random_episode(30, 9, image_size=size))
    assert main(["import", "source", "out"]) == 3 and main(["inspect", "source"]) == 0


def put_folder(name: str) -> Path:
    Path(name).mkdir(exist_ok=True)
    return Path(name)


def test_what_an_import_drops(inspected, tmp_path, capfd):
    """Episodes of another size of action, and items that give nothing."""
    source = put_folder(tmp_path / "logs")
    for i, (size, length) in enumerate(((2, 30), (3, 30), (2, 30), (2, 12))):
        np.savez(source / f"{i}.npz", **random_episode(length, i, size, image_size=84))
    printed = inspected(source)
    assert "becomes   2 episodes of 60 frames, 12 frames left out" in printed
    assert "action    2 numbers: " in printed and "left out  1" in printed
    assert "1: its actions have 3 numbers, those of most have 2" in printed
    assert "dropped   3: gives no episode: 12 frames left out in stretches that are too" in printed
    assert main(["import", str(source), str(tmp_path / "out")]) == 3
    printed = capfd.readouterr().out
    assert "2 episodes of 60 frames from 3 items" in printed
    assert "left out: 1: its actions have 3 numbers, those of most have 2" in printed
    assert "left out: 3: gives no episode: 12 frames left out in stretches" in printed
