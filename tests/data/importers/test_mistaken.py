"""Files that hold no data at all: whatever reads them says what they are."""

import gzip
import io
import json
import shutil
import sys
import tarfile
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from veorl_tf.__main__ import main
from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import with_cause
from veorl_tf.data.importers.registry import beside, formats
from veorl_tf.data.importers.work import import_item, look_at_item
from veorl_tf.data.mistaken import mistaken

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing  # noqa: E402

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def archive(kind: str) -> bytes:
    """An archive of one text."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("a.txt", "hello")
    else:
        with tarfile.open(fileobj=out, mode=kind) as file:
            info = tarfile.TarInfo("a.txt")
            info.size = 5
            file.addfile(info, io.BytesIO(b"hello"))
    return out.getvalue()


CONTENTS = {
    "git lfs pull": POINTER,
    "git annex get": b"/annex/objects/MD5E-s12--0123.mp4\n",
    "an HTML page": PAGE,
    "an XML text": b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
    "empty file": b"",
    "gzip-compressed": gzip.compress(b"hello"),
    "a zip archive": archive("zip"),
    "a tar archive": archive("w:"),
    "bzip2-compressed": archive("w:bz2"),
    "xz-compressed": archive("w:xz"),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, Path]:
    pytest.importorskip("pyarrow", reason="LeRobot data want requirements-import.txt")
    return fuzzing.samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("words", CONTENTS)
def test_signs(words, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENTS[words])
    assert words in mistaken(path)


def test_what_is_data_has_none(samples, tmp_path):
    for folder in samples.values():
        for path in folder.rglob("*"):
            assert path.is_dir() or mistaken(path) is None, path
    assert mistaken(tmp_path / "nowhere") is None and mistaken(tmp_path) is None


def lost(format: str, source: Path, out: Path) -> dict[str, set[str]]:
    """What is told of a source's files, by an import and by a look at it."""
    reader, left_out = formats()[format], []
    common = [asdict(item) for item in reader.items(source, fuzzing.OPTIONS, left_out.append)]
    listed = {str(with_cause(source, problem)) for problem in left_out}
    told = {"import": set(listed), "inspect": set(listed)}
    for item in common:
        arguments = (format, str(source), item, asdict(fuzzing.OPTIONS))
        done = {
            "import": import_item(*arguments, str(out), "key"),
            "inspect": look_at_item(*arguments),
        }
        for how, result in done.items():
            told[how] |= {": ".join(problem) for problem in result["problems"]}
    return told


@pytest.mark.parametrize("words", ["git lfs pull", "an HTML page", "empty file", "a tar archive"])
@pytest.mark.parametrize("format", sorted(set(formats()) - {"bridge", "cliplist"}))
def test_every_reader_says_it_of_every_file(format, words, samples, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(samples[format], source)
    paths = [p for p in source.rglob("*") if p.is_file() and not p.suffix.startswith(".json")]
    for path in paths:
        path.write_bytes(CONTENTS[words])
    for how, lines in lost(format, source, tmp_path / "out").items():
        assert lines and all(words in line for line in lines), (how, lines)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "format, name",
    [
        ("lerobot", "meta/info.json"),
        ("lerobot", "meta/episodes.jsonl"),
        ("cliplist", "clips.json"),
        ("nuscenes", "v1.0-mini/sample.json"),
        ("minari", "toy/data/metadata.json"),
    ],
)
def test_tables_too(format, name, samples, tmp_path):
    shutil.copytree(samples[format], tmp_path / "source")
    path = next((tmp_path / "source").rglob(Path(name).name))
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        lost(format, tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.hdf5", "deep/data.bin", "data.tar.gz", "a.mp4.zip"])
@pytest.mark.parametrize("folder", [True, False])
def test_a_source_of_nothing_else(name, folder, tmp_path, capsys):
    """Where nothing is recognised, the commands name the first such file."""
    contents = {"gz": archive("w:gz"), "zip": archive("zip")}
    path = tmp_path / "source" / name
    fuzzing.put(tmp_path / "source" / "README.html", PAGE)
    fuzzing.put(path, contents.get(name.rsplit(".")[-1], POINTER))
    source = tmp_path / "source" if folder else path
    for argv in (["inspect", str(source)], ["import", str(source), str(tmp_path / "out")]):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line and ("unpack it" in line or "git lfs pull" in line)


def test_import_and_inspect_name_the_cause(samples, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(samples["video"], tmp_path / "source")
    (tmp_path / "source" / "x.mp4").write_bytes(POINTER)
    (tmp_path / "source" / "y.mp4").touch()
    assert main(["import", "source", "out", "--shortest", "2", "--still", "0"]) == 3
    assert main(["inspect", "source", "--shortest", "2"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("x.mp4: a Git LFS pointer: fetch the file with `git lfs pull`") == 2
    assert printed.count("y.mp4: empty file") == 2
    assert ["x.mp4", "y.mp4"] == [
        name for name, _ in json.loads((tmp_path / "out/import.json").read_text())["left_out"]
    ]


def test_no_format_is_named_for_what_it_cannot_read(samples, tmp_path):
    shutil.copytree(samples["video"], tmp_path / "source")
    (tmp_path / "source/0.npz").write_bytes(POINTER)
    told = [str(problem) for problem in beside(tmp_path / "source", formats()["video"])]
    assert told == [f"0.npz: {mistaken(tmp_path / 'source/0.npz')}"]


@pytest.mark.parametrize(
    "format, name",
    [
        ("lerobot", "meta/info.json"),
        ("minari", "toy/data/metadata.json"),
        ("rlds", "dataset_info.json"),
        ("rlds", "features.json"),
    ],
)
def test_a_format_whose_index_is_none_is_not_taken_for_another(
    format, name, samples, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(samples[format], tmp_path / "source")
    path = next((tmp_path / "source").rglob(Path(name).name), tmp_path / "source" / name)
    path.write_bytes(POINTER)
    for argv in (["inspect", "source"], ["import", "source", "out"]):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert path.name in line and "git lfs pull" in line
