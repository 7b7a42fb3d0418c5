"""Folders of pictures, BridgeData V2 as recorded, and nuScenes by its tables."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import Item, Options, Unreadable
from veorl_tf.data.importers.clips import Counts, clips, steady
from veorl_tf.data.importers.sequences import PIECE, BridgeData, ImageFolders, NuScenes, table

READERS = (ImageFolders(), BridgeData(), NuScenes())


def draw(path, shade):
    """A picture file of one shade of grey, 8 x 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(path)


def listed(reader, source, **options):
    """Items, and what was left out as (name, reason)."""
    left = []
    items = list(reader.items(source, Options(**options), left.append))
    assert all(Item(**json.loads(json.dumps(vars(item)))).name == item.name for item in items)
    return items, [(problem.name, problem.reason) for problem in left]


def shades(reader, source, item, **options):
    """Pairs (time, shade) of an item's frames."""
    frames = reader.frames(source, item, Options(**options))
    return [(frame.time, round(frame.picture().mean())) for frame in frames]


# -- folders of pictures


@pytest.fixture
def folders(tmp_path):
    source = tmp_path / "walks"
    for k in (0, 1, 2, 10):
        draw(source / f"b2/im_{k}.png", 10 * k)
    for k in range(3):
        draw(source / f"b10/im_{k}.JPG", 100 + k)
    draw(source / "lone/im.png", 1)
    draw(source / ".hidden/a.png", 1)
    draw(source / ".hidden/b.png", 1)
    (source / "b2/notes.txt").write_text("no picture")
    return source


def test_image_folders(folders):
    reader = ImageFolders()
    assert reader.detect(folders)
    items, left = listed(reader, folders)
    assert [item.name for item in items] == ["b2", "b10"] and not left
    assert items[0].files == ("b2/im_0.png", "b2/im_1.png", "b2/im_2.png", "b2/im_10.png")
    expected = [(0, 0), (0.1, 10), (0.2, 20), (0.3, 100)]
    assert shades(reader, folders, items[0]) == [(pytest.approx(t), s) for t, s in expected]
    items, _ = listed(reader, folders, fps=0)
    assert [time for time, _ in shades(reader, folders, items[1])] == [0, 1, 2]


def test_the_source_itself_is_a_sequence(folders):
    reader = ImageFolders()
    (item,), _ = listed(reader, folders / "b2")
    assert item.name == "b2" and item.files[1] == "im_1.png"
    assert len(shades(reader, folders / "b2", item)) == 4
    for k in range(2):
        draw(folders / f"im_{k}.png", k)
        draw(folders / f"walks/im_{k}.png", k)
    names = [item.name for item in listed(reader, folders)[0]]
    assert names == ["walks_", "b2", "b10", "walks"]


def test_pictures_through_links(folders):
    (folders / "b2/up").symlink_to("..")
    (folders / "c").symlink_to("b2")
    assert [item.name for item in listed(ImageFolders(), folders)[0]] == ["b2", "b10"]
    draw(folders.parent / "secret.png", 7)
    (folders / "b2/im_1.png").unlink()
    (folders / "b2/im_1.png").symlink_to("../../secret.png")
    items, _ = listed(ImageFolders(), folders)
    with pytest.raises(Unreadable, match="b2/im_1.png: lies outside"):
        shades(ImageFolders(), folders, items[0])


def test_names_that_are_no_text(tmp_path):
    for k in range(2):
        draw(tmp_path / "a" / f"{k}.png", k)
    os.rename(bytes(tmp_path / "a"), bytes(tmp_path) + b"/\xff")
    (item,), _ = listed(ImageFolders(), tmp_path)
    assert shades(ImageFolders(), tmp_path, item) == [(0, 0), (0.1, 1)]


def test_pictures_are_loaded_when_asked_for(folders):
    reader = ImageFolders()
    items, _ = listed(reader, folders)
    (folders / "b2/im_0.png").write_bytes(b"")
    (folders / "b2/im_1.png").unlink()
    frames = list(reader.frames(folders, items[0], Options()))
    assert len(frames) == 4 and frames[2].picture().shape == (6, 8, 3)
    with pytest.raises(Unreadable, match="b2/im_0.png: no whole JPEG or PNG picture"):
        frames[0].picture()
    with pytest.raises(Unreadable, match="b2/im_1.png: no such file"):
        frames[1].picture()


def test_clips_of_a_folder_with_damage(tmp_path):
    for k in range(12):
        draw(tmp_path / f"{k}.png", 5 * k)
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    (item,), _ = listed(ImageFolders(), tmp_path)
    options, problems = Options(size=4, shortest=3), []
    frames = steady(ImageFolders().frames(tmp_path, item, options), options.fps)
    out = [c[:, 0, 0, 0].tolist() for c in clips(frames, options, Counts(), problems)]
    assert str(problems[0]).startswith("5.png: no whole") and len(problems) == 1
    assert out == [[0, 5, 10, 15, 20], [30, 35, 40, 45, 50, 55]]


def test_long_sequences_are_split():
    count = 2 * PIECE + 100
    times = [k / 10 for k in range(count)]
    item = Item("walk", tuple(f"{k}.png" for k in range(count)), {"times": times})
    pieces = ImageFolders().pieces(None, item)
    assert [piece.name for piece in pieces] == ["walk#0000", "walk#0001"]
    assert sum((piece.files for piece in pieces), ()) == item.files
    assert sum((piece.spec["times"] for piece in pieces), []) == times
    assert [len(piece.files) for piece in pieces] == [PIECE, PIECE + 100]
    short = Item("walk", item.files[:9], {"times": times[:9]})
    assert ImageFolders().pieces(None, short) == [short]


# -- BridgeData V2


@pytest.fixture
def bridge(tmp_path):
    """Two trajectories of a date, one of another; shade 10 * trajectory + picture."""
    dates = tmp_path / "bridge/rss/toykitchen2/set_table/00"
    one, two = dates / "2022-01-01_00-00-00", dates / "2022-01-02_00-00-00"
    for j, folder in enumerate((one, one, two)):
        folder = folder / f"raw/traj_group0/traj{(9, 10, 0)[j]}"
        for k in range(11):
            draw(folder / f"images0/im_{k}.jpg", 20 * j + k)
            draw(folder / f"images1/im_{k}.jpg", 100 + 20 * j + k)
        for name in ("policy_out.pkl", "obs_dict.pkl", "agent_data.pkl"):
            (folder / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
        (folder / "lang.txt").write_text("set the table")
    depth = np.full((6, 8), 77 << 8, np.uint16)
    for k in range(2):
        path = one / f"raw/traj_group0/traj9/depth_images0/im_{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(depth).save(path)
    (one / "collection_metadata.json").write_text("{}")
    draw(one / "diagnostics.png", 0)
    (one / "lmdb").mkdir()
    return tmp_path / "bridge"


GROUP = "rss/toykitchen2/set_table/00/2022-01-0{}_00-00-00/raw/traj_group0/{}"


def test_bridge(bridge):
    reader = BridgeData()
    assert reader.detect(bridge)
    items, left = listed(reader, bridge)
    trajectories = [GROUP.format(1, "traj9"), GROUP.format(1, "traj10"), GROUP.format(2, "traj0")]
    assert [item.name for item in items] == [f"{name}/images0" for name in trajectories]
    assert not left
    expected = [(k / 5, 20 + k) for k in range(11)]
    assert shades(reader, bridge, items[1]) == expected
    assert not [path for path in bridge.rglob("*") if path.name == "hacked"]


def test_bridge_cameras(bridge):
    reader = BridgeData()
    items, left = listed(reader, bridge, camera="images1")
    assert [shades(reader, bridge, item)[0] for item in items] == [(0, 100), (0, 120), (0, 140)]
    items, left = listed(reader, bridge, camera="depth_images0")
    assert shades(reader, bridge, items[0]) == [(0, 77), (0.2, 77)]
    reason = "fewer than two pictures im_0.jpg, im_1.jpg, ..."
    assert left == [
        (f"{GROUP.format(1, 'traj10')}/depth_images0", reason),
        (f"{GROUP.format(2, 'traj0')}/depth_images0", reason),
    ]
    for camera in ("../images0", "/etc", "a/b", "."):
        with pytest.raises(UserError, match="--camera"):
            listed(reader, bridge, camera=camera)


def test_bridge_from_any_folder_of_the_tree(bridge):
    reader = BridgeData()
    trajectory = bridge / GROUP.format(1, "traj9")
    for source in (trajectory, trajectory.parent, bridge / "rss/toykitchen2"):
        assert reader.detect(source)
    (item,), _ = listed(reader, trajectory)
    assert item.name == "images0" and item.files[10] == "images0/im_10.jpg"
    trajectory.rename(trajectory.parent / "other")  # known by its pickles
    assert reader.detect(trajectory.parent / "other")


def test_bridge_pictures_that_lack_leave_a_gap(bridge):
    folder = bridge / GROUP.format(1, "traj9") / "images0"
    (folder / "im_3.jpg").unlink()
    (folder / "im_5.jpg").rename(folder / "copy of im_5.jpg")
    (folder / f"im_{'9' * 200}.jpg").touch()
    item = listed(BridgeData(), bridge)[0][0]
    times = [time for time, _ in shades(BridgeData(), bridge, item)]
    assert times == [k / 5 for k in (0, 1, 2, 4, 6, 7, 8, 9, 10)]


# -- nuScenes

START = 1532402927612460


class World:
    """Two scenes of 4 samples, at 2 Hz, seen by two cameras with 5 sweeps between samples; the
    shade is 40 * scene + frame, + 100 for the second camera. Rows are in no order."""

    def __init__(self, root, split="v1.0-mini"):
        self.root, self.folder = root, root / split
        self.tables = {
            "sensor": [
                {"token": "s0", "channel": "CAM_FRONT", "modality": "camera"},
                {"token": "s1", "channel": "CAM_BACK", "modality": "camera"},
                {"token": "s2", "channel": "LIDAR_TOP", "modality": "lidar"},
            ],
            "calibrated_sensor": [
                {"token": f"c{scene}{s}", "sensor_token": f"s{s}", "rotation": [1.0, 0, 0, 0]}
                for scene in range(2)
                for s in range(3)
            ],
            "scene": [
                {"token": f"scene{scene}", "name": f"scene-{(1100, 103)[scene]:04d}"}
                for scene in range(2)
            ],
            "sample": [
                {"token": f"{scene}-{k}", "scene_token": f"scene{scene}"}
                for scene in range(2)
                for k in range(4)
            ],
            "sample_data": [],
        }
        for scene in range(2):
            for s, channel in enumerate(("CAM_FRONT", "CAM_BACK", "LIDAR_TOP")):
                for k in range(19):
                    self.add(scene, s, channel, k)
        np.random.default_rng(0).shuffle(self.tables["sample_data"])
        self.write()

    def add(self, scene, s, channel, k):
        kind = "sweeps" if k % 6 else "samples"
        time = START + 10**9 * scene + k * 10**6 // 12
        suffix = ".pcd.bin" if channel == "LIDAR_TOP" else ".jpg"
        name = f"{kind}/{channel}/n015-2018-07-24__{channel}__{time}{suffix}"
        self.tables["sample_data"].append(
            {
                "token": f"{scene}-{s}-{k}",
                "sample_token": f"{scene}-{-(-k // 6)}",
                "calibrated_sensor_token": f"c{scene}{s}",
                "timestamp": time,
                "fileformat": suffix[1:],
                "is_key_frame": k % 6 == 0,
                "height": 900,
                "width": 1600,
                "filename": name,
            }
        )
        if s < 2:
            draw(self.root / name, 40 * scene + k + 100 * s)

    def write(self, indent=0):
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (self.folder / f"{name}.json").write_text(json.dumps(rows, indent=indent))

    def front(self, scene):
        """Records of the front camera, in the order of their times."""
        rows = self.tables["sample_data"]
        rows = [row for row in rows if row["calibrated_sensor_token"] == f"c{scene}0"]
        return sorted(rows, key=lambda row: row["timestamp"])


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "nuscenes")


def test_nuscenes(world):
    reader = NuScenes()
    assert reader.detect(world.root)
    items, left = listed(reader, world.root)
    assert [item.name for item in items] == ["scene-0103/CAM_FRONT", "scene-1100/CAM_FRONT"]
    assert not left
    assert list(items[0].files) == [row["filename"] for row in world.front(1)]
    out = shades(reader, world.root, items[0])
    assert [shade for _, shade in out] == [40 + k for k in range(19)]
    assert [time for time, _ in out] == [pytest.approx(k / 12, abs=2e-6) for k in range(19)]
    assert all(item.files[0].startswith("samples/") for item in items)
    assert items[0].files[1].startswith("sweeps/")


@pytest.mark.parametrize("indent", (None, 2))
def test_nuscenes_other_camera_and_white_space(world, indent):
    world.write(indent)
    items, _ = listed(NuScenes(), world.root, camera="CAM_BACK")
    assert items[1].name == "scene-1100/CAM_BACK"
    assert shades(NuScenes(), world.root, items[1])[0] == (0, 100)
    for camera in ("LIDAR_TOP", "CAM", "../x"):
        with pytest.raises(UserError, match=f"--camera {camera}: .* has CAM_BACK, CAM_FRONT"):
            listed(NuScenes(), world.root, camera=camera)


def test_nuscenes_splits(world):
    World(world.root, "v1.0-trainval")
    with pytest.raises(UserError, match="has v1.0-mini, v1.0-trainval; name one with --split"):
        listed(NuScenes(), world.root)
    assert len(listed(NuScenes(), world.root, split="v1.0-trainval")[0]) == 2
    for split in ("v1.0-test", "..", "/"):
        with pytest.raises(UserError, match="--split"):
            listed(NuScenes(), world.root, split=split)
    with pytest.raises(UserError, match="no tables of nuScenes"):
        listed(NuScenes(), world.root / "samples")


def test_nuscenes_leaves_out_what_is_not_there(world):
    rows = world.front(1)
    (world.root / rows[2]["filename"]).unlink()
    (world.root / rows[3]["filename"]).unlink()
    rows[5]["filename"] = "../../etc/passwd"
    rows[6]["filename"] = "/etc/passwd"
    rows[7]["filename"] = "a\0b"
    rows[8]["sample_token"] = "nowhere"
    world.write()
    (item, _), left = listed(NuScenes(), world.root)
    assert len(item.files) == 13 and item.spec["times"][2] == pytest.approx(4 / 12, abs=2e-6)
    assert left == [
        (rows[8]["filename"], "belongs to no scene of the tables"),
        (rows[2]["filename"], "no such file (and 1 more of scene-0103)"),
        ("../../etc/passwd", "lies outside of the source (and 1 more of scene-0103)"),
        ("a\\x00b", "no file's name"),
    ]


def test_nuscenes_scenes_without_pictures(world):
    for row in world.front(0):
        (world.root / row["filename"]).unlink()
    names = ("../../up", "a/b", "scene-1100", "", ".x", "x" * 500)
    for number, name in enumerate(names):
        world.tables["scene"].append({"token": f"t{number}", "name": name})
    world.tables["scene"].append({"token": "empty", "name": "scene-0001"})
    world.write()
    items, left = listed(NuScenes(), world.root)
    assert [item.name for item in items] == ["scene-0103/CAM_FRONT"]
    names_left = sorted(name for name, _ in left)
    assert names_left == sorted([*names, "scene-0001", world.front(0)[0]["filename"]])
    reasons = dict(left)
    assert reasons["scene-0001"] == "fewer than two pictures of CAM_FRONT"
    assert reasons["a/b"].startswith("no name for a scene")
    assert reasons[world.front(0)[0]["filename"]] == "no such file (and 18 more of scene-1100)"


def test_nuscenes_tables_larger_than_a_piece(tmp_path):
    rows = [{"token": f"{k:032x}", "note": "é" * (k % 90)} for k in range(20_000)]
    (tmp_path / "sample.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert (tmp_path / "sample.json").stat().st_size > 2 << 20
    assert list(table(tmp_path, "sample", token=str)) == [(row["token"],) for row in rows]
    (tmp_path / "empty.json").write_text(" [ ] ")
    assert list(table(tmp_path, "empty", token=str)) == []


@pytest.mark.parametrize("name", ("sensor", "calibrated_sensor", "scene", "sample", "sample_data"))
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[1, 2]",
        "[{}]",
        '[{"token": "a"',
        '[{"token": "a"} {"token": "b"}]',
        '[,{"token": "a"}]',
        "[" * 100_000,
        '[{"token": "' + "a" * 200_000,
        '[{"token": ' + "9" * 9999 + "}]",
        " " * 3_000_000,
        "\x80\x04\x95",
        b"\xff\xfe\x00",
        None,
    ],
    ids=range(15),
)
def test_nuscenes_damaged_tables(tmp_path, name, text):
    for other in ("sensor", "calibrated_sensor", "scene", "sample", "sample_data"):
        path = tmp_path / f"v1.0-mini/{other}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('[{"token": "s", "channel": "CAM_FRONT", "modality": "camera"}]')
        if other not in ("sensor", name):
            path.write_text("[]")
    path = tmp_path / f"v1.0-mini/{name}.json"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"{name}.json: |no tables of nuScenes") as error:
        listed(NuScenes(), tmp_path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1.5, None, "1", True, 1 << 70, -(1 << 70), [1]])
def test_nuscenes_wrong_types(world, value):
    world.tables["sample_data"][3]["timestamp"] = value
    world.write()
    with pytest.raises(UserError, match="sample_data.json: .*record 3 has no timestamp"):
        listed(NuScenes(), world.root)


# -- all of them


def test_detection(folders, bridge, world, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "video").mkdir()
    for k in range(2):
        draw(tmp_path / f"video/{k}.png", k)
    (tmp_path / "video/film.mp4").touch()
    np.savez(tmp_path / "episode.npz", image=np.zeros(1))
    sources = {
        folders: ["images"],
        bridge: ["images", "bridge"],  # which is asked first
        world.root: ["images", "nuscenes"],
        tmp_path / "nothing": [],
        tmp_path / "video": ["images"],  # beside a film: the registry counts
        tmp_path / "episode.npz": [],
        tmp_path / "missing": [],
    }
    for source, names in sources.items():
        assert [reader.name for reader in READERS if reader.detect(source)] == names


def test_a_source_that_is_a_loop(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    for source in (tmp_path, tmp_path / "one", tmp_path / "a.png"):
        assert not any(reader.detect(source) for reader in READERS)
