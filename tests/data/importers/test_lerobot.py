"""LeRobot datasets as their documentation lays them out, written with pyarrow and PyAV."""

import io
import json
from dataclasses import asdict

import av
import numpy as np
import pytest
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers import parquet
from veorl_tf.data.importers.base import Frame, Item, Options, Unreadable, aligned
from veorl_tf.data.importers.lerobot import LeRobot, nearest
from veorl_tf.data.importers.work import import_item

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

READER = LeRobot()
FPS, STEP = 10, 24  # STEP: grey levels per unit of the action that led to a picture
LENGTHS = (12, 9, 7)
CAMERA = "observation.images.top"
PATHS = {
    "v2.1": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
    },
    "v3.0": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
PATHS["v2.0"] = PATHS["v2.1"]


class World:
    """Its picture is as bright as the last action was large, from 0 to 9; black at first."""

    def __init__(self, index: int, length: int):
        self.index, self.length = index, length
        self.action = np.random.default_rng(index).integers(0, 10, length)
        self.action[:2] = 0, 9

    def pictures(self) -> list[np.ndarray]:
        return [np.full((32, 48, 3), STEP * a, np.uint8) for a in (0, *self.action[:-1])]

    def rows(self, images: bool) -> dict:
        rows = {
            "action": pa.array([[float(a), 2.0 * a] for a in self.action], pa.list_(pa.float32())),
            "next.reward": pa.array(self.action / 10, pa.float32()),
            "next.done": [False] * (self.length - 2) + [True, True],
            "next.success": [t >= 3 for t in range(self.length)],
            "timestamp": pa.array(np.arange(self.length) / FPS, pa.float32()),
            "frame_index": list(range(self.length)),
            "episode_index": [self.index] * self.length,
        }
        if images:
            rows[CAMERA] = [{"bytes": png(p), "path": "x.png"} for p in self.pictures()]
        return rows


def png(picture) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def video(path, pictures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "4", "crf": "8"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def table(path, columns: dict, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def dataset(root, version="v2.1", images=False, lengths=LENGTHS):
    worlds = [World(i, n) for i, n in enumerate(lengths)]
    feature = {"dtype": "image" if images else "video", "shape": [32, 48, 3]}
    (root / "meta").mkdir(parents=True)
    info = {
        "codebase_version": version,
        "fps": FPS,
        "total_episodes": len(lengths),
        "chunks_size": 1000,
        "splits": {"train": "0:2", "test": "2:3"},
        **PATHS[version],
        "features": {
            CAMERA: feature,
            "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
            "next.reward": {"dtype": "float32", "shape": [1]},
            "next.done": {"dtype": "bool", "shape": [1]},
            "next.success": {"dtype": "bool", "shape": [1]},
            "timestamp": {"dtype": "float32", "shape": [1]},
            "episode_index": {"dtype": "int64", "shape": [1]},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    (write_v3 if version == "v3.0" else write_v2)(root, version, images, worlds)
    return worlds


def stats(worlds) -> dict:
    actions = np.concatenate([world.action for world in worlds])
    low, high = float(actions.min()), float(actions.max())
    return {"action": {"min": [low, 2 * low], "max": [high, 2 * high], "count": [len(actions)]}}


def write_v2(root, version, images, worlds):
    lines = [{"episode_index": w.index, "tasks": ["t"], "length": w.length} for w in worlds]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if version == "v2.0":
        (root / "meta/stats.json").write_text(json.dumps(stats(worlds)))
    else:
        lines = [{"episode_index": w.index, "stats": stats([w])} for w in worlds]
        path = root / "meta/episodes_stats.jsonl"
        path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    for w in worlds:
        table(root / f"data/chunk-000/episode_{w.index:06d}.parquet", w.rows(images))
        if not images:
            video(root / f"videos/chunk-000/{CAMERA}/episode_{w.index:06d}.mp4", w.pictures())


def write_v3(root, version, images, worlds):
    (root / "meta/stats.json").write_text(json.dumps(stats(worlds)))
    begins = np.cumsum([0, *(w.length for w in worlds)])
    episodes = {
        "episode_index": [w.index for w in worlds],
        "length": [w.length for w in worlds],
        "data/chunk_index": [0] * len(worlds),
        "data/file_index": [0] * len(worlds),
        "dataset_from_index": begins[:-1],
        "dataset_to_index": begins[1:],
    }
    if not images:
        episodes[f"videos/{CAMERA}/chunk_index"] = [0] * len(worlds)
        episodes[f"videos/{CAMERA}/file_index"] = [0] * len(worlds)
        episodes[f"videos/{CAMERA}/from_timestamp"] = begins[:-1] / FPS
        episodes[f"videos/{CAMERA}/to_timestamp"] = begins[1:] / FPS
        pictures = [picture for w in worlds for picture in w.pictures()]
        video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", pictures)
    table(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    tables = [pa.table(w.rows(images)) for w in worlds]
    path = root / "data/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), path, row_group_size=10)


def listed(root, **options):
    """Items, and the names and reasons of what was left out."""
    problems = []
    return list(READER.items(root, Options(**options), problems.append)), problems


def read(root, item, **options):
    """An item's arrays and pictures; what an import would raise."""
    item = Item(**json.loads(json.dumps(item.__dict__)))
    arrays = READER.episode(root, Item(item.name, tuple(item.files), item.spec), Options(**options))
    return arrays, list(arrays["image"])


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_picture_shows_the_action_of_its_row(tmp_path, version, images):
    worlds = dataset(tmp_path, version, images)
    items, problems = listed(tmp_path)
    assert not problems and [item.name for item in items] == [f"episode_{i:06d}" for i in range(3)]
    for world, item in zip(worlds, items, strict=True):
        arrays, pictures = read(tmp_path, item)
        assert all(p.shape == (32, 48, 3) and p.dtype == np.uint8 for p in pictures)
        out = aligned(arrays, READER.alignment)
        shown = np.array([round(p.mean() / STEP) for p in pictures])
        np.testing.assert_array_equal(shown, [0, *world.action[:-1]])
        np.testing.assert_array_equal(out["action"], np.stack([shown, 2 * shown], 1))
        np.testing.assert_allclose(out["reward"], shown / 10, atol=1e-6)
        np.testing.assert_array_equal(out["success"], np.arange(world.length) > 3)
        np.testing.assert_array_equal(out["discount"], [1] * (world.length - 1) + [0])
        np.testing.assert_array_equal(arrays["bounds"], [[0, 0], [9, 18]])
        assert len(arrays["image"]) == world.length
        np.testing.assert_array_equal(arrays["image"][-1], pictures[-1])


def test_measuring_actions_decodes_no_pictures(tmp_path):
    worlds = dataset(tmp_path, "v3.0")
    items, _ = listed(tmp_path)
    (tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_bytes(b"damaged")
    arrays = READER.numbers(tmp_path, items[1], Options())
    np.testing.assert_array_equal(arrays["action"][:, 0], worlds[1].action)
    np.testing.assert_array_equal(arrays["bounds"], [[0, 0], [9, 18]])


def test_small_statistics_stand_for_the_unit_range(tmp_path):
    dataset(tmp_path, "v2.0", True)
    path = tmp_path / "meta/stats.json"
    path.write_text(json.dumps({"action": {"min": [-0.5, 0], "max": [0.9, 0.1]}}))
    assert listed(tmp_path)[0][0].spec["bounds"] == [[-1, -1], [1, 1]]
    path.unlink()
    assert listed(tmp_path)[0][0].spec["bounds"] is None
    for text in ("[", "[]", '{"action": 3}', '{"action": {"min": [NaN, 0], "max": [1, 2]}}'):
        path.write_text(text)
        items, problems = listed(tmp_path)
        assert items[0].spec["bounds"] is None and problems[0].name == "meta/stats.json"


def test_split(tmp_path):
    dataset(tmp_path, "v2.1", True)
    assert [item.name for item in listed(tmp_path, split="test")[0]] == ["episode_000002"]
    with pytest.raises(UserError, match="one of train, test"):
        listed(tmp_path, split="val")


def test_choice_of_features(tmp_path):
    dataset(tmp_path, "v2.1", True)
    path = tmp_path / "meta/info.json"

    def more(info):
        info["features"]["wrist"] = {"dtype": "image"}
        info["features"]["depth"] = {"dtype": "image", "info": {"video.is_depth_map": True}}

    edit(path, more)
    with pytest.raises(UserError, match=f"--image_key one of {CAMERA}, wrist$"):
        listed(tmp_path)
    with pytest.raises(UserError, match="one of"):
        listed(tmp_path, image_key="action")
    assert listed(tmp_path, image_key=CAMERA)[0][0].spec["image"] == CAMERA
    options = {"image_key": CAMERA, "action_key": "next.reward", "reward_key": "timestamp"}
    item = listed(tmp_path, **options)[0][0]
    arrays, _ = read(tmp_path, item, **options)
    assert arrays["action"].shape == (12, 1)
    np.testing.assert_allclose(arrays["reward"], np.arange(12) / FPS, atol=1e-6)
    edit(path, lambda info: info["features"].update(actions=info["features"].pop("action")))
    with pytest.raises(UserError, match="--action_key one of actions"):
        listed(tmp_path, image_key=CAMERA)
    edit(path, lambda info: info["features"].pop("actions"))
    arrays, _ = read(tmp_path, listed(tmp_path, image_key=CAMERA)[0][0])
    assert "action" not in arrays and "bounds" not in arrays
    edit(
        path,
        lambda info: info["features"].update(
            {CAMERA: {"dtype": "float32"}, "wrist": {"dtype": "x"}}
        ),
    )
    with pytest.raises(UserError, match="no camera"):
        listed(tmp_path)


def test_detect(tmp_path):
    dataset(tmp_path / "a", "v3.0", True)
    assert READER.detect(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "info/meta").mkdir(parents=True)
    (tmp_path / "info/meta/info.json").write_text('{"split": 1}')
    (tmp_path / "x.mp4").write_bytes(b"")
    for other in ("empty", "info", "a/data", "x.mp4", "a/meta/info.json"):
        assert not READER.detect(tmp_path / other)


@pytest.mark.parametrize(
    "key, template",
    [
        ("data_path", "{episode_index.__class__}"),
        ("data_path", "{episode_index!r}"),
        ("data_path", "{episode_index:{episode_chunk}}"),
        ("data_path", "{episode_index:9999999999d}"),
        ("data_path", "{0}"),
        ("data_path", "{}"),
        ("data_path", "{secret}"),
        ("data_path", "{episode_index"),
        ("data_path", 3),
        ("data_path", None),
        ("video_path", "{video_key:03d}"),
        ("video_path", "{chunk_index:03d}"),
    ],
)
def test_templates_name_documented_fields_alone(tmp_path, key, template):
    dataset(tmp_path, lengths=(4,))
    edit(tmp_path / "meta/info.json", lambda info: info.update({key: template}))
    with pytest.raises(UserError, match=f"info.json: {key}"):
        listed(tmp_path)


@pytest.mark.parametrize(
    "template",
    ["../a/data/chunk-000/episode_{episode_index:06d}.parquet", "/etc/passwd", "x\0", "x" * 5000],
)
def test_climbing_and_absent_files_are_left_out(tmp_path, template):
    dataset(tmp_path / "a", "v2.1", True, lengths=(4,))
    dataset(tmp_path / "b", "v2.1", True, lengths=(4,))
    edit(tmp_path / "b/meta/info.json", lambda info: info.update(data_path=template))
    items, problems = listed(tmp_path / "b")
    assert not items and len(problems) == 1 and problems[0].name


def test_climbing_camera_is_left_out(tmp_path):
    dataset(tmp_path, lengths=(4,))
    features = {"../../../x": {"dtype": "video"}}
    edit(tmp_path / "meta/info.json", lambda info: info.update(features=features))
    assert not listed(tmp_path)[0] and "outside" in listed(tmp_path)[1][0].reason


@pytest.mark.parametrize(
    "change",
    [
        {"codebase_version": "v1.6"},
        {"codebase_version": ["v3.0"]},
        {"fps": 0},
        {"fps": "10"},
        {"fps": float("nan")},
        {"features": []},
        {"features": {"a": 1}},
        {"features": {"a": {"dtype": []}}},
        {"features": {}},
        {"chunks_size": 0},
    ],
)
def test_info_of_wrong_values(tmp_path, change):
    dataset(tmp_path, "v2.1", True, lengths=(4,))
    edit(tmp_path / "meta/info.json", lambda info: info.update(change))
    with pytest.raises(UserError, match=str(tmp_path)):
        listed(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, "\xff"])
def test_info_that_is_no_table(tmp_path, text):
    dataset(tmp_path, "v2.1", True, lengths=(4,))
    (tmp_path / "meta/info.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="meta/info.json"):
        listed(tmp_path)


def test_damaged_lines_of_episodes(tmp_path):
    dataset(tmp_path, "v2.1", True)
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    bad = ['{"episode_index"', '{"episode_index": -1, "length": 3}', '{"length": 1e99}', lines[0]]
    path.write_text("\n".join([*lines[:2], *bad]))
    items, problems = listed(tmp_path)
    assert [item.name for item in items] == ["episode_000000", "episode_000001"]
    assert [p.name for p in problems] == [
        "meta/episodes.jsonl, line 3",
        "meta/episodes.jsonl, line 4",
        "meta/episodes.jsonl, line 5",
        "episode_000000",
        "meta/info.json",
    ]
    path.unlink()
    with pytest.raises(UserError, match="episodes.jsonl"):
        listed(tmp_path)


def test_damaged_tables_of_episodes(tmp_path):
    dataset(tmp_path, "v3.0", True)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    good = pq.read_table(path).to_pydict()
    odd = {**good, "episode_index": [7, -1, None], "length": [10**9, 3, 4]}
    table(path.with_name("file-001.parquet"), odd)
    path.with_name("file-002.parquet").write_bytes(path.read_bytes()[:-20])
    table(path.with_name("file-003.parquet"), {"episode_index": [1]})
    items, problems = listed(tmp_path)
    assert len(items) == 3 and len(problems) == 5
    assert all(p.name.startswith("meta/episodes/chunk-000/file-00") for p in problems)


def test_missing_files_are_left_out(tmp_path):
    dataset(tmp_path)
    (tmp_path / "data/chunk-000/episode_000001.parquet").unlink()
    (tmp_path / f"videos/chunk-000/{CAMERA}/episode_000002.mp4").unlink()
    items, problems = listed(tmp_path)
    assert [item.name for item in items] == ["episode_000000"]
    assert "episode_000001" in problems[0].name and "episode_000002" in problems[1].name


WRONG = {
    "fewer rows": lambda rows: {k: v[:-1] for k, v in rows.items()},
    "no action": lambda rows: {k: v for k, v in rows.items() if k != "action"},
    "text": lambda rows: {**rows, "action": ["a"] * 4},
    "ragged": lambda rows: {**rows, "action": [[1.0], [1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0]]},
    "empty lists": lambda rows: {**rows, "action": pa.array([[]] * 4, pa.list_(pa.float32()))},
    "null": lambda rows: {**rows, "action": [[1.0, 1.0], None, [1.0, 2.0], [1.0, 2.0]]},
    "null inside": lambda rows: {**rows, "action": [[1.0, None]] * 4},
    "not finite": lambda rows: {**rows, "action": [[1.0, float("inf")]] * 4},
    "wider than the statistics": lambda rows: {**rows, "action": [[1.0, 2.0, 3.0]] * 4},
    "two rewards": lambda rows: {**rows, "next.reward": [[1.0, 2.0]] * 4},
    "structs": lambda rows: {**rows, "action": [{"a": 1}] * 4},
    "other episode": lambda rows: {**rows, "episode_index": [3] * 4},
    "episodes as text": lambda rows: {**rows, "episode_index": ["0"] * 4},
    "no picture": lambda rows: {**rows, CAMERA: [{"bytes": None, "path": "/etc/passwd"}] * 4},
    "other pictures": lambda rows: {**rows, CAMERA: [1, 2, 3, 4]},
    "damaged picture": lambda rows: {**rows, CAMERA: [{"bytes": b"\x89PNG", "path": None}] * 4},
}


@pytest.mark.parametrize("kind", WRONG)
def test_rows_of_wrong_types(tmp_path, kind):
    (world,) = dataset(tmp_path, "v2.1", True, lengths=(4,))
    (item,), _ = listed(tmp_path)
    rows = {k: v.to_pylist() if isinstance(v, pa.Array) else v for k, v in world.rows(True).items()}
    table(tmp_path / item.files[0], WRONG[kind](rows))
    with pytest.raises(Unreadable) as error:
        read(tmp_path, item)
    assert error.value.name.startswith(item.files[0])


def test_lists_of_fixed_size_and_scalars(tmp_path):
    (world,) = dataset(tmp_path, "v2.1", True, lengths=(4,))
    (item,), _ = listed(tmp_path)
    rows = world.rows(True)
    rows["action"] = rows["action"].cast(pa.list_(pa.float32(), 2))
    rows["next.reward"] = [[1.0]] * 4
    table(tmp_path / item.files[0], rows)
    arrays, _ = read(tmp_path, item)
    np.testing.assert_array_equal(arrays["action"][:, 0], world.action)
    np.testing.assert_array_equal(arrays["reward"], 1)


LISTS = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "fixed_size_list": lambda kind: pa.list_(kind, 1),
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
}


def listed_ones(values, lists):
    """A column's values, each in a list of its own."""
    values = values if isinstance(values, pa.Array) else pa.array(values)
    return pa.array([[value] for value in values.to_pylist()], lists(values.type))


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_kind_in_every_column(tmp_path, kind):
    """As other engines write them: numbers of rows and of episodes alone in lists, too."""
    worlds, lists = dataset(tmp_path, "v3.0", lengths=(5, 4)), LISTS[kind]
    tables = []
    for world in worlds:
        rows = world.rows(False)
        pair = pa.list_(pa.float32(), 2) if kind == "fixed_size_list" else lists(pa.float32())
        action = pa.array([[x] for x in rows["action"].to_pylist()], lists(pair))  # [n, 1, 2]
        wrapped = {key: listed_ones(values, lists) for key, values in rows.items()}
        tables.append(pa.table({**wrapped, "action": action}))
    pq.write_table(pa.concat_tables(tables), tmp_path / "data/chunk-000/file-000.parquet")
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    episodes = pq.read_table(path)
    names = episodes.column_names
    table(path, {n: listed_ones(episodes[n].combine_chunks(), lists) for n in names})
    assert kind.replace("_", "") in str(pq.read_schema(path).field("length").type).replace("_", "")
    items, problems = listed(tmp_path)
    assert len(items) == 2 and not problems
    for world, item in zip(worlds, items, strict=True):
        arrays, pictures = read(tmp_path, item)
        np.testing.assert_array_equal(arrays["action"][:, 0], world.action)
        np.testing.assert_allclose(arrays["reward"], world.action / 10, atol=1e-6)
        shown = [round(p.mean() / STEP) for p in pictures]
        assert shown == [0, *world.action[:-1]] and not arrays["left_out"]


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("binary", [pa.large_binary(), pa.binary_view()])
def test_pictures_of_every_kind_of_bytes(tmp_path, text, binary):
    (world,) = dataset(tmp_path, "v2.1", True, lengths=(4,))
    (item,), _ = listed(tmp_path)
    rows = world.rows(True)
    rows[CAMERA] = pa.array(rows[CAMERA], pa.struct([("bytes", binary), ("path", text)]))
    table(tmp_path / item.files[0], rows)
    pictures = read(tmp_path, item)[1]
    assert [round(p.mean() / STEP) for p in pictures] == [0, *world.action[:-1]]


def test_numbers_of_other_types(tmp_path):
    """Tensors, dictionaries, and whole numbers as floats, as tables with holes have them."""
    (world,) = dataset(tmp_path, "v3.0", True, lengths=(4,))
    rows = world.rows(True)
    pairs = np.stack([world.action, 2 * world.action], 1).astype(np.float32)
    rows["action"] = pa.FixedShapeTensorArray.from_numpy_ndarray(pairs)
    rows["next.reward"] = rows["next.reward"].dictionary_encode()
    table(tmp_path / "data/chunk-000/file-000.parquet", rows)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    numbers = pq.read_table(path).to_pydict().items()
    table(path, {key: pa.array(values, pa.float64()) for key, values in numbers})
    ((item,), problems) = listed(tmp_path)
    arrays, _ = read(tmp_path, item)
    np.testing.assert_array_equal(arrays["action"], pairs)
    np.testing.assert_allclose(arrays["reward"], world.action / 10, atol=1e-6)
    assert not problems and item.spec["length"] == 4


@pytest.mark.parametrize("begins, lost", [(0.5, 5), (-0.3, 3), (0, 0), (0.04, 0), (-0.04, 0)])
def test_rows_outside_of_their_part_of_the_video(tmp_path, begins, lost):
    """A row past `to_timestamp` would show the next episode, one before `from_timestamp` the one
    before. Of the stated rows alone ranges of actions are measured."""
    worlds = dataset(tmp_path, "v3.0", lengths=(12, 12, 12))
    (tmp_path / "meta/stats.json").unlink()
    path = tmp_path / "data/chunk-000/file-000.parquet"
    tables = [w.rows(False) for w in worlds]
    for rows in tables:
        rows["timestamp"] = pa.array(np.arange(12) / FPS + begins, pa.float32())
    pq.write_table(pa.concat_tables([pa.table(rows) for rows in tables]), path)
    items, _ = listed(tmp_path)
    for world, item in zip(worlds, items, strict=True):
        arrays, pictures = read(tmp_path, item)
        first = max(0, round(begins * FPS))
        shown = [round(p.mean() / STEP) for p in pictures]
        assert shown == [0, *world.action[:-1]][first : first + 12 - lost]
        rows = slice(0, 12 - lost) if begins >= 0 else slice(lost, 12)
        np.testing.assert_array_equal(arrays["action"][:, 0], world.action[rows])
        assert len(arrays["reward"]) == len(arrays["terminal"]) == 12 - lost
        numbers = READER.numbers(tmp_path, item, Options())["action"]
        np.testing.assert_array_equal(numbers, arrays["action"])
        common = ("lerobot", tmp_path, asdict(item), asdict(Options(shortest=2)))
        done = import_item(*common, tmp_path / "out", item.name)
        assert done["counts"]["kept"] == 12 - lost and len(done["files"]) == 1
        told = [reason for _, reason in done["problems"]]
        assert len(told) == (lost > 0)
        assert all(f"{lost} of 12 rows lie outside of" in reason for reason in told)


def test_rows_that_all_lie_outside(tmp_path):
    dataset(tmp_path, "v3.0", lengths=(4, 4))
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    good = pq.read_table(path).to_pydict()
    end = f"videos/{CAMERA}/to_timestamp"
    table(path, {**good, end: [0.0, 0.4]})  # ends before it begins
    assert [p.name.split(", ")[1] for p in listed(tmp_path)[1][:2]] == ["row 0", "row 1"]
    table(path, {key: values for key, values in good.items() if key != end})
    assert [item.spec["end"] for item in listed(tmp_path)[0]] == [None, None]
    table(path, {**good, end: [0.01, 0.8]})
    items, _ = listed(tmp_path)
    with pytest.raises(Unreadable, match="4 of 4 rows lie outside"):
        read(tmp_path, items[0])


MARKS = {
    "info, with video": {"info": {"video.is_depth_map": True}},
    "info": {"info": {"is_depth_map": True}},
    "video_info": {"video_info": {"video.is_depth_map": True}},
    "nested": {"info": {"video": {"is_depth_map": True}}},
    "feature": {"is_depth_map": True},
}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("depth", [True, False])
def test_a_map_of_depths_is_no_camera(tmp_path, mark, depth):
    dataset(tmp_path, "v2.1", True)
    marks = json.loads(json.dumps(MARKS[mark]).replace("true", json.dumps(depth)))
    feature = {"dtype": "image", **marks}
    edit(tmp_path / "meta/info.json", lambda info: info["features"].update(other=feature))
    if depth:
        assert listed(tmp_path)[0][0].spec["image"] == CAMERA
    else:
        with pytest.raises(UserError, match="several cameras"):
            listed(tmp_path)
    edit(tmp_path / "meta/info.json", lambda info: info["features"].pop(CAMERA))
    if depth:
        with pytest.raises(UserError, match="no camera but maps of depth: other"):
            listed(tmp_path)
    else:
        assert listed(tmp_path)[0][0].spec["image"] == "other"


def test_damage_of_any_byte_ends_as_unreadable(tmp_path):
    (world,) = dataset(tmp_path, "v2.1", True, lengths=(4,))
    (item,), _ = listed(tmp_path)
    path = tmp_path / item.files[0]
    table(path, world.rows(True), write_page_checksum=True)
    good, noticed = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(good)
        if trial % 2:
            del data[int(rng.integers(len(data))) :]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            arrays, pictures = read(tmp_path, item)
        except Unreadable as error:
            noticed += 1
            assert error.name.startswith(item.files[0]) and error.reason
        else:
            assert arrays["action"].shape == (4, 2) and len(pictures) == 4
    assert noticed > 40


def test_endless_rows_and_numbers_are_not_read(tmp_path, monkeypatch):
    (world,) = dataset(tmp_path, "v2.1", True, lengths=(4,))
    (item,), _ = listed(tmp_path)
    rows = {**world.rows(True), "action": [[0.0] * 100_000] * 4}
    table(tmp_path / item.files[0], rows)
    assert (tmp_path / item.files[0]).stat().st_size < 100_000
    monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 20)
    with pytest.raises(Unreadable, match="absurd"):
        read(tmp_path, item)
    monkeypatch.setattr(parquet, "_may_hold", lambda *_: True)
    with pytest.raises(Unreadable, match="more than"):
        read(tmp_path, item)


def test_damaged_and_short_videos(tmp_path):
    (world,) = dataset(tmp_path, lengths=(12,))
    (item,), _ = listed(tmp_path)
    path = tmp_path / item.files[1]
    good = path.read_bytes()
    for data in (b"", good[: len(good) // 2], b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(Unreadable, match="mp4"):
            read(tmp_path, item)
    video(path, world.pictures()[:-1])
    with pytest.raises(Unreadable, match="no frame within"):
        read(tmp_path, item)


def test_absurd_timestamps(tmp_path):
    (world,) = dataset(tmp_path, lengths=(4,))
    (item,), _ = listed(tmp_path)
    for times in ([0, 0.1, 0.1, 0.2], [-1, 0, 1, 2], [0, 1, 2, float("nan")], [0, 1, 2, 1e30]):
        rows = {**world.rows(False), "timestamp": pa.array(times, pa.float32())}
        table(tmp_path / item.files[0], rows)
        with pytest.raises(Unreadable):
            read(tmp_path, item)


def test_nearest_frame():
    def shown(frame_times, times, slack=0.05):
        frames = (Frame(time, lambda time=time: time) for time in frame_times)
        return [picture() for picture in nearest(frames, np.array(times), slack, "x")]

    assert shown([0, 0.1, 0.2, 0.3], [0, 0.1, 0.3]) == [0, 0.1, 0.3]
    assert shown([0, 0.04, 0.06, 0.1], [0.05, 0.09]) == [0.06, 0.1]
    assert shown([0.01, 0.12, 0.19], [0, 0.1, 0.2]) == [0.01, 0.12, 0.19]
    for frames in ([], [0], [0, 0.1, 0.3], [0.1, 0.2]):
        with pytest.raises(Unreadable):
            shown(frames, [0, 0.1, 0.2])
