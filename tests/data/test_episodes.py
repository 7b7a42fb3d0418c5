"""The episode on disk: round trip, the original repositories' files, and files that are none."""

import pickle
import zipfile

import numpy as np
import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.data.episodes import (
    SOURCE_KEYS,
    DamagedEpisode,
    load_episode,
    save_episode,
    scan,
    stored_keys,
)
from veorl_tf.data.synthetic import random_episode


def episode(length=7, seed=0, actions=4, size=8):
    return random_episode(length, seed, actions, size)


@pytest.mark.parametrize("seed", range(8))
def test_round_trip(tmp_path, seed):
    r = np.random.default_rng(seed)
    written = episode(int(r.integers(1, 40)), seed, int(r.integers(1, 13)), int(r.integers(1, 20)))
    path = save_episode(tmp_path, written)
    stamp, ident, length = path.stem.split("-")
    assert len(stamp) == 15 and len(ident) == 32 and int(length) == len(written["image"])
    read = load_episode(path)
    assert set(read) == set(written)
    for key in written:
        np.testing.assert_array_equal(read[key], written[key])
        assert read[key].dtype == written[key].dtype


def test_equal_arrays_give_equal_bytes(tmp_path):
    one = save_episode(tmp_path / "a", episode(), stamp="20240101T000000", ident="0" * 32)
    two = save_episode(tmp_path / "b", episode(), stamp="20240101T000000", ident="0" * 32)
    assert one.name == two.name == f"20240101T000000-{'0' * 32}-7.npz"
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert all(info.compress_type == zipfile.ZIP_DEFLATED for info in archive.infolist())


def test_stored_types(tmp_path):
    data = episode() | {
        "reward": np.arange(7.0),
        "success": np.arange(7) > 3,
        "count": np.arange(7),
    }
    with np.load(save_episode(tmp_path, data)) as archive:
        assert archive["reward"].dtype == np.float32 and archive["count"].dtype == np.int32
        assert archive["success"].dtype == np.uint8 and archive["image"].dtype == np.uint8


def test_files_of_the_original_repositories(tmp_path):
    """As np.savez_compressed writes: further keys, a wrong length in the name, optional gone."""
    data = episode(9)
    del data["discount"], data["success"]
    path = tmp_path / "20220101T000000-0123-500.npz"
    np.savez_compressed(
        path, **data, logprob=np.zeros(9), state=np.zeros((9, 39)), meta=np.array([{}] * 9)
    )
    read = load_episode(path)
    assert set(read) == {"image", "action", "reward", "discount", "success"}
    assert (
        (read["discount"] == 1).all()
        and (read["success"] == 0).all()
        and len(read["discount"]) == 9
    )
    assert scan(tmp_path)[0][0].length == 9


def test_other_number_types_become_float32(tmp_path):
    data = episode() | {
        "action": np.eye(7, dtype=np.int64),
        "reward": np.ones((7, 1)),
        "discount": np.ones(7, bool),
    }
    np.savez(tmp_path / "a.npz", **data)
    read = load_episode(tmp_path / "a.npz")
    assert {
        key: array.dtype.name for key, array in read.items() if key != "image"
    } == dict.fromkeys(("action", "reward", "discount", "success"), "float32")
    assert read["reward"].shape == (7,)


def test_a_source_video_needs_images_alone(tmp_path):
    path = save_episode(tmp_path, {"image": episode()["image"]}, name="clip.npz")
    assert path.name == "clip.npz" and list(load_episode(path, SOURCE_KEYS)) == ["image"]
    assert len(scan(tmp_path, "source")[0]) == 1
    with pytest.raises(DamagedEpisode, match="'action' is missing; found: image"):
        load_episode(path)
    # A target episode serves as a video, whatever its other arrays are.
    np.savez(tmp_path / "other.npz", image=episode()["image"], reward=np.zeros(3))
    assert len(scan(tmp_path, "source")[0]) == 2 and len(scan(tmp_path, "target")[1]) == 2


def test_ends_and_grey_pictures_of_others(tmp_path):
    data = {key: value for key, value in episode().items() if key in ("action", "reward")}
    grey = np.arange(7 * 16 * 20, dtype=np.uint8).reshape(7, 16, 20)
    rows = np.arange(7)
    kinds = [
        (grey, {"is_terminal": rows == 6}, 0),
        (grey[..., None], {"discount": np.full(7, 0.9), "is_terminal": rows == 6}, 1),
        (grey[:, None], {"discount": 0.5 * (rows < 6)}, 0),
    ]
    for i, (image, ends, last) in enumerate(kinds):
        path = tmp_path / f"{i}.npz"
        np.savez(path, image=image, is_first=rows == 0, **data, **ends)
        read = load_episode(path)
        np.testing.assert_array_equal(read["image"], np.repeat(grey[..., None], 3, -1))
        assert read["discount"].tolist() == [1] * 6 + [last]
        assert stored_keys(path) == ("image", "action", "reward", "discount")
    infos, damaged = scan(tmp_path)
    assert [info.image_shape for info in infos] == [(16, 20, 3)] * 3 and not damaged


BAD = {
    "image is float32": {"image": np.zeros((7, 8, 8, 3), np.float32)},
    r"image is uint8 \[7, 8, 8\]": {"image": np.zeros((7, 8, 8), np.uint8)},
    r"image is uint8 \[7, 8, 8, 4\]": {"image": np.zeros((7, 8, 8, 4), np.uint8)},
    r"image is uint8 \[0, 8, 8, 3\]": {"image": np.zeros((0, 8, 8, 3), np.uint8)},
    r"image is uint8 \[\]": {"image": np.uint8(3)},
    r"action is \[6, 4\]; \[7, A\]": {"action": np.zeros((6, 4))},
    r"action is \[7\]": {"action": np.zeros(7)},
    r"reward is \[8\]; \[7\]": {"reward": np.zeros(8)},
    r"reward is \[7, 2\]": {"reward": np.zeros((7, 2))},
    "discount is <U1": {"discount": np.array(["a"] * 7)},
    "reward holds a number that is not finite, in row 2": {
        "reward": np.array([0, 1, np.nan, 0, 0, 0, 0])
    },
    "action holds a number that is not finite, in row 0": {"action": np.full((7, 4), np.inf)},
    "success holds pickled Python objects": {"success": np.array([{}] * 7)},
}


@pytest.mark.parametrize("reason", BAD)
def test_malformed_arrays(tmp_path, reason):
    path = tmp_path / "bad.npz"
    np.savez(path, **episode() | BAD[reason])
    with pytest.raises(DamagedEpisode, match=reason) as caught:
        load_episode(path)
    assert caught.value.path == path and str(path) in str(caught.value)
    if "finite" not in reason:
        assert [e.path for e in scan(tmp_path)[1]] == [path]


def test_saving_refuses_what_loading_would(tmp_path):
    for bad in (
        {"image": np.zeros((7, 8, 8), np.uint8)},
        {"reward": np.zeros(6)},
        {"reward": np.full(7, np.nan)},
    ):
        with pytest.raises(DamagedEpisode):
            save_episode(tmp_path, episode() | bad)
    with pytest.raises(ValueError, match="ident"):
        save_episode(tmp_path, episode(), ident="xyz")
    assert not list(tmp_path.iterdir())


class Explosive:
    fired = False

    def __reduce__(self):
        return setattr, (Explosive, "fired", True)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, **episode() | {"reward": np.array([Explosive()] * 7)})
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Explosive()))
    for name in ("evil.npz", "raw.npz"):
        with pytest.raises(DamagedEpisode):
            load_episode(tmp_path / name)
    assert len(scan(tmp_path)[1]) == 2
    assert not Explosive.fired


@pytest.mark.parametrize("spoil", ["empty", "half", "text", "flipped"])
def test_damaged_files(tmp_path, spoil):
    path = save_episode(tmp_path, episode(40), name="a.npz")
    data = bytearray(path.read_bytes())
    if spoil == "flipped":
        for i in range(len(data) // 3, len(data) // 3 + 40):
            data[i] ^= 0x5A
    path.write_bytes(
        {"empty": b"", "half": data[: len(data) // 2], "text": b"not an archive", "flipped": data}[
            spoil
        ]
    )
    with pytest.raises(DamagedEpisode) as caught:
        load_episode(path)
    assert "\n" not in str(caught.value)
    assert len(scan(tmp_path)[1]) == (spoil != "flipped")  # data are read later


def test_scan(tmp_path):
    for i in (2, 0, 1):
        save_episode(tmp_path, episode(5 + i), name=f"{i}.npz")
    (tmp_path / ".x.host-1-00000000.tmp").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    infos, damaged = scan(tmp_path)
    assert [(i.path.name, i.length, i.image_shape, i.action_size) for i in infos] == [
        (f"{i}.npz", 5 + i, (8, 8, 3), 4) for i in range(3)
    ] and not damaged
    assert infos[0].size == (tmp_path / "0.npz").stat().st_size
    with pytest.raises(UserError, match="no such directory"):
        scan(tmp_path / "missing")


def test_what_is_no_array_is_passed_by(tmp_path):
    """As NumPy does; a text under an array's name hides no array."""
    path = save_episode(tmp_path, episode(), "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
        archive.writestr("image", "no array")
    np.testing.assert_array_equal(load_episode(path)["image"], episode()["image"])
    assert [info.length for info in scan(tmp_path)[0]] == [7] and not scan(tmp_path)[1]
