"""Checkpoints: round trip, damage, order, pruning."""

import errno
import json

import numpy as np
import pytest

from veorl_tf.core import checkpoint
from veorl_tf.core.checkpoint import DamagedCheckpoint, stage_name, update_name
from veorl_tf.core.errors import UserError


def arrays(value=1.0):
    return {
        "trunk/kernel": np.full((3, 4), value, np.float32),
        "trunk/bias": np.zeros(0, np.float32),
        "file": np.array(5, np.int64),
        "done": np.array([True, False]),
        "plan/kernel": np.float32(value),
    }


def test_round_trip_and_prefix(tmp_path):
    manifest = {"counters": {"update": 3}, "config": "a: 1\n", "list": [1, 2.5, None]}
    checkpoint.save(tmp_path, update_name(0, 3), arrays(), manifest)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "update-0-000000003.json",
        "update-0-000000003.npz",
    ]
    loaded, got = checkpoint.load(tmp_path, update_name(0, 3))
    assert got == manifest and list(loaded) == list(arrays())
    for name, array in arrays().items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
    assert list(checkpoint.load(tmp_path, update_name(0, 3), "trunk/")[0]) == [
        "trunk/kernel",
        "trunk/bias",
    ]
    assert list(checkpoint.load(tmp_path, update_name(0, 3), ["plan/", "d"])[0]) == [
        "done",
        "plan/kernel",
    ]


@pytest.mark.parametrize(
    "array", [np.zeros(2), np.zeros(2, np.float16), np.array(["a"]), np.array([{}])]
)
def test_other_types_are_refused_before_anything_is_written(tmp_path, array):
    with pytest.raises(TypeError, match="some/path"):
        checkpoint.save(tmp_path, update_name(0, 1), {"some/path": array}, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, update_name(0, 1), {}, {"x": object()})
    with pytest.raises(ValueError, match="update-"):
        checkpoint.save(tmp_path, "other", {}, {})
    assert not list(tmp_path.iterdir())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "suffix, spoil",
    [
        (".npz", truncate),
        (".npz", flip),
        (".npz", lambda p: p.unlink()),
        (".npz", lambda p: p.write_bytes(b"")),
        (".json", truncate),
        (".json", lambda p: p.write_text("[]")),
        (".json", lambda p: p.write_bytes(b"\xff\xfe")),
        (
            ".json",
            lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"bytes": "many"})),
        ),
    ],
)
def test_damage_is_found_and_the_one_before_taken(tmp_path, capsys, suffix, spoil):
    first, second = update_name(0, 1), update_name(0, 2)
    checkpoint.save(tmp_path, first, arrays(1), {"n": 1})
    checkpoint.save(tmp_path, second, arrays(2), {"n": 2})
    assert checkpoint.latest(tmp_path) == second
    spoil(tmp_path / f"{second}{suffix}")
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(tmp_path, second)
    assert checkpoint.latest(tmp_path) == first
    assert "warning: damaged checkpoint" in capsys.readouterr().err
    assert checkpoint.load(tmp_path, first)[1] == {"n": 1}
    spoil(tmp_path / f"{first}{suffix}")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint is whole"):
        checkpoint.latest(tmp_path)


def test_nothing_there_or_killed_before_the_manifest(tmp_path):
    assert checkpoint.latest(tmp_path / "missing") is None
    checkpoint.save(tmp_path, update_name(0, 1), arrays(), {})
    (tmp_path / f"{update_name(0, 1)}.json").unlink()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.prune(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_save_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, update_name(0, 1), arrays(), {})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_npz", full)
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, update_name(0, 2), arrays(), {})
    assert checkpoint.latest(tmp_path) == update_name(0, 1) and len(list(tmp_path.iterdir())) == 2


def test_order_is_that_of_writing_and_pruning_keeps_stage_ends(tmp_path):
    written = [
        update_name(0, 5),
        update_name(0, 10),
        stage_name("abstraction"),
        update_name(1, 1),
        update_name(1, 2),
        stage_name("model"),
        update_name(2, 1),
    ]
    for name in written:
        checkpoint.save(tmp_path, name, arrays(), {})
    assert checkpoint.names(tmp_path) == written and checkpoint.latest(tmp_path) == written[-1]
    assert checkpoint.prune(tmp_path) == written[:2] + [written[3]]
    assert checkpoint.names(tmp_path) == [written[2], *written[4:]]
    assert len(list(tmp_path.iterdir())) == 2 * 4
    checkpoint.save(tmp_path, stage_name("behavior"), arrays(), {})
    assert checkpoint.latest(tmp_path) == stage_name("behavior")


def test_saving_again_under_the_same_name(tmp_path):
    checkpoint.save(tmp_path, stage_name("model"), arrays(1), {"n": 1})
    checkpoint.save(tmp_path, stage_name("model"), arrays(2), {"n": 2})
    loaded, manifest = checkpoint.load(tmp_path, stage_name("model"))
    assert manifest == {"n": 2} and loaded["plan/kernel"] == 2


def test_an_unreadable_manifest_neither_counts_nor_stays(tmp_path):
    for i in range(3):
        checkpoint.save(tmp_path, update_name(0, i), arrays(), {})
    truncate(tmp_path / f"{update_name(0, 1)}.json")
    checkpoint.save(tmp_path, update_name(0, 3), arrays(), {})
    assert checkpoint.prune(tmp_path) == [update_name(0, 0), update_name(0, 1)]
    assert checkpoint.latest(tmp_path) == update_name(0, 3)


def test_a_failing_write_over_a_checkpoint_keeps_it(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, update_name(0, 4), {"w": np.ones(2, np.float32)}, {"a": 1})

    def full(file, arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_npz", full)
        with pytest.raises(OSError):
            checkpoint.save(tmp_path, update_name(0, 4), {"w": np.zeros(2, np.float32)}, {"a": 2})
    assert checkpoint.load(tmp_path, update_name(0, 4))[1] == {"a": 1}


def test_a_changed_manifest_is_damage(tmp_path):
    checkpoint.save(tmp_path, update_name(0, 4), {"w": np.ones(2, np.float32)}, {"update": 4})
    path = tmp_path / f"{update_name(0, 4)}.json"
    path.write_text(path.read_text().replace('"update": 4', '"update": 5'))
    with pytest.raises(DamagedCheckpoint, match="the checksum differs"):
        checkpoint.load(tmp_path, update_name(0, 4))


def test_a_newer_format_is_not_taken_for_damage(tmp_path):
    checkpoint.save(tmp_path, update_name(0, 1), arrays(), {})
    path = tmp_path / f"{update_name(0, 1)}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="of a newer version"):
        checkpoint.latest(tmp_path)
