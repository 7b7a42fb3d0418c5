"""Episodes as the original collectors write them, and DreamerV3's replay chunks."""

import zipfile

import numpy as np
import pytest

from veorl_tf.data.episodes import save_episode
from veorl_tf.data.importers import base
from veorl_tf.data.importers.base import Item, Options, Unreadable, aligned
from veorl_tf.data.importers.npz import DreamerV3Replay, Episodes, chains
from veorl_tf.data.synthetic import random_episode

OPTIONS = Options()
EPISODES, REPLAY = Episodes(), DreamerV3Replay()
NONE = "0" * 22  # the successor of a chain's last chunk


def listed(reader, source, options=OPTIONS):
    """Items of a source, and what was left out: {name: reason}."""
    left = []
    items = list(reader.items(source, options, left.append))
    assert len({item.name for item in items}) == len(items)
    return items, {problem.name: problem.reason for problem in left}


def only(reader, source, options=OPTIONS):
    """The arrays of a source's one item."""
    items, left = listed(reader, source, options)
    assert len(items) == 1 and not left
    return reader.episode(source, items[0], options)


def shown(action) -> np.ndarray:
    """Pictures that show the actions `[n, A]` that led to them, -1 to 1, in their first numbers."""
    pictures = np.zeros((len(action), 4, 6, 3), np.uint8)
    for i, column in enumerate(np.asarray(action).T):
        pictures[:, i] = np.round(100 + 100 * column).astype(np.uint8)[:, None, None]
    return pictures


def read_off(pictures, size) -> np.ndarray:
    """The actions that pictures show."""
    return (np.stack(pictures)[:, :size, 0, 0].astype(np.float32) - 100) / 100


def world(length, actions=2, seed=0):
    """A toy world's steps: chosen actions `[n - 1, A]`, then pictures, and rewards 1, 2, ... of the
    arrivals; row 0 is the reset's."""
    r = np.random.default_rng(seed)
    chosen = (r.integers(-100, 101, (length - 1, actions)) / 100).astype(np.float32)
    led = np.concatenate([np.zeros((1, actions), np.float32), chosen])
    return chosen, shown(led), np.arange(length, dtype=np.float32)


def check_alignment(arrays, reader, size=2):
    """After `aligned`, row t holds the action that picture t shows and the reward of arriving."""
    out = aligned(arrays, reader.alignment)
    assert not out["action"][0].any() and out["reward"][0] == 0
    np.testing.assert_allclose(out["action"][1:], read_off(arrays["image"], size)[1:], atol=1e-6)
    return out


# ---- episodes


def official(path, length=6, **more):
    """An episode as the original collectors write it."""
    chosen, image, reward = world(length)
    action = np.concatenate([np.zeros((1, 2), np.float32), chosen])
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"image": image, "action": action, "reward": reward, **more}
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_episode_alignment(tmp_path):
    discount = np.array([1, 1, 1, 1, 1, 0], np.float32)
    official(tmp_path / "a.npz", discount=discount, is_terminal=np.zeros(6, bool))
    out = check_alignment(only(EPISODES, tmp_path), EPISODES)
    np.testing.assert_array_equal(out["reward"], range(6))
    np.testing.assert_array_equal(out["discount"], discount)
    numbers = EPISODES.numbers(tmp_path, Item("a", ("a.npz",)), OPTIONS)
    np.testing.assert_array_equal(numbers["action"], out["action"])
    assert "bounds" not in numbers


def test_terminal_without_discount(tmp_path):
    official(tmp_path / "a.npz", is_terminal=np.arange(6) == 5)
    arrays = only(EPISODES, tmp_path)
    np.testing.assert_array_equal(arrays["terminal"], np.arange(6) == 5)
    official(tmp_path / "a.npz", is_terminal=np.zeros(5, bool))
    with pytest.raises(Unreadable, match="is_terminal"):
        only(EPISODES, tmp_path)


def test_own_episodes_and_videos_come_back_equal(tmp_path):
    written = random_episode(7, 3, 4, 16)
    save_episode(tmp_path / "one", written)
    arrays = only(EPISODES, tmp_path / "one")
    out = {"image": arrays["image"], **aligned(arrays, EPISODES.alignment)}
    for key in ("image", "action", "reward", "discount", "success"):
        np.testing.assert_array_equal(out[key], written[key])
    save_episode(tmp_path / "two", {"image": written["image"]})
    assert set(only(EPISODES, tmp_path / "two")) == {"image"}
    item = listed(EPISODES, tmp_path / "two")[0][0]
    assert EPISODES.numbers(tmp_path / "two", item, OPTIONS) == {}


def test_episodes_of_a_tree_in_natural_order(tmp_path):
    for name in ("ep_10.npz", "ep_9.npz", "train_episodes/a.npz", ".hidden.npz", "notes.txt"):
        official(tmp_path / name).rename(tmp_path / name) if name.endswith(".npz") else (
            tmp_path / name
        ).write_text("")
    items, left = listed(EPISODES, tmp_path)
    assert [item.name for item in items] == ["ep_9", "ep_10", "train_episodes/a"] and not left
    assert items == listed(EPISODES, tmp_path)[0]
    single = tmp_path / "ep_9.npz"
    assert EPISODES.detect(single) and len(only(EPISODES, single)["image"]) == 6


def test_what_is_detected(tmp_path):
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "a.mp4").write_bytes(b"\0" * 99)
    np.savez(other / "statistics.npz", mean=np.zeros(3))
    for reader in (EPISODES, REPLAY):
        assert not reader.detect(empty) and not reader.detect(other)
        assert not reader.detect(other / "a.mp4")
    official(tmp_path / "episodes" / "20220101T000000-0123abc-500.npz")
    assert EPISODES.detect(tmp_path / "episodes") and not REPLAY.detect(tmp_path / "episodes")
    replay(tmp_path / "replay", [steps(3)])
    assert REPLAY.detect(tmp_path / "replay") and not EPISODES.detect(tmp_path / "replay")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.npz").write_bytes(b"PK\x03\x04 cut")
    assert EPISODES.detect(tmp_path / "damaged")


def test_chunks_are_never_read_as_episodes(tmp_path):
    (path,) = replay(tmp_path, [steps(3)])
    items, left = listed(EPISODES, tmp_path)
    assert not items and "dreamerv3" in left[path.name]


def header_of(path, key, shape):
    """Rewrites an archive so that an array declares another shape."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = members[f"{key}.npy"]
    start, stop = content.index(b"("), content.index(b")")
    text = repr(shape).encode()
    head = content[:start] + text + content[stop + 1 :]
    end = head.index(b"\n")
    head = head[: end - (len(text) - (stop + 1 - start))] + head[end:]
    members[f"{key}.npy"] = head
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def damages(path):
    """Ways to spoil an .npz, by name."""
    whole = path.read_bytes()
    with np.load(path) as archive:
        arrays = dict(archive)

    def save(**changed):
        np.savez(path, **(arrays | changed))

    def broken_python():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((\n\n")

    def swallowed():
        """The list's entry of the first array takes those of the others for its comment."""
        at = whole.index(b"PK\x01\x02")
        rest = whole.index(b"PK\x05\x06") - whole.index(b"PK\x01\x02", at + 4)
        path.write_bytes(whole[: at + 32] + rest.to_bytes(2, "little") + whole[at + 34 :])

    return {
        "swallowed": swallowed,
        "renamed": lambda: path.write_bytes(whole.replace(b"action.npy", b"action.npx")),
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "text": lambda: path.write_text("no archive"),
        "flipped": lambda: path.write_bytes(whole[:120] + b"\xff" * 9 + whole[129:]),
        "pickle": lambda: save(action=np.array([{}] * len(arrays["action"]))),
        "floats": lambda: save(image=arrays["image"].astype(np.float32)),
        "words": lambda: save(reward=np.array(["a"] * len(arrays["reward"]))),
        "short": lambda: save(action=arrays["action"][:-1]),
        "nan": lambda: save(action=arrays["action"] * np.float32(np.nan)),
        "missing": lambda: np.savez(path, image=arrays["image"], action=arrays["action"]),
        "huge": lambda: header_of(path, "image", (9, 30000, 30000, 3)),
        "long": lambda: header_of(path, "image", (1 << 40, 4, 6, 3)),
        "negative": lambda: header_of(path, "image", (-6, 4, 6, 3)),
        "python": broken_python,
        "image missing": lambda: np.savez(path, mean=np.zeros(3)),
    }


KINDS = tuple(
    "empty|cut|text|flipped|pickle|floats|words|short|nan|missing|huge|long|negative|python|"
    "image missing|swallowed|renamed".split("|")
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_episodes_are_told(tmp_path, kind):
    path = official(tmp_path / "ep.npz")
    np.savez(path, **np.load(path))  # not compressed: a flip lies within an array
    damages(path)[kind]()
    EPISODES.detect(tmp_path)
    items, left = listed(EPISODES, tmp_path)
    assert not left
    with pytest.raises(Unreadable) as told:
        EPISODES.episode(tmp_path, items[0], OPTIONS)
    assert told.value.name == "ep.npz" and told.value.reason and "\n" not in str(told.value)


def test_files_outside_are_not_read(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    official(tmp_path / "secret.npz")
    (source / "link.npz").symlink_to(tmp_path / "secret.npz")
    (source / "loop").symlink_to(source)
    (item,), _ = listed(EPISODES, source)
    for name in ("link.npz", "../secret.npz", str(tmp_path / "secret.npz")):
        with pytest.raises(Unreadable, match="outside"):
            EPISODES.episode(source, Item(item.name, (name,)), OPTIONS)


# ---- replay chunks


def steps(length, seed=0, ended=True, begun=True, actions=2, terminal=False):
    """An episode as `embodied`'s driver hands it to the replay: the action was chosen at the image,
    and is masked on the last step."""
    chosen, image, reward = world(length, actions, seed)
    last = np.zeros((1, actions), np.float32)
    rows = np.arange(length)
    is_last = (rows == length - 1) & ended
    return {
        "image": image,
        "action": np.concatenate([chosen, last]),
        "reward": reward,
        "is_first": (rows == 0) & begun,
        "is_last": is_last,
        "is_terminal": is_last & terminal,
        "stepid": np.zeros((length, 20), np.uint8),
    }


def name_of(number, successor, length):
    ident = str(number).rjust(22, "a")
    return f"20240101T0000{number:02d}F{number:06d}-{ident}-{successor}-{length}.npz"


def replay(folder, episodes, size=1024, first=0):
    """One environment's steps in a chain of chunks of `size` rows."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
    total, paths = len(stream["is_first"]), []
    for number, start in enumerate(range(0, total, size), first):
        part = {key: array[start : start + size] for key, array in stream.items()}
        more = start + size < total
        successor = str(number + 1).rjust(22, "a") if more else NONE
        paths.append(folder / name_of(number, successor, len(part["is_first"])))
        np.savez_compressed(paths[-1], **part)
    return paths


@pytest.mark.parametrize("size", (1, 3, 5, 7, 1024))
def test_replay_alignment(tmp_path, size):
    written = [steps(5, 0, terminal=True), steps(7, 1), steps(4, 2, ended=False)]
    replay(tmp_path, written, size)
    items, left = listed(REPLAY, tmp_path)
    assert len(items) == 3 and not left
    for item, episode in zip(items, written):
        arrays = REPLAY.episode(tmp_path, item, OPTIONS)
        np.testing.assert_array_equal(arrays["image"], episode["image"])
        out = check_alignment(arrays, REPLAY)
        np.testing.assert_array_equal(out["reward"], np.arange(len(episode["image"])))
        np.testing.assert_array_equal(out["discount"], 1 - episode["is_terminal"])
        np.testing.assert_array_equal(arrays["bounds"], [[-1, -1], [1, 1]])
        numbers = REPLAY.numbers(tmp_path, item, OPTIONS)
        np.testing.assert_array_equal(numbers["action"], arrays["action"])


def test_chains_of_several_environments(tmp_path):
    replay(tmp_path / "replay", [steps(5, 0), steps(6, 1)], 4, first=0)
    replay(tmp_path / "replay", [steps(3, 2), steps(9, 3)], 4, first=20)
    replay(tmp_path / "eval_replay", [steps(2, 4)], first=0)
    items, left = listed(REPLAY, tmp_path)
    lengths = [sum(b - a for a, b in item.spec["rows"]) for item in items]
    assert lengths == [2, 5, 6, 3, 9] and not left
    assert items[0].name == "eval_replay/" + name_of(0, NONE, 2).removesuffix(".npz") + "-0"


def test_stretches_at_the_ends_of_a_chain_stay(tmp_path):
    """The oldest chunks of a full replay are gone, and one in the middle is damaged."""
    paths = replay(tmp_path, [steps(10, 0), steps(10, 1), steps(10, 2)], 6)
    paths[0].unlink()
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    items, left = listed(REPLAY, tmp_path)
    assert list(left) == [paths[3].name]
    assert [item.spec["rows"] for item in items] == [[[0, 4]], [[4, 6], [0, 6]], [[0, 6]]]
    for item in items:
        arrays = REPLAY.episode(tmp_path, item, OPTIONS)
        check_alignment(arrays, REPLAY)


def test_circles_of_successors_end(tmp_path):
    (path,) = replay(tmp_path, [steps(4)])
    ident = path.name.split("-")[1]
    path.rename(tmp_path / name_of(0, ident, 4))
    assert len(listed(REPLAY, tmp_path)[0]) == 1
    for number in range(3):
        next_one = str((number + 1) % 3).rjust(22, "a")
        np.savez(tmp_path / name_of(number, next_one, 4), **steps(4, number))
    (tmp_path / name_of(0, ident, 4)).unlink()
    items, left = listed(REPLAY, tmp_path)
    assert len(items) == 3 and not left
    assert all(len(REPLAY.episode(tmp_path, item, OPTIONS)["image"]) == 4 for item in items)


def test_two_chunks_with_one_successor(tmp_path):
    for number, successor in ((0, 2), (1, 2), (2, None)):
        after = NONE if successor is None else str(successor).rjust(22, "a")
        np.savez(tmp_path / name_of(number, after, 3), **steps(3, begun=number != 2))
    items, _ = listed(REPLAY, tmp_path)
    assert [len(item.files) for item in items] == [2, 1]
    assert sum(len(chain) for chain in chains([])) == 0


def test_a_chunk_saved_twice(tmp_path):
    """Older versions save a chunk again when it has grown: the longer one counts."""
    np.savez(tmp_path / name_of(0, NONE, 3), **steps(3))
    np.savez(tmp_path / name_of(0, NONE, 8), **steps(8))
    items, left = listed(REPLAY, tmp_path)
    assert len(items) == 1 and items[0].spec["rows"] == [[0, 8]]
    assert list(left) == [name_of(0, NONE, 3)]


def test_integer_actions_become_one_hot(tmp_path):
    episode = steps(5) | {"action": np.array([2, 0, 1, 2, 0], np.int32)}
    replay(tmp_path, [episode, steps(3) | {"action": np.array([4, 0, 0], np.int32)}])
    items, _ = listed(REPLAY, tmp_path)
    arrays = REPLAY.episode(tmp_path, items[0], OPTIONS)
    np.testing.assert_array_equal(arrays["action"], np.eye(5, dtype=np.float32)[[2, 0, 1, 2, 0]])
    assert "bounds" not in arrays
    out = aligned(arrays, REPLAY.alignment)
    np.testing.assert_array_equal(out["action"][1:].argmax(1), [2, 0, 1, 2])


def test_one_hot_vectors_and_samples_outside(tmp_path):
    replay(tmp_path / "a", [steps(3) | {"action": np.eye(4, dtype=np.float32)[[3, 1, 0]]}])
    assert "bounds" not in only(REPLAY, tmp_path / "a")
    far = np.array([[1.5, -0.25], [-3, 0], [0, 0]], np.float32)
    replay(tmp_path / "b", [steps(3) | {"action": far}])
    np.testing.assert_array_equal(only(REPLAY, tmp_path / "b")["action"], np.clip(far, -1, 1))


def test_other_keys(tmp_path):
    episode = steps(3)
    grey = {"rgb": episode.pop("image")[..., :1], "act": episode.pop("action")}
    replay(tmp_path, [episode | grey])
    _, left = listed(REPLAY, tmp_path)
    assert "'image' is missing" in next(iter(left.values()))
    arrays = only(REPLAY, tmp_path, Options(image_key="rgb", action_key="act"))
    assert arrays["image"].shape == (3, 4, 6, 3)


def test_channels_of_chunks(tmp_path):
    pictures = np.arange(3 * 16 * 20, dtype=np.uint8).reshape(3, 16, 20)
    for i, image in enumerate((pictures, pictures[..., None], pictures[:, None])):
        replay(tmp_path / str(i), [steps(3) | {"image": image}])
        shown = only(REPLAY, tmp_path / str(i))["image"]
        np.testing.assert_array_equal(shown, np.repeat(pictures[..., None], 3, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_chunks_are_told(tmp_path, kind):
    (path,) = replay(tmp_path, [steps(6)])
    good = np.savez(path, **np.load(path)) or path.read_bytes()
    items, _ = listed(REPLAY, tmp_path)
    spoil = damages(path)[kind]
    spoil()
    REPLAY.detect(tmp_path)
    _, left = listed(REPLAY, tmp_path)
    assert set(left) <= {path.name} and all("\n" not in reason for reason in left.values())
    assert left or kind in ("flipped", "nan")  # these show when it is read
    with pytest.raises(Unreadable) as told:
        REPLAY.episode(tmp_path, items[0], OPTIONS)
    assert told.value.name in (path.name, items[0].name)
    path.write_bytes(good)
    assert len(only(REPLAY, tmp_path)["image"]) == 6


def test_chunks_that_do_not_fit(tmp_path):
    one, two = replay(tmp_path, [steps(8)], 4)
    items, _ = listed(REPLAY, tmp_path)
    np.savez(two, **(dict(np.load(two)) | {"action": np.zeros((4, 3), np.float32)}))
    with pytest.raises(Unreadable, match="fit together"):
        REPLAY.episode(tmp_path, items[0], OPTIONS)
    np.savez(two, **steps(2))
    with pytest.raises(Unreadable, match="2 rows, not 4"):
        REPLAY.episode(tmp_path, items[0], OPTIONS)


def test_odd_chunks_are_left_out(tmp_path):
    np.savez(tmp_path / "statistics.npz", **steps(3))
    np.savez(tmp_path / name_of(1, NONE, 3), **(steps(3) | {"action": np.array([0, 1, 1 << 30])}))
    np.savez(tmp_path / name_of(2, NONE, 3), **(steps(3) | {"action": np.zeros((3, 2), int)}))
    items, left = listed(REPLAY, tmp_path)
    assert not items and len(left) == 3


def test_an_episode_of_too_many_bytes(tmp_path, monkeypatch):
    replay(tmp_path, [steps(40)], 8)
    items, _ = listed(REPLAY, tmp_path)
    monkeypatch.setattr("veorl_tf.data.importers.npz.MAX_BYTES", 9 * 4 * 6 * 3)
    with pytest.raises(Unreadable, match="at most|more than"):
        REPLAY.episode(tmp_path, items[0], OPTIONS)
    assert base.MAX_BYTES > 9 * 4 * 6 * 3
