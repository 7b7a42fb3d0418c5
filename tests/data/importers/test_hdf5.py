"""V-D4RL's shards as h5py writes them, and Minari datasets as the library writes them."""

import json
import os

import h5py
import numpy as np
import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers import hdf5
from veorl_tf.data.importers.base import Item, Options, Unreadable, aligned
from veorl_tf.data.importers.minari import Minari, action_space
from veorl_tf.data.importers.npz import DreamerV3Replay, Episodes
from veorl_tf.data.importers.vd4rl import VD4RL

pytestmark = pytest.mark.filterwarnings("ignore:.*None:UserWarning:minari")
OPTIONS = Options()
SHARDS, MINARI = VD4RL(), Minari()


def listed(reader, source, options=OPTIONS):
    """Items of a source, and what was left out: {name: reason}."""
    left = []
    items = list(reader.items(source, options, left.append))
    assert len({item.name for item in items}) == len(items)
    json.dumps([dict(item.spec) for item in items])
    return items, {problem.name: problem.reason for problem in left}


def shown(action, size=40) -> np.ndarray:
    """Pictures `[n, size, size, 3]` whose grey tells the action, -1 to 1, that led to them."""
    grey = np.round(100 + 100 * np.asarray(action)).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (len(grey), size, size, 3)).copy()


def read_off(pictures) -> np.ndarray:
    return (np.array([picture.mean() for picture in pictures]) - 100) / 100


def world(length, seed=0):
    """A toy world's n - 1 chosen actions in -1 to 1, its n pictures, and the rewards of arriving
    at each, 0, 1, 2, ..."""
    chosen = np.random.default_rng(seed).integers(-100, 101, length - 1) / 100
    return chosen, shown(np.concatenate([[0], chosen])), np.arange(length, dtype=np.float64)


def check_alignment(arrays, reader, tolerance=1e-6):
    """After `aligned`, row t holds the action that picture t shows and the reward of arriving."""
    out = aligned(arrays, reader.alignment)
    assert not out["action"][0].any() and out["reward"][0] == 0
    seen = read_off(arrays["image"])
    np.testing.assert_allclose(out["action"][1:, 0], seen[1:], atol=tolerance)
    return out


# ---- V-D4RL


def shard(path, lengths=(5, 7, 4), begun=True, **changed):
    """Episodes one after the other, as V-D4RL's converter writes them."""
    parts = []
    for seed, length in enumerate(lengths):
        chosen, image, reward = world(length, seed)
        rows = np.arange(length)
        parts.append(
            {
                "observation": np.moveaxis(image, -1, 1),
                "action": np.concatenate([[0], chosen]).astype(np.float32)[:, None],
                "reward": reward.astype(np.float32),
                "discount": np.ones(length, np.float32),
                "step_type": np.where(rows == 0, 0, np.where(rows == length - 1, 2, 1)),
            }
        )
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if not begun:
        whole = {key: array[2:] for key, array in whole.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in (whole | changed).items():
            if array is not None:
                file.create_dataset(key, data=array, compression="gzip")
    return path


def test_shard_alignment(tmp_path):
    discount = np.ones(16, np.float32)
    discount[4] = 0
    shard(tmp_path / "a.hdf5", discount=discount)
    items, left = listed(SHARDS, tmp_path)
    assert [item.name for item in items] == ["a.hdf5-0", "a.hdf5-1", "a.hdf5-2"] and not left
    for seed, (item, length) in enumerate(zip(items, (5, 7, 4))):
        arrays = SHARDS.episode(tmp_path, item, OPTIONS)
        np.testing.assert_array_equal(arrays["image"], world(length, seed)[1])
        out = check_alignment(arrays, SHARDS)
        np.testing.assert_array_equal(out["reward"], np.arange(length))
        np.testing.assert_array_equal(out["discount"] == 0, (np.arange(length) == 4) & (seed == 0))
        numbers = SHARDS.numbers(tmp_path, item, OPTIONS)
        np.testing.assert_array_equal(numbers["action"], arrays["action"])
        np.testing.assert_array_equal(numbers["bounds"], [[-1], [1]])


def test_shards_of_a_tree(tmp_path):
    for name in ("walker_10.hdf5", "walker_9.hdf5", "84px/b.h5"):
        shard(tmp_path / name, (3,), begun=name[0] != "8")
    items, left = listed(SHARDS, tmp_path)
    assert [item.files[0] for item in items] == ["walker_9.hdf5", "walker_10.hdf5", "84px/b.h5"]
    assert items[2].spec == {"rows": [0, 1]} and not left
    single = tmp_path / "walker_9.hdf5"
    assert SHARDS.detect(single) and len(listed(SHARDS, single)[0]) == 1


def test_a_shard_that_begins_within_an_episode(tmp_path):
    shard(tmp_path / "a.hdf5", (6, 3), begun=False)
    items, _ = listed(SHARDS, tmp_path)
    assert [item.spec["rows"] for item in items] == [[0, 4], [4, 7]]
    check_alignment(SHARDS.episode(tmp_path, items[0], OPTIONS), SHARDS)


def test_what_is_detected(tmp_path, minari_set):
    empty, other, shards = (tmp_path / name for name in ("empty", "other", "shards"))
    empty.mkdir()
    other.mkdir()
    np.savez(other / "episode.npz", image=np.zeros((3, 4, 4, 3), np.uint8))
    (other / "text.hdf5").write_text("no HDF5")
    with h5py.File(other / "robomimic.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros(3)
    shard(shards / "a.hdf5", (3,))
    dataset = minari_set("toy-v0")
    for reader, own in ((SHARDS, shards), (MINARI, dataset)):
        assert [reader.detect(p) for p in (empty, other, shards, dataset)] == [
            p == own for p in (empty, other, shards, dataset)
        ]
    for reader in (Episodes(), DreamerV3Replay()):
        assert not reader.detect(shards) and not reader.detect(dataset)


def spoil_head(path):
    content = bytearray(path.read_bytes())
    content[8:600] = bytes(592)
    path.write_bytes(content)


def link(path, key, to):
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = to


def grouped(path, key):
    with h5py.File(path, "r+") as file:
        del file[key]
        file.create_group(key)


def outside(path, key, tmp_path):
    """An array whose numbers lie in another file."""
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    with h5py.File(path, "r+") as file:
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        file.create_dataset(key, shape, dtype, external=[(str(tmp_path / "secret"), 0, 1 << 16)])


def virtual(path, key, tmp_path):
    other = shard(tmp_path / "elsewhere" / "other.hdf5")
    with h5py.File(path, "r+") as file:
        shape, dtype = file[key].shape, file[key].dtype
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(str(other), key, shape)
        del file[key]
        file.create_virtual_dataset(key, layout)


def unknown_filter(path, key):
    """Renames a compressed array's filter to one that nobody has."""
    content = path.read_bytes()
    assert content.count(b"deflate\0") >= 1
    at = content.index(b"deflate\0")
    path.write_bytes(content[: at - 8] + b"\x99\x7f" + content[at - 6 :])
    with h5py.File(path) as file:
        assert any(
            file[k].id.get_create_plist().get_filter(0)[0] == 0x7F99 for k in file if file[k].chunks
        )


def declared(path, key, shape, dtype="u1", chunks=None):
    with h5py.File(path, "r+") as file:
        del file[key]
        file.create_dataset(key, shape, dtype, chunks=chunks or (1, *shape[1:]))


SPOILT = {
    "empty": lambda p, t: p.write_bytes(b""),
    "text": lambda p, t: p.write_text("no HDF5"),
    "cut": lambda p, t: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "head": lambda p, t: spoil_head(p),
    "missing": lambda p, t: shard(p, reward=None),
    "short": lambda p, t: shard(p, action=np.zeros((15, 1))),
    "flat": lambda p, t: shard(p, action=np.zeros(16)),
    "words": lambda p, t: shard(p, reward=np.array([b"a"] * 16)),
    "objects": lambda p, t: shard(p, reward=np.array(["a"] * 16, object)),
    "nan": lambda p, t: shard(p, reward=np.full(16, np.nan)),
    "no picture": lambda p, t: shard(p, observation=np.zeros((16, 9, 8, 8), np.uint8)),
    "floats": lambda p, t: shard(p, observation=np.zeros((16, 3, 8, 8), np.float32)),
    "huge": lambda p, t: declared(p, "observation", (16, 3, 30000, 30000), chunks=(1, 3, 99, 99)),
    "long": lambda p, t: declared(p, "step_type", (1 << 40,), chunks=(1,)),
    "wide": lambda p, t: declared(p, "action", (16, 1 << 40), "f4", chunks=(1, 9)),
    "soft": lambda p, t: link(p, "reward", h5py.SoftLink("/discount")),
    "external": lambda p, t: link(p, "reward", h5py.ExternalLink("/etc/passwd", "/reward")),
    "group": lambda p, t: grouped(p, "reward"),
    "outside": lambda p, t: outside(p, "reward", t),
    "virtual": lambda p, t: virtual(p, "reward", t),
    "filter": lambda p, t: unknown_filter(p, "observation"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damaged_shards_are_told(tmp_path, kind):
    source = tmp_path / "source"
    path = shard(source / "a.hdf5")
    known, _ = listed(SHARDS, source)
    SPOILT[kind](path, tmp_path)
    SHARDS.detect(source)
    items, left = listed(SHARDS, source)
    assert set(left) <= {"a.hdf5"} and bool(left) != bool(items)
    told = list(left.values())
    for item in known:
        try:
            SHARDS.episode(source, item, OPTIONS)
        except Unreadable as problem:
            assert problem.name.startswith("a.hdf5")
            told.append(problem.reason)
    assert told and all(reason and "\n" not in reason for reason in told)


# ---- Minari


@pytest.fixture
def minari_set(tmp_path, monkeypatch):
    """`minari_set(name, ...)`: a dataset as the library writes it; returns its folder."""
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    minari = pytest.importorskip("minari")
    from gymnasium import spaces

    def make(name, lengths=(5, 12), action=None, wrap=None, act=None, size=40, jpeg=True):
        """Pictures show the action, which is twice that in -1 to 1: a Box of -2 to 2."""
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        buffers = []
        for seed, length in enumerate(lengths):
            chosen, image, reward = world(length, seed)
            image = image[:, :size, :size]
            ended = np.arange(length - 1) == length - 2
            buffers.append(
                minari.data_collector.EpisodeBuffer(
                    id=seed,
                    observations=wrap(image)[1] if wrap else image,
                    actions=act(chosen) if act else (2 * chosen[:, None]).astype(np.float32),
                    rewards=list(reward[1:]),
                    terminations=list(ended & (seed == 0)),
                    truncations=list(ended & (seed > 0)),
                )
            )
        minari.create_dataset_from_buffers(
            dataset_id=name,
            buffer=buffers,
            observation_space=wrap(image)[0](picture) if wrap else picture,
            action_space=action or spaces.Box(-2, 2, (1,), np.float32),
            data_format="hdf5",
            jpeg_encoding=jpeg,
        )
        return root / name

    return make


def nested(image):
    """A Dict of pictures and a state, with the pictures one level deeper."""
    from gymnasium import spaces

    n = len(image)

    def space(picture):
        state = spaces.Box(-1, 1, (3,), np.float64)
        return spaces.Dict(camera=spaces.Dict(rgb=picture), state=state)

    return space, {"camera": {"rgb": image}, "state": np.zeros((n, 3))}


def two(image):
    from gymnasium import spaces

    return (lambda p: spaces.Dict(front=p, wrist=p)), {"front": image, "wrist": image[:, ::-1]}


@pytest.mark.parametrize("wrap", (None, nested))
@pytest.mark.parametrize("jpeg", (True, False))
def test_minari_alignment(minari_set, wrap, jpeg):
    source = minari_set("toy-v0", wrap=wrap, jpeg=jpeg)
    items, left = listed(MINARI, source)
    assert [item.name for item in items] == ["data/episode_0", "data/episode_1"] and not left
    for seed, (item, length) in enumerate(zip(items, (5, 12))):
        arrays = MINARI.episode(source, item, OPTIONS)
        assert len(arrays["image"]) == length and len(arrays["action"]) == length - 1
        arrays["action"] = arrays["action"] / 2
        out = check_alignment(arrays, MINARI, tolerance=0.011 if jpeg else 1e-6)
        np.testing.assert_array_equal(out["reward"], np.arange(length))
        last = np.arange(length) == length - 1
        np.testing.assert_array_equal(out["discount"] == 0, last & (seed == 0))
        np.testing.assert_array_equal(arrays["bounds"], [[-2], [2]])
        numbers = MINARI.numbers(source, item, OPTIONS)
        np.testing.assert_array_equal(numbers["action"], 2 * arrays["action"])


def test_small_pictures_are_arrays(minari_set):
    source = minari_set("small-v0", size=8)
    items, _ = listed(MINARI, source)
    assert MINARI.episode(source, items[0], OPTIONS)["image"].shape == (5, 8, 8, 3)


def test_grey_pictures_without_channels(minari_set):
    """As Atari's have it: [n, H, W]. Beside pictures with channels such an array is a mask."""
    source = minari_set("small-v0", size=16, jpeg=False)
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        for group in file.values():
            coloured = group["observations"][:]
            del group["observations"]
            group["observations/seen"] = coloured[..., 0]
    (item, _), _ = listed(MINARI, source)
    image = MINARI.episode(source, item, OPTIONS)["image"]
    np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, -1))
    assert image.shape == (5, 16, 16, 3)
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        for group in file.values():
            shape = (*group["observations/seen"].shape, 3)
            group["observations/camera"] = np.zeros(shape, np.uint8)
    assert listed(MINARI, source)[0][0].spec["image"] == "observations/camera"
    options = Options(image_key="seen")
    assert listed(MINARI, source, options)[0][0].spec["image"] == "observations/seen"


def test_where_a_source_may_point(minari_set):
    source = minari_set("toy-v0")
    minari_set("space/other-v2")
    root = source.parent
    assert [i.name for i in listed(MINARI, source / "data" / "main_data.hdf5")[0]] == [
        "episode_0",
        "episode_1",
    ]
    names = [item.name for item in listed(MINARI, root)[0]]
    assert names[0] == "space/other-v2/data/episode_0" and names[3] == "toy-v0/data/episode_1"
    assert all(MINARI.detect(p) for p in (source, root, source / "data" / "main_data.hdf5"))


def test_many_episodes_in_natural_order(minari_set):
    items, _ = listed(MINARI, minari_set("many-v0", lengths=(3,) * 12, size=8))
    assert [item.spec["group"] for item in items] == [f"episode_{i}" for i in range(12)]


def test_which_pictures(minari_set):
    source = minari_set("two-v0", wrap=two)
    with pytest.raises(UserError, match="--image_key: observations/front, observations/wrist"):
        listed(MINARI, source)
    for key in ("wrist", "observations/wrist"):
        items, _ = listed(MINARI, source, Options(image_key=key))
        assert items[0].spec["image"] == "observations/wrist"
    with pytest.raises(UserError, match="--image_key side: no pictures; found: .*front"):
        listed(MINARI, source, Options(image_key="side"))


def test_discrete_actions_become_one_hot(minari_set):
    from gymnasium import spaces

    def act(chosen):
        return np.where(chosen > 0, 2, 1)

    source = minari_set("a-v0", action=spaces.Discrete(3, start=1), act=act)
    items, _ = listed(MINARI, source)
    arrays = MINARI.episode(source, items[0], OPTIONS)
    chosen = world(5)[0]
    np.testing.assert_array_equal(arrays["action"], np.eye(3)[np.where(chosen > 0, 1, 0)])
    assert "bounds" not in arrays
    out = aligned(arrays, MINARI.alignment)
    np.testing.assert_array_equal(out["action"][1:, 1], chosen > 0)
    table = source / "data" / "metadata.json"
    content = json.loads(table.read_text())
    content["action_space"] = json.dumps({"type": "Discrete", "n": 1, "start": 1})
    table.write_text(json.dumps(content))
    items, _ = listed(MINARI, source)
    with pytest.raises(Unreadable, match="integers of 0 to 0"):
        MINARI.episode(source, items[0], OPTIONS)
    table.unlink()
    with pytest.raises(Unreadable, match="no metadata"):
        MINARI.numbers(source, listed(MINARI, source)[0][0], OPTIONS)


def test_action_of_a_dict(minari_set):
    from gymnasium import spaces

    space = spaces.Dict(arm=spaces.Box(-2, 2, (1,), np.float32), grip=spaces.MultiDiscrete([2, 3]))

    def act(chosen):
        grip = np.stack([chosen > 0, np.full(len(chosen), 2)], 1).astype(int)
        return {"arm": (2 * chosen[:, None]).astype(np.float32), "grip": grip}

    source = minari_set("d-v0", action=space, act=act)
    for key, bounded, size in (("arm", True, 1), ("grip", False, 5)):
        options = Options(action_key=key)
        arrays = MINARI.episode(source, listed(MINARI, source, options)[0][0], options)
        assert arrays["action"].shape == (4, size) and ("bounds" in arrays) == bounded
    np.testing.assert_array_equal(arrays["action"][:, 2:], [[0, 0, 1]] * 4)
    (item, _), _ = listed(MINARI, source)
    words = "no array but has parts; name one with --action_key: arm, grip"
    with pytest.raises(Unreadable, match=words):
        MINARI.episode(source, item, OPTIONS)
    with pytest.raises(UserError, match=words):
        MINARI.numbers(source, item, OPTIONS)
    with pytest.raises(UserError, match="no space of actions leg"):
        listed(MINARI, source, Options(action_key="leg"))


def test_spaces():
    box = {"type": "Box", "low": [[-1.0, -2.0]], "high": [[1.0, 2.0]]}
    assert action_space(json.dumps(box), "", "x") == {"low": [-1, -2], "high": [1, 2]}
    assert action_space(json.dumps({"type": "MultiBinary", "n": 2}), "", "x")["high"] == [1, 1]
    assert action_space(None, "", "x") == {} == action_space('{"type": "Text"}', "", "x")
    for text in (
        "[",
        "[]",
        '{"type": "Box"}',
        '{"type": "Box", "low": [1], "high": [[]]}',
        '{"type": "Discrete", "n": "many"}',
        '{"type": "Discrete", "n": 1e30}',
        '{"type": "Discrete", "n": 0}',
        '{"type": "Discrete", "n": 1000000000}',
        "[" * 100_000,
    ):
        with pytest.raises(UserError, match="^x: "):
            action_space(text, "", "x")


def test_infinite_bounds_are_none(minari_set):
    from gymnasium import spaces

    source = minari_set("inf-v0", action=spaces.Box(-np.inf, np.inf, (1,), np.float32))
    arrays = MINARI.episode(source, listed(MINARI, source)[0][0], OPTIONS)
    assert "bounds" not in arrays and arrays["action"].shape == (4, 1)


def test_old_datasets_keep_the_space_in_the_file(minari_set):
    source = minari_set("toy-v0", jpeg=False)
    table = source / "data" / "metadata.json"
    space = json.loads(table.read_text())["action_space"]
    table.unlink()
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        file.attrs["action_space"] = space
    arrays = MINARI.episode(source, listed(MINARI, source)[0][0], OPTIONS)
    np.testing.assert_array_equal(arrays["bounds"], [[-2], [2]])


@pytest.mark.parametrize("text", ("no JSON", "[]", "\xff", "[" * 100_000))
def test_metadata_that_are_none(minari_set, text):
    source = minari_set("toy-v0")
    (source / "data" / "metadata.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match="metadata.json"):
        listed(MINARI, source)


def test_metadata_outside(minari_set, tmp_path):
    source = minari_set("toy-v0")
    table = source / "data" / "metadata.json"
    table.rename(tmp_path / "elsewhere.json")
    table.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="outside"):
        listed(MINARI, source)


def group_changes():
    """Ways to spoil the first episode of a dataset."""

    def put(key, value):
        def change(file):
            del file[f"episode_0/{key}"]
            file[f"episode_0/{key}"] = value

        return change

    def bad_jpeg(file):
        array = file["episode_0/observations"]
        row = array[1]
        array[1] = np.zeros_like(row) if array.ndim == 2 else row[: len(row) // 2]

    def circle(file):
        del file["episode_0/observations"]
        group = file.create_group("episode_0/observations")
        for i in range(20):
            group[f"again{i}"] = group

    return {
        "soft": put("rewards", h5py.SoftLink("/episode_1/rewards")),
        "external": put("observations", h5py.ExternalLink("/etc/passwd", "/x")),
        "external group": lambda file: (
            file.pop("episode_0"),
            file.__setitem__("episode_0", h5py.ExternalLink("/etc/passwd", "/")),
        ),
        "text": put("actions", ["a", "b", "c", "d"]),
        "short": put("rewards", np.zeros(3)),
        "long": put("observations", np.zeros((9, 8, 8, 3), np.uint8)),
        "scalar": put("actions", 3.0),
        "nan": put("actions", np.full((4, 1), np.nan)),
        "wide": put("actions", np.zeros((4, 2))),
        "empty": put("actions", h5py.Empty("f4")),
        "no pictures": put("observations", np.zeros((5, 3))),
        "picture": bad_jpeg,
        "circle": circle,
        "dataset": lambda file: (file.pop("episode_0"), file.__setitem__("episode_0", [1, 2])),
    }


@pytest.mark.parametrize("kind", group_changes())
def test_one_damaged_episode_leaves_the_others(minari_set, kind):
    source = minari_set("toy-v0")
    known, _ = listed(MINARI, source)
    with h5py.File(source / "data" / "main_data.hdf5", "r+") as file:
        group_changes()[kind](file)
    assert MINARI.detect(source)
    with pytest.raises(Unreadable) as told:
        MINARI.episode(source, known[0], OPTIONS)
    assert told.value.name.startswith("data/episode_0") and "\n" not in str(told.value)
    assert len(MINARI.episode(source, known[1], OPTIONS)["image"]) == 12
    items, left = listed(MINARI, source)
    assert items == known or (kind in ("no pictures", "long", "circle") and (left or items))


def test_a_dataset_that_is_cut(minari_set):
    source = minari_set("toy-v0")
    path = source / "data" / "main_data.hdf5"
    known, _ = listed(MINARI, source)
    for content in (b"", b"text", path.read_bytes()[:3000]):
        path.write_bytes(content)
        assert MINARI.detect(source)
        items, left = listed(MINARI, source)
        assert not items and list(left) == ["data/main_data.hdf5"]
        with pytest.raises(Unreadable):
            MINARI.episode(source, known[0], OPTIONS)


def test_files_outside_are_not_read(tmp_path, minari_set):
    source = tmp_path / "source"
    source.mkdir()
    shard(tmp_path / "secret.hdf5")
    (source / "link.hdf5").symlink_to(tmp_path / "secret.hdf5")
    os.mkfifo(source / "pipe.hdf5")
    assert SHARDS.detect(source)  # names and heads alone
    items, left = listed(SHARDS, source)
    assert not items and "outside" in left["link.hdf5"]
    with pytest.raises(Unreadable, match="outside"):
        SHARDS.episode(source, Item("x", ("../secret.hdf5",), {"rows": [0, 5]}), OPTIONS)


def test_pictures_of_too_many_bytes(minari_set, monkeypatch):
    source = minari_set("toy-v0")
    (item, _), _ = listed(MINARI, source)
    monkeypatch.setattr(hdf5, "MAX_BYTES", 3 * 40 * 40 * 3)
    with pytest.raises(Unreadable, match="pictures of more"):
        MINARI.episode(source, item, OPTIONS)
