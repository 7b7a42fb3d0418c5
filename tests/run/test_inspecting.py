"""`python -m veorl_tf inspect`: foreign data as they are, without importing them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veorl_tf.__main__ import main
from veorl_tf.data.episodes import save_episode
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
    "argv, words",
    [
        (["nowhere"], ["nowhere", "no such file or folder"]),
        (["empty"], ["empty", "none of the known formats"]),
        (["bad"], ["bad", "nothing in it can be read"]),
        (["bad", "--format", "vidoe"], ["--format vidoe"]),
    ],
)
def test_refused(argv, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_text("no video")
    assert main(["inspect", *argv]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    error = [line for line in lines if line.startswith("error: ")]
    assert len(error) == 1 and all(word in error[0] for word in words), lines
