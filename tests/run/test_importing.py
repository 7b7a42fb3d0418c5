"""`python -m veorl_tf import`: videos become clips, once, whole, the same on every run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from veorl_tf.__main__ import main
from veorl_tf.core.errors import UserError
from veorl_tf.data.episodes import load_episode, save_episode
from veorl_tf.data.importers.base import Options
from veorl_tf.data.importers.journal import JOURNAL, Journal, action_scale
from veorl_tf.run import datasets
from veorl_tf.run.importing import import_source

ROOT = Path(__file__).parents[2]
OPTIONS = Options(clip=20, shortest=5)


def write_video(path, frames=30, seed=0):
    """A bright square that wanders over a dark ground: 48 x 64 pixels, 10 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, bit_rate=4_000_000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(frames):
            picture = np.full((48, 64, 3), 20 + seed, np.uint8)
            picture[10:30, i : i + 20] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of 30 frames and a copy of one of them."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4")
    write_video(folder / "b" / "c.mp4", seed=9)
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    return folder


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def test_a_folder_of_videos(videos, tmp_path):
    result = import_source(videos, tmp_path / "out", OPTIONS)
    assert (result.format, result.items, result.new, result.skipped) == ("video", 2, 2, [])
    assert result.counts | {"cuts": 0, "still": 0} == result.counts
    assert (result.counts["frames"], result.counts["clips"], result.counts["kept"]) == (60, 4, 60)
    names = sorted(contents(tmp_path / "out"))
    assert [name.rsplit(".", 3)[0] for name in names] == ["a.mp4"] * 2 + ["b_c.mp4"] * 2
    clips = [load_episode(tmp_path / "out" / name, ("image",))["image"] for name in names]
    assert [clip.shape for clip in clips] == [(20, 64, 64, 3), (10, 64, 64, 3)] * 2
    assert np.abs(clips[0][0].astype(int) - clips[0][5]).max() > 100
    report = json.loads((tmp_path / "out" / "import.json").read_text())
    assert report["format"] == "video" and report["options"]["clip"] == 20
    assert "4 episodes of 60 frames from 2 items" in result.text()


def test_the_same_bytes_and_nothing_twice(videos, tmp_path):
    for name in ("one", "two"):
        import_source(videos, tmp_path / name, OPTIONS, workers=1 if name == "one" else 2)
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two") and len(first) == 4
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").glob("*.npz")}
    os.utime(videos / "a.mp4", (1, 1))
    assert import_source(videos, tmp_path / "one", OPTIONS).new == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "one").glob("*.npz")} == stamps


def test_a_source_that_changes(videos, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(videos, source)
    out = tmp_path / "out"
    before = import_source(source, out, OPTIONS)
    (source / "b" / "c.mp4").unlink()
    write_video(source / "d.mp4", 25, seed=3)
    after = import_source(source, out, OPTIONS)
    assert (before.new, after.new, after.items) == (2, 1, 2)
    assert {name[:5] for name in contents(out)} == {"a.mp4", "d.mp4"}
    lost = next(out.glob("d.mp4*"))
    lost.unlink()
    assert import_source(source, out, OPTIONS).new == 1 and lost.exists()
    other = import_source(source, out, Options(clip=10, shortest=5))
    assert other.new == 2 and other.counts["clips"] == 6


def test_what_cannot_be_read_is_reported(videos, tmp_path, capfd):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(videos, source)
    (source / "text.mp4").write_text("not a video")
    (source / "zero.avi").touch()
    whole = (source / "a.mp4").read_bytes()
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert main(["import", str(source), str(out), "--clip", "20", "--shortest", "5"]) == 3
    printed = capfd.readouterr().out
    for name in ("text.mp4", "zero.avi", "cut.mp4"):
        assert f"left out: {name}: " in printed
    assert len(contents(out)) == 4 and not list(out.glob(".*.tmp"))
    report = json.loads((out / "import.json").read_text())
    assert [name for name, _ in report["left_out"]] == ["cut.mp4", "text.mp4", "zero.avi"]
    argv = ["import", str(source), str(tmp_path / "other"), "--strict"]
    assert main([*argv, "--shortest", "5"]) == 2
    printed = capfd.readouterr().err
    assert "zero.avi: empty file" in printed and "Traceback" not in printed


def test_a_video_that_gives_no_clip_is_named(tmp_path, capfd):
    """Too short, or without movement; not where another part of it, or of its list, gives one."""
    source, out = tmp_path / "source", str(tmp_path / "out")
    write_video(source / "long.mp4", 40)
    write_video(source / "short.mp4", 12)
    with av.open(str(source / "still.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(40):
            picture = np.full((48, 64, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    for _ in range(2):  # the second time nothing is new
        assert main(["import", str(source), out]) == 3
        lines = capfd.readouterr().out.splitlines()
        lines = [line for line in lines if line.startswith("left out: ")]
        assert len(lines) == 2
        assert lines[0].startswith("left out: short.mp4: gives no episode: 12 frames left out in")
        assert lines[1].startswith("left out: still.mp4: gives no episode: 39 frames without move")
        assert "--shortest 26" in lines[0] and "--still 0.001" in lines[1]
    assert main(["import", str(source), str(tmp_path / "strict"), "--strict"]) == 2
    assert "short.mp4: gives no episode: 12 frames" in capfd.readouterr().err
    clips = [{"id": "long", "begin": 0, "end": 3}, {"id": "long", "begin": 3, "end": 3.5}]
    clips += [{"id": "short", "begin": 0, "end": 1}, {"id": "short", "begin": 0, "end": 0.8}]
    (source / "clips.json").write_text(json.dumps(clips))
    assert main(["import", str(source / "clips.json"), str(tmp_path / "parts")]) == 3
    left_out = json.loads((tmp_path / "parts" / "import.json").read_text())["left_out"]
    assert [name for name, _ in left_out] == ["short.mp4"] and "18 frames" in left_out[0][1]


def test_strict_refuses_what_was_left_out_before(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    write_video(source / "a.mp4")
    (source / "text.mp4").write_text("not a video")
    assert import_source(source, out, OPTIONS).skipped
    for _ in range(2):
        with pytest.raises(UserError, match="text.mp4: no whole video"):
            import_source(source, out, OPTIONS, strict=True)


def test_a_folder_belongs_to_one_source(videos, tmp_path):
    import_source(videos, tmp_path / "out", OPTIONS)
    before = contents(tmp_path / "out")
    write_video(tmp_path / "other" / "x.mp4", seed=50)
    with pytest.raises(UserError, match="holds an import of .*; name another folder"):
        import_source(tmp_path / "other", tmp_path / "out", OPTIONS)
    save_episode(tmp_path / "out", {"image": np.zeros((2, 64, 64, 3), np.uint8)}, "mine.npz")
    import_source(videos, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out").items() > before.items()


def test_what_else_lies_there_is_told(videos, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(videos, source)
    (source / "calibration.npz").touch()
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(source / f"{i}.png")
    result = import_source(source, tmp_path / "out", OPTIONS)
    assert result.format == "video" and result.items == 2
    told = dict(reversed(line) for line in result.skipped)
    assert told == {
        "2 files of another format; --format images imports these": "source",
        "1 files of another format; --format episodes imports these": "source",
    }
    (source / "shard.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n")
    told = import_source(source, tmp_path / "out", OPTIONS).skipped
    assert ["shard.hdf5", "a Git LFS pointer: fetch the file with `git lfs pull`"] in told
    assert len(told) == 3


def test_training_refuses_an_unfinished_import(videos, tmp_path):
    import_source(videos, tmp_path / "out", OPTIONS)
    (tmp_path / "out" / "import.json").unlink()
    with pytest.raises(UserError, match="interrupted; the same import again goes on"):
        datasets.is_ready(tmp_path / "out")
    import_source(videos, tmp_path / "out", OPTIONS)
    assert datasets.is_ready(tmp_path / "out")


def test_an_interrupted_import_goes_on(videos, tmp_path, monkeypatch):
    write_video(tmp_path / "source" / "a.mp4")
    write_video(tmp_path / "source" / "b.mp4", seed=5)
    write_video(tmp_path / "source" / "c.mp4", seed=7)
    add, done = Journal.add, []

    def interrupted(self, of, key, value):
        add(self, of, key, value)
        if of == "entries":
            done.append(key)
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_source(tmp_path / "source", tmp_path / "out", OPTIONS)
    monkeypatch.undo()
    with open(tmp_path / "out" / JOURNAL, "a") as file:
        file.write('{"of": "entries", "key": "ab')  # killed while it wrote
    result = import_source(tmp_path / "source", tmp_path / "out", OPTIONS)
    assert len(done) == 1 and result.new == 2 and result.items == 3
    import_source(tmp_path / "source", tmp_path / "whole", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_import_goes_on(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for i in range(6):
        write_video(source / f"{i}.mp4", seed=8 * i)
    command = [sys.executable, "-m", "veorl_tf", "import", str(source), str(out)]
    command += ["--clip", "20", "--shortest", "5", "--workers", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not list(out.glob("*.npz")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    result = import_source(source, out, OPTIONS)
    assert 0 < result.new <= 6 and result.items == 6
    import_source(source, tmp_path / "whole", OPTIONS)
    assert contents(out) == contents(tmp_path / "whole") and not list(out.glob(".*.tmp"))


def test_sigterm_ends_an_import_in_one_line(tmp_path):
    source = tmp_path / "source"
    for i in range(20):
        write_video(source / f"{i}.mp4", seed=8 * i)
    command = [sys.executable, "-m", "veorl_tf", "import", str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("*.npz")) and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        printed = process.communicate()[1]
    assert process.returncode == 143 and "Traceback" not in printed


def test_a_reader_that_hangs_costs_its_item_alone(videos, tmp_path):
    """Here every one, for none is that fast; the next call tries them again."""
    result = import_source(videos, tmp_path / "out", OPTIONS, timeout=0.001)
    assert [name for name, _ in result.skipped] == ["a.mp4", "b/c.mp4"]
    assert all("no answer within 0.001 s" in reason for _, reason in result.skipped)
    assert not contents(tmp_path / "out")
    result = import_source(videos, tmp_path / "out", OPTIONS)
    assert result.new == 2 and not result.skipped


@pytest.mark.parametrize(
    "argv, words",
    [
        (["nowhere", "out"], ["nowhere", "no such file or folder"]),
        (["empty", "out"], ["empty", "none of the known formats", "--format"]),
        (["videos", "out", "--format", "vidoe"], ["--format vidoe", "one of auto, "]),
        (["videos", "out", "--fit", "7,8"], ["--fit 7,8", "x,y,width,height"]),
        (["videos", "out", "--clip", "1"], ["--clip 1", "2 to 100000"]),
        (["videos", "out", "--fps", "inf"], ["--fps inf", "0 to 1000"]),
        (["videos", "out", "--still", "-1"], ["--still -1", "0 to 1"]),
        (["videos", "out", "--workers", "-1"], ["--workers -1"]),
        (["videos", "out", "--timeout", "0"], ["--timeout 0"]),
        (["videos", "out", "--shortest", "101"], ["--shortest 101", "--clip 100"]),
        (["videos", "full"], ["full", "not empty"]),
        (["videos", "videos/out"], ["out: lies within"]),
        (["videos"], ["OUT is missing"]),
    ],
)
def test_refused_in_one_line(argv, words, videos, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "videos").symlink_to(videos)
    assert main(["import", *argv]) == 2
    printed = capfd.readouterr().err.strip()
    assert "\n" not in printed and all(word in printed for word in words), printed
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "full").iterdir())) == 1


def test_training_takes_a_folder_of_videos(videos, tmp_path, tiny_config):
    flags = {
        "source_videos": str(videos),
        "datadir": str(tmp_path),
        "imports.clip": 20,
        "imports.shortest": 5,
    }
    config = tiny_config("metaworld veorl", flags)
    datasets.check_given(config)
    store = datasets.open_store(config, "source")
    assert len(store) == 60 and store.image_shape == (64, 64, 3)
    (folder,) = (tmp_path / "imports").iterdir()
    stamp = next(folder.glob("*.npz")).stat().st_mtime_ns
    assert len(datasets.open_store(config, "source")) == 60
    assert next(folder.glob("*.npz")).stat().st_mtime_ns == stamp
    assert action_scale(folder) == {}
    with pytest.raises(UserError, match="--target_dataset .*video without actions"):
        datasets.imported(config, "target", videos)
    assert datasets.imported(config, "source", folder) == folder
