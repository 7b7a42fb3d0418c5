"""The frame store: equal to the episodes, rebuilt when it must be and only then."""

import json
import shutil

import numpy as np
import pytest

from veorl_tf.core import files
from veorl_tf.core.errors import MachineError, UserError
from veorl_tf.data import store as store_module
from veorl_tf.data.episodes import load_episode, save_episode
from veorl_tf.data.store import FrameStore
from veorl_tf.data.synthetic import random_episode


def episode(length=7, seed=0, actions=4):
    return random_episode(length, seed, actions, image_size=8)


LENGTHS = (5, 9, 3, 12, 7)


@pytest.fixture
def source(tmp_path):
    for i, length in enumerate(LENGTHS):
        save_episode(tmp_path / "eps", episode(length, i), name=f"{i}.npz")
    return tmp_path / "eps"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Opens the store, and counts how often it was built."""
    builds, original = [], store_module._build
    monkeypatch.setattr(store_module, "_build", lambda *args: (builds.append(1), original(*args)))

    def call(source, kind="target"):
        return FrameStore.build_or_open(source, tmp_path / "cache", kind), len(builds)

    return call


def test_rows_equal_the_episodes(source, build):
    store, _ = build(source)
    assert len(store) == sum(LENGTHS) and store.action_size == 4 and store.image_shape == (8, 8, 3)
    assert store.episodes.lengths.tolist() == list(LENGTHS) and store.episodes.starts.tolist() == [
        0,
        5,
        14,
        17,
        29,
    ]
    for name, start, length in zip(
        store.episodes.names, store.episodes.starts, store.episodes.lengths, strict=True
    ):
        expected = load_episode(source / name)
        for key, array in store.arrays.items():
            np.testing.assert_array_equal(array[start : start + length], expected[key])
    assert not store.arrays["image"].flags.writeable


def test_source_store_has_images_alone(source, build):
    store, _ = build(source, "source")
    assert list(store.arrays) == ["image"] and store.action_size == 0 and len(store) == sum(LENGTHS)
    assert build(source)[0].directory != store.directory


def test_built_once_and_again_when_a_file_changes(source, build):
    assert build(source)[1] == 1 and build(source)[1] == 1
    save_episode(source, episode(4, 9), name="9.npz")
    store, builds = build(source)
    assert builds == 2 and len(store) == sum(LENGTHS) + 4
    (source / "9.npz").unlink()
    store, builds = build(source)
    assert builds == 3 and len(store) == sum(LENGTHS)
    save_episode(source, episode(5, 99), name="0.npz")
    store, builds = build(source)
    assert builds == 4
    np.testing.assert_array_equal(store.arrays["image"][:5], episode(5, 99)["image"])
    assert build(source)[1] == 4 and [p.name for p in store.directory.parent.iterdir()] == [
        store.directory.name
    ]


def cut(directory):
    path = directory / "image.u8"
    path.write_bytes(path.read_bytes()[:-1])


def spoil_lengths(directory):
    path = directory / "header.json"
    header = json.loads(path.read_text())
    header["lengths"][0] += 1
    path.write_text(json.dumps(header))


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        spoil_lengths,
        lambda d: (d / "reward.f32").unlink(),
        lambda d: (d / "header.json").write_text('{"a":'),
        lambda d: (d / "header.json").write_text("[]"),
        lambda d: (d / "header.json").unlink(),
        lambda d: (shutil.rmtree(d), d.mkdir()),
    ],
)
def test_a_damaged_store_is_built_again(source, build, spoil, capsys):
    store, _ = build(source)
    expected = {key: array.copy() for key, array in store.arrays.items()}
    spoil(store.directory)
    store, builds = build(source)
    assert builds == 2 and "building it again" in capsys.readouterr().err
    for key in expected:
        np.testing.assert_array_equal(store.arrays[key], expected[key])


def test_an_interrupted_build_leaves_nothing(source, tmp_path):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FrameStore.build_or_open(source, tmp_path / "cache", "target", interrupt)
    assert not list((tmp_path / "cache").iterdir())
    seen = []
    FrameStore.build_or_open(source, tmp_path / "cache", "target", lambda *args: seen.append(args))
    assert seen == [(i, len(LENGTHS)) for i in range(1, len(LENGTHS) + 1)]


def test_damaged_episodes_are_left_out_and_reported(source, build, capsys):
    data = bytearray((source / "1.npz").read_bytes())
    for i in range(300, 340):
        data[i] ^= 0x5A
    (source / "1.npz").write_bytes(data)
    (source / "3.npz").write_bytes(b"")
    store, _ = build(source)
    assert store.episodes.names == ("0.npz", "2.npz", "4.npz") and len(store) == 5 + 3 + 7
    assert [name for name, _ in store.damaged] == ["1.npz", "3.npz"]
    assert capsys.readouterr().err.count("damaged episode left out") == 2
    np.testing.assert_array_equal(
        store.arrays["image"][5:8], load_episode(source / "2.npz")["image"]
    )
    assert build(source)[1] == 1  # the damaged ones are known
    save_episode(source, episode(12, 3), name="3.npz")
    assert len(build(source)[0]) == 5 + 3 + 7 + 12


def test_no_episode_and_mixed_shapes(source, build, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no target episode"):
        build(tmp_path / "none")
    (tmp_path / "none" / "a.npz").write_bytes(b"xx")
    with pytest.raises(UserError, match="no target episode.*a.npz"):
        build(tmp_path / "none")
    with pytest.raises(UserError, match="no such directory"):
        build(tmp_path / "missing")
    save_episode(source, episode(5, actions=2), name="8.npz")
    store, _ = build(source)
    assert store.action_size == 4 and len(store) == sum(LENGTHS)
    assert store.damaged == [("8.npz", "its actions have 2 numbers, those of most have 4")]
    assert len(build(source, "source")[0]) == sum(LENGTHS) + 5  # actions do not matter there
    save_episode(source, random_episode(5, image_size=6), name="9.npz")
    with pytest.raises(UserError, match=r"9\.npz: image \[6, 6, 3\].*\[8, 8, 3\]; an import"):
        build(source)


def test_too_little_disk_is_said_before_writing(source, build, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "free_bytes", lambda path: files.MARGIN + 1)
    need = sum(LENGTHS) * (8 * 8 * 3 + 4 * (4 + 3))
    with pytest.raises(MachineError, match=f"needs {need:,} bytes"):
        build(source)
    assert not (tmp_path / "cache").exists()


def test_split(source, build):
    store, _ = build(source)
    train, validation = store.split(0.4, seed=1)
    assert len(validation) == 2 and set(train.names) | set(validation.names) == set(
        store.episodes.names
    )
    assert not set(train.names) & set(validation.names)
    assert store.split(0.4, seed=1)[1].names == validation.names
    assert len({store.split(0.4, seed=s)[1].names for s in range(20)}) > 3
    for fraction, count in ((0.1, 1), (0.0, 0), (1.0, 4), (0.5, 2)):
        train, validation = store.split(fraction)
        assert (len(train), len(validation)) == (5 - count, count)
    for part in (train, validation):
        for name, start, length in zip(part.names, part.starts, part.lengths, strict=True):
            assert (
                load_episode(source / name)["reward"].tolist()
                == store.arrays["reward"][start : start + length].tolist()
            )


def test_split_of_one_episode_holds_nothing_out(tmp_path, build):
    save_episode(tmp_path / "one", episode(5))
    train, validation = build(tmp_path / "one")[0].split(0.5)
    assert len(train) == 1 and len(validation) == 0


def test_derived_columns(source, build):
    store, _ = build(source)
    codes = np.arange(len(store) * 2, dtype=np.int32).reshape(-1, 2)
    assert store.column("codes", "abc") is None
    column = store.add_column("codes", "abc", iter((codes[:10], codes[10:])))
    np.testing.assert_array_equal(column, codes)
    assert column.dtype == np.int32 and store.column("codes", "other") is None
    np.testing.assert_array_equal(build(source)[0].column("codes", "abc"), codes)
    for bad in (
        [codes[:-1]],
        [codes[:3], codes[3:].astype(np.float32)],
        [codes[:3], codes[3:, :1]],
    ):
        with pytest.raises(ValueError, match="column"):
            store.add_column("codes", "bad", bad)
    assert store.column("codes", "bad") is None
    with pytest.raises(ValueError):
        store.column("../codes", "abc")
    store.remove_column("codes", "abc")
    assert store.column("codes", "abc") is None
