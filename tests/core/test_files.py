"""Whole or not at all."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_directory, atomic_write, free_bytes, sha256, sweep_leftovers

ROOT = Path(__file__).parents[2]


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def test_atomic_write(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_write(path, "w") as file:
        file.write("one")
        assert not path.exists()
    assert path.read_text() == "one" and listing(path.parent) == ["file"]
    with atomic_write(path) as file:
        file.write(b"two")
        assert path.read_text() == "one"
    assert path.read_bytes() == b"two"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        with atomic_write(path, "w") as file:
            file.write("half")
            raise error
    assert path.read_text() == "old" and listing(tmp_path) == ["file"]


def test_atomic_directory_that_replaces_nothing(tmp_path):
    """What another process has put there in the meantime stays."""
    place = tmp_path / "x"
    with pytest.raises(UserError, match="x was made by another process meanwhile"):
        with atomic_directory(place, replace=False) as temporary:
            (temporary / "mine").touch()
            place.mkdir()
            (place / "theirs").touch()
    assert [p.name for p in place.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [place]


def test_atomic_directory_replaces_whole(tmp_path):
    place = tmp_path / "store"
    for text in ("one", "two"):
        with atomic_directory(place) as temporary:
            (temporary / text).write_text(text)
        assert listing(place) == [text] and listing(tmp_path) == ["store"]
    reader = open(place / "two")
    with pytest.raises(RuntimeError):
        with atomic_directory(place) as temporary:
            (temporary / "three").write_text("half")
            raise RuntimeError
    assert listing(place) == ["two"] and listing(tmp_path) == ["store"]
    with atomic_directory(place) as temporary:
        (temporary / "four").write_text("four")
    assert reader.read() == "two"  # whoever has it open keeps it
    reader.close()


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    code = (
        "import os, sys; from veorl_tf.core.files import atomic_write, atomic_directory\n"
        'with atomic_write(sys.argv[1] + "/file") as f, atomic_directory(sys.argv[1] + "/tree"):\n'
        '    f.write(b"half"); f.flush(); os._exit(9)'
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT).returncode == 9
    assert len(listing(tmp_path)) == 2
    with atomic_write(tmp_path / "mine") as file:  # being written by a living process: stays
        file.write(b"x")
        assert len(sweep_leftovers(tmp_path)) == 2
        assert len(listing(tmp_path)) == 1
    assert listing(tmp_path) == ["mine"]


def test_sha256_and_free_bytes(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.5)
    assert free_bytes(tmp_path) > 0
