"""RLDS episodes, written by TensorFlow and TensorFlow Datasets."""

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import Item, Options, Unreadable, aligned
from veorl_tf.data.importers.registry import find
from veorl_tf.data.importers.rlds import RLDS
from veorl_tf.data.importers.tfrecord import masked, parse, records
from veorl_tf.run.importing import import_source

READER = RLDS()
STEP = 24  # grey levels per unit of the action that led to a picture
FILE = "toy-train.tfrecord-00000-of-00001"


class World:
    """Its picture is as bright as the last action was large, from 0 to 9; black at first."""

    def __init__(self, index: int = 0, length: int = 8):
        self.length = length
        self.action = np.random.default_rng(index).integers(0, 10, length)

    def shown(self) -> np.ndarray:
        return np.array([0, *self.action[:-1]])

    def steps(self) -> dict:
        """Values of all steps by key, as TFDS lays them out."""
        pictures = [encoded(np.full((24, 32, 3), STEP * a, np.uint8)) for a in self.shown()]
        last = [t == self.length - 1 for t in range(self.length)]
        return {
            "steps/observation/image": pictures,
            "steps/observation/state": [0.5] * 3 * self.length,
            "steps/action": [float(x) for a in self.action for x in (a, 2 * a)],
            "steps/reward": [float(a) / 10 for a in self.action],
            "steps/is_first": [int(t == 0) for t in range(self.length)],
            "steps/is_last": [int(x) for x in last],
            "steps/is_terminal": [int(x) for x in last],
            "steps/language_instruction": [b"go"] * self.length,
            "episode_metadata/file_path": [b"/x"],
        }


def encoded(picture, format="PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format)
    return out.getvalue()


def example(values: dict) -> bytes:
    """A serialized tf.train.Example."""
    import tensorflow as tf

    def feature(value):
        if value and isinstance(value[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        if value and isinstance(value[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))

    features = tf.train.Features(feature={key: feature(value) for key, value in values.items()})
    return tf.train.Example(features=features).SerializeToString()


def write(path, *episodes: dict | bytes):
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for episode in episodes:
            writer.write(episode if isinstance(episode, bytes) else example(episode))
    return path


def listed(root, **options):
    problems = []
    return list(READER.items(root, Options(**options), problems.append)), problems


def read(root, item: Item):
    """An item's arrays and pictures; what an import would raise."""
    spec = json.loads(json.dumps(item.spec))
    arrays = READER.episode(root, Item(item.name, item.files, spec), Options())
    return arrays, list(arrays["image"])


def check(world: World, arrays, pictures) -> None:
    shown = np.array([round(p.mean() / STEP) for p in pictures])
    np.testing.assert_array_equal(shown, world.shown())
    assert all(p.shape == (24, 32, 3) and p.dtype == np.uint8 for p in pictures)
    out = aligned(arrays, READER.alignment)
    np.testing.assert_array_equal(out["action"], np.stack([shown, 2 * shown], 1))
    np.testing.assert_allclose(out["reward"], shown / 10, atol=1e-6)
    np.testing.assert_array_equal(out["discount"], [1] * (world.length - 1) + [0])


def test_picture_shows_the_action_of_its_row(tmp_path):
    worlds = [World(i, 5 + i) for i in range(3)]
    write(tmp_path / "b/x.tfrecord", worlds[2].steps())
    write(tmp_path / "a/x.tfrecord", *(world.steps() for world in worlds[:2]))
    items, problems = listed(tmp_path)
    assert not problems
    assert [item.name for item in items] == [
        "a/x.tfrecord-00000",
        "a/x.tfrecord-00001",
        "b/x.tfrecord-00000",
    ]
    for world, item in zip(worlds, items, strict=True):
        check(world, *read(tmp_path, item))
    (item,), _ = listed(tmp_path / "b/x.tfrecord")
    check(worlds[2], *read(tmp_path / "b/x.tfrecord", item))


def test_needs_no_tensorflow(tmp_path):
    write(tmp_path / FILE, World().steps())
    code = """if True:
        import sys, pathlib
        from veorl_tf.data.importers.base import Options
        from veorl_tf.data.importers.rlds import RLDS
        root, reader = pathlib.Path(sys.argv[1]), RLDS()
        (item,) = reader.items(root, Options(), print)
        assert len(list(reader.episode(root, item, Options())["image"])) == 8
        assert "tensorflow" not in sys.modules
    """
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environ)


def tfds_step(world: World, t: int) -> dict:
    """What a builder of TensorFlow Datasets yields of one step."""
    action, shown, last = world.action[t], world.shown()[t], t == world.length - 1
    return {
        "observation": {
            "image": np.full((24, 32, 3), STEP * shown, np.uint8),
            "state": np.zeros(3, np.float32),
        },
        "action": np.array([action, 2 * action], np.float32),
        "reward": action / 10,
        "discount": 1.0,
        "is_first": t == 0,
        "is_last": last,
        "is_terminal": last,
        "language_instruction": "go",
    }


def tfds_features(tfds):
    """Of its episodes."""
    tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
    observation = {
        "image": tfds.features.Image(shape=(24, 32, 3), dtype=np.uint8),
        "state": tensor(shape=(3,), dtype=np.float32),
    }
    step = {
        "observation": tfds.features.FeaturesDict(observation),
        "action": tensor(shape=(2,), dtype=np.float32),
        "reward": scalar(dtype=np.float32),
        "discount": scalar(dtype=np.float32),
        "is_first": scalar(dtype=np.bool_),
        "is_last": scalar(dtype=np.bool_),
        "is_terminal": scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }
    metadata = {"file_path": tfds.features.Text()}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": metadata}
    )


def tfds_dataset(root, worlds: list[World]) -> None:
    """Worlds, written by a builder of TensorFlow Datasets in two shards."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Toy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # finding it needs importlib_resources, which is not asked for

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds_features(tfds))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, world in enumerate(worlds):
                steps = [tfds_step(world, t) for t in range(world.length)]
                yield i, {"steps": steps, "episode_metadata": {"file_path": f"episode {i}"}}

    config = tfds.download.DownloadConfig(num_shards=2)
    Toy(data_dir=root).download_and_prepare(download_config=config)


def test_builder_of_tensorflow_datasets(tmp_path):
    worlds = [World(i, 5 + i) for i in range(5)]
    tfds_dataset(tmp_path, worlds)
    assert READER.detect(tmp_path)
    items, problems = listed(tmp_path, split="train")
    assert not problems and len({item.files for item in items}) == 2
    assert json.loads((tmp_path / "toy/1.0.0/dataset_info.json").read_text())["splits"]
    by_length = {world.length: world for world in worlds}
    for item in items:
        arrays, pictures = read(tmp_path, item)
        check(by_length.pop(len(pictures)), arrays, pictures)
    assert not by_length
    path = tmp_path / items[0].files[0]
    *_, (offset, _) = records(path, path.name)
    path.write_bytes(path.read_bytes()[: offset - 12])
    assert "dataset_info.json says" in listed(tmp_path)[1][0].reason
    path.unlink()
    assert "1 of its 2 files are missing" in listed(tmp_path)[1][0].reason


def test_splits_and_missing_files(tmp_path):
    steps = World().steps()
    for name in ("toy-train.tfrecord-00000-of-00003", "toy-val.tfrecord-00000-of-00001"):
        write(tmp_path / "1.0.0" / name, steps)
    items, problems = listed(tmp_path, split="val")
    assert len(items) == 1 and not problems
    items, problems = listed(tmp_path)
    assert len(items) == 2 and problems[0].name == "1.0.0/toy-train.tfrecord"
    assert problems[0].reason == "2 of its 3 files are missing"
    with pytest.raises(UserError, match="one of train, val"):
        listed(tmp_path, split="test")


def test_numbers_of_records_that_the_builder_tells(tmp_path):
    write(tmp_path / FILE, World().steps())
    table = tmp_path / "dataset_info.json"
    table.write_text(json.dumps({"splits": [{"name": "train", "shardLengths": ["2"]}]}))
    items, problems = listed(tmp_path)
    assert len(items) == 1 and problems[0].reason == "1 records, where dataset_info.json says 2"
    for text in (
        "[",
        "[]",
        '{"splits": 3}',
        '{"splits": [{"name": "train", "shardLengths": [{}]}]}',
    ):
        table.write_text(text)
        items, problems = listed(tmp_path)
        assert len(items) == 1 and problems[0].name == "dataset_info.json"


def test_choice_of_keys(tmp_path):
    steps = World().steps()
    steps["steps/observation/wrist"] = steps["steps/observation/image"]
    steps["steps/action/x"] = steps.pop("steps/action")
    steps["steps/action/grip"] = [int(a) for a in World().action]
    write(tmp_path / FILE, steps)
    keys = {"image_key": "image", "action_key": "action/x, grip", "reward_key": "steps/is_first"}
    items, _ = listed(tmp_path, **keys)
    arrays, _ = read(tmp_path, items[0])
    assert items[0].spec["image"] == "steps/observation/image"
    assert items[0].spec["action"] == ["steps/action/x", "steps/action/grip"]
    np.testing.assert_array_equal(arrays["action"][:, [0, 2]].T, [World().action[:-1]] * 2)
    np.testing.assert_array_equal(arrays["reward"], [1] + [0] * 6)
    with pytest.raises(UserError, match="--image_key one of .*/image, .*/wrist"):
        listed(tmp_path, action_key="grip")
    with pytest.raises(UserError, match="--action_key: steps/action/grip, steps/action/x"):
        listed(tmp_path, image_key="wrist")
    for option in ("image_key", "action_key", "reward_key"):
        with pytest.raises(UserError, match=f"--{option} other: one of steps/"):
            listed(tmp_path, **{**keys, option: "other"})


def test_pictures_alone_and_no_pictures(tmp_path):
    steps = World().steps()
    write(tmp_path / FILE, {"steps/image": steps["steps/observation/image"]})
    arrays, pictures = read(tmp_path, listed(tmp_path)[0][0])
    assert set(arrays) == {"image"} and len(pictures) == 8
    write(tmp_path / FILE, {"image/encoded": steps["steps/observation/image"][:1]})
    with pytest.raises(UserError, match="no steps of RLDS; their keys: image/encoded"):
        listed(tmp_path)


def test_reward_on_the_last_step_alone_marks_the_last_picture(tmp_path):
    steps = World().steps()
    steps["steps/reward"] = [0.0] * 7 + [1.0]
    write(tmp_path / FILE, steps)
    arrays, _ = read(tmp_path, listed(tmp_path)[0][0])
    np.testing.assert_array_equal(aligned(arrays, READER.alignment)["reward"], [0] * 7 + [1])


def test_what_the_last_step_says_does_not_matter(tmp_path):
    steps = World().steps()
    steps["steps/action"][-1] = steps["steps/reward"][-1] = float("nan")
    write(tmp_path / FILE, steps)
    check(World(), *read(tmp_path, listed(tmp_path)[0][0]))


def test_camera_that_was_absent(tmp_path):
    steps = {**World().steps(), "episode_metadata/has_image": [0]}
    write(tmp_path / FILE, steps)
    with pytest.raises(Unreadable, match="without image"):
        read(tmp_path, listed(tmp_path)[0][0])


def test_detect(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.mp4", "a.npz", "features.json", "x.tfrecord.txt"):
        (tmp_path / "other" / name).write_bytes(b"")
    assert not READER.detect(tmp_path / "empty") and not READER.detect(tmp_path / "other")
    assert not READER.detect(tmp_path / "other/a.mp4")
    names = ("x.tfrecord", "x.tfrecords", "x-train.tfrecord-00000-of-00002")
    for i, name in enumerate(names):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / name).write_bytes(b"")
        assert READER.detect(tmp_path / str(i)) and READER.detect(tmp_path / str(i) / name)


WRONG = {
    "no action": lambda steps: steps.pop("steps/action"),
    "no reward": lambda steps: steps.pop("steps/reward"),
    "no pictures": lambda steps: steps.pop("steps/observation/image"),
    "action as text": lambda steps: steps.update({"steps/action": [b"a"] * 16}),
    "actions too few": lambda steps: steps["steps/action"].pop(),
    "no actions": lambda steps: steps["steps/action"].clear(),
    "not finite": lambda steps: steps["steps/action"].__setitem__(3, float("inf")),
    "two rewards": lambda steps: steps["steps/reward"].extend(steps["steps/reward"]),
    "terminals too few": lambda steps: steps["steps/is_terminal"].pop(),
    "fewer pictures": lambda steps: steps["steps/observation/image"].pop(),
    "pictures as numbers": lambda steps: steps.update({"steps/observation/image": [1, 2]}),
    "no picture": lambda steps: steps["steps/observation/image"].__setitem__(3, b"\x80\x04pickle"),
    "cut picture": lambda steps: steps["steps/observation/image"].__setitem__(
        3, steps["steps/observation/image"][3][:-20]
    ),
    "huge picture": lambda steps: steps["steps/observation/image"].__setitem__(
        3,
        steps["steps/observation/image"][3][:16] + struct.pack(">II", 1 << 30, 1 << 30) + b"0" * 9,
    ),
    "one step": lambda steps: steps.update({k: v[: len(v) // 8] for k, v in steps.items()}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_records_of_wrong_values(tmp_path, kind):
    wrong = World().steps()
    WRONG[kind](wrong)
    write(tmp_path / FILE, World().steps(), wrong)
    (good, bad), _ = listed(tmp_path)
    check(World(), *read(tmp_path, good))
    with pytest.raises(Unreadable) as error:
        read(tmp_path, bad)
    assert error.value.name.startswith(f"{FILE}-00001")


def test_first_whole_record_gives_the_keys(tmp_path):
    write(tmp_path / FILE, b"\xff no example", World().steps())
    (bad, good), _ = listed(tmp_path)
    with pytest.raises(Unreadable, match="no tf.train.Example"):
        read(tmp_path, bad)
    check(World(), *read(tmp_path, good))
    write(tmp_path / FILE, b"\xff no example")
    with pytest.raises(Unreadable, match="no tf.train.Example"):
        read(tmp_path, listed(tmp_path)[0][0])


def test_any_damage_is_noticed(tmp_path):
    path = write(tmp_path / FILE, World(0).steps(), World(1).steps())
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(good)
        if trial % 2:
            del data[int(rng.integers(len(data))) :]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        items, problems = listed(tmp_path)
        for item in items:
            try:
                arrays, pictures = read(tmp_path, item)
            except Unreadable as problem:
                problems.append(problem)
            else:
                check(World(int(item.name[-1])), arrays, pictures)
        if len(data) != items_end(good):
            assert problems and all(problem.name.startswith(FILE) for problem in problems)


def items_end(data: bytes) -> int:
    """Where the first record ends: a cut there shows in dataset_info.json alone."""
    return struct.unpack("<Q", data[:8])[0] + 16


def test_absurd_lengths_and_no_tfrecords(tmp_path):
    path = tmp_path / FILE
    for length in (1 << 20, 1 << 40, (1 << 64) - 1):
        head = struct.pack("<Q", length)
        path.write_bytes(head + struct.pack("<I", masked(head)) + b"0" * 100)
        items, problems = listed(tmp_path)
        assert not items and problems[0].name == FILE
    for data, reason in ((b"", "empty"), (b"x" * 100, "checksum"), (b"x", "cut")):
        path.write_bytes(data)
        items, problems = listed(tmp_path)
        assert not items and reason in problems[0].reason


def test_link_out_of_the_source(tmp_path):
    write(tmp_path / "b/x.tfrecord", World().steps())
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.tfrecord").symlink_to(tmp_path / "b/x.tfrecord")
    items, problems = listed(tmp_path / "a")
    assert not items and "outside" in problems[0].reason


def test_file_that_shrank_since_it_was_listed(tmp_path):
    path = write(tmp_path / FILE, World().steps())
    (item,), _ = listed(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Unreadable, match="cut"):
        read(tmp_path, item)


def test_example_equals_tensorflows():
    import tensorflow as tf

    values = {"a": [b"x", b""], "b": [1, -5, 2**62], "c": [0.5, 1e30], "d": []}
    data = example(values)
    features, theirs = parse(data, "x"), tf.train.Example.FromString(data).features.feature
    assert set(features) == set(theirs)
    assert list(features["a"].bytes_list.value) == list(theirs["a"].bytes_list.value)
    assert list(features["b"].int64_list.value) == list(theirs["b"].int64_list.value)
    assert list(features["c"].float_list.value) == list(theirs["c"].float_list.value)


@pytest.mark.parametrize(
    "name", ["a.tfrecord", "toy-train.tfrecord-00000-of-00001", "b.tfrecord.gz"]
)
def test_compressed_with_gzip_as_tensorflow_does(tmp_path, name):
    import tensorflow as tf

    worlds = [World(0, 6), World(1, 4)]
    with tf.io.TFRecordWriter(str(tmp_path / name), "GZIP") as writer:
        for world in worlds:
            writer.write(example(world.steps()))
    assert READER.detect(tmp_path) and find(tmp_path).name == "rlds"
    items, problems = listed(tmp_path)
    assert len(items) == 2 and not problems
    for world, item in zip(reversed(worlds), reversed(items), strict=True):
        check(world, *read(tmp_path, item))
    data = (tmp_path / name).read_bytes()
    for spoilt in (data[:-40], data[:200] + b"xxxx" + data[204:]):
        (tmp_path / name).write_bytes(spoilt)
        problems = listed(tmp_path)[1]
        for item in items:
            try:
                check(worlds[items.index(item)], *read(tmp_path, item))
            except Unreadable as problem:
                problems.append(problem)
        assert problems and all(problem.name.startswith(name) for problem in problems)


def test_no_fault_in_a_gzip_file_is_put_down_to_gzip(tmp_path):
    """It is TFRecords' own form: what is wrong is told as it is."""
    import tensorflow as tf

    whole = encoded(np.zeros((24, 32, 3), np.uint8))
    said = {"cut": "end-of-stream", "bad": "no whole JPEG or PNG picture"}
    for source, pictures in (("cut", (whole, whole)), ("bad", (whole, b"no picture"))):
        (tmp_path / source).mkdir()
        path = tmp_path / source / "a.tfrecord"
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for i, picture in enumerate(pictures):
                steps = World(i, 40).steps()
                steps["steps/observation/image"][3] = picture
                writer.write(example(steps))
        if source == "cut":
            path.write_bytes(path.read_bytes()[:-60])
        result = import_source(tmp_path / source, tmp_path / f"{source}-out", Options(), workers=2)
        assert result.skipped and all(said[source] in reason for _, reason in result.skipped)


def test_other_compression_is_named(tmp_path):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord"), "ZLIB") as writer:
        writer.write(example(World().steps()))
    assert "zlib-compressed" in listed(tmp_path)[1][0].reason
