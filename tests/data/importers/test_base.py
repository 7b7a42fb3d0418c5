"""What readers have in common: alignments by hand, bounds, names that climb out, trees."""

import copy
import os

import numpy as np
import pytest

from veorl_tf.core.errors import MachineError, UserError
from veorl_tf.data.importers.base import (
    ARRIVING,
    Alignment,
    Unreadable,
    aligned,
    inside,
    natural,
    needs,
    one_of,
    relative,
    scaled,
    walk,
)

IMAGES = np.zeros((4, 2, 2, 3), np.uint8)
NUMBERS = np.array([1.0, 2, 3, 4])
ENDS = np.array([False, False, True, True])
LEAVING = Alignment("leaving", "leaving", "leaving")


def test_arriving():
    arrays = {"image": IMAGES, "action": NUMBERS[:, None], "reward": NUMBERS, "success": NUMBERS}
    out = aligned(arrays | {"terminal": ENDS}, ARRIVING)
    np.testing.assert_array_equal(out["action"], [[0], [2], [3], [4]])
    np.testing.assert_array_equal(out["reward"], [0, 2, 3, 4])
    np.testing.assert_array_equal(out["success"], [1, 2, 3, 4])
    np.testing.assert_array_equal(out["discount"], [1, 1, 0, 0])
    assert {array.dtype for array in out.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(arrays["reward"], [1, 2, 3, 4])  # the reader's stay as they are


@pytest.mark.parametrize("count", (3, 4))
def test_leaving(count):
    """With a row per image the last row led to no image; with one less all led to some."""
    numbers, ends = NUMBERS[:count], ENDS[:count]
    arrays = {"image": IMAGES, "action": numbers[:, None], "reward": numbers, "success": numbers}
    out = aligned(arrays | {"terminal": ends}, LEAVING)
    np.testing.assert_array_equal(out["action"], [[0], [1], [2], [3]])
    np.testing.assert_array_equal(out["reward"], [0, 1, 2, 3])
    np.testing.assert_array_equal(out["success"], [0, 1, 2, 3])
    np.testing.assert_array_equal(out["discount"], [1, 1, 1, 0])


def test_alignments_may_differ():
    arrays = {"image": IMAGES, "action": NUMBERS[:, None], "reward": NUMBERS, "terminal": ENDS}
    out = aligned(arrays, Alignment("leaving", "arriving", "arriving"))
    np.testing.assert_array_equal(out["action"][:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(out["reward"], [0, 2, 3, 4])
    np.testing.assert_array_equal(out["discount"], [1, 1, 0, 0])
    out = aligned(arrays, Alignment("arriving", "leaving", "leaving"))
    np.testing.assert_array_equal(out["action"][:, 0], [0, 2, 3, 4])
    np.testing.assert_array_equal(out["reward"], [0, 1, 2, 3])
    np.testing.assert_array_equal(out["discount"], [1, 1, 1, 0])


def test_one_image_and_no_action():
    out = aligned({"image": IMAGES[:1], "action": np.zeros((0, 3)), "reward": []}, LEAVING)
    assert out["action"].shape == (1, 3) and out["reward"].shape == (1,)
    assert aligned({"image": IMAGES}, LEAVING) == {}


@pytest.mark.parametrize(
    "kind, count", [("arriving", 3), ("arriving", 5), ("leaving", 2), ("leaving", 5)]
)
def test_rows_must_match_images(kind, count):
    with pytest.raises(Unreadable, match=f"{count} rows of reward for 4 images"):
        aligned({"image": IMAGES, "reward": np.ones(count)}, Alignment(kind, kind, kind))


def test_scaled():
    action = np.array([[0, 0, 0], [-2, 5, 7], [0, 10, 7], [4, 20, 7]], np.float32)
    moved = scaled(action, [-2, 0, 7], [2, 10, 7])
    np.testing.assert_array_equal(moved, [[0, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert moved.dtype == np.float32 and scaled(action[:0], [-2, 0, 7], [2, 10, 7]).shape == (0, 3)


@pytest.fixture
def source(tmp_path):
    """A source with a file beside it that is none of its own."""
    (tmp_path / "source/deep").mkdir(parents=True)
    for name in ("secret", "source/a", "source/deep/b"):
        (tmp_path / name).write_text(name)
    return tmp_path / "source"


def test_inside(source):
    assert inside(source, "a").read_text() == "source/a"
    assert inside(source, "deep/../deep/b").samefile(source / "deep/b")
    assert inside(source / "a", "deep/b").samefile(source / "deep/b")  # the source is a file
    (source / "link").symlink_to("deep/b")
    assert inside(source, "link") == source / "link"


def test_inside_refuses_what_lies_outside(source):
    (source / "link").symlink_to("../secret")
    (source / "up").symlink_to("..")
    sibling = source.parent / "source2"
    sibling.mkdir()
    (sibling / "c").touch()
    outside = ("../secret", "deep/../../secret", str(source / "a"), "/etc/passwd", "link")
    for name in (*outside, "up/secret", "../source2/c"):
        with pytest.raises(Unreadable, match="lies outside") as error:
            inside(source, name)
        assert error.value.name == name


def test_inside_refuses_what_is_no_file(source):
    (source / "one").symlink_to("two")
    (source / "two").symlink_to("one")
    os.mkfifo(source / "pipe")
    for name in ("", ".", "deep", "none", "one", "pipe", "x" * 5000, "a/b", "~"):
        with pytest.raises(Unreadable, match="no such file"):
            inside(source, name)
    for name in ("a\0b", "\ud800", 5, None, ["a"]):
        with pytest.raises(Unreadable, match="no file's name"):
            inside(source, name)


def test_inside_tells_a_link_that_leads_nowhere(source):
    """Wherever it would lead: nothing is there to be read."""
    (source / "deep/gone").symlink_to("../../nowhere")
    (source / "annexed").symlink_to("../.git/annex/objects/x")
    for name, words in (("deep/gone", "leads nowhere"), ("annexed", "git annex get")):
        with pytest.raises(Unreadable, match=words):
            inside(source, name)


def test_walk(tmp_path):
    for name in ("b10/x.jpg", "b9/im_10", "b9/im_9", "b9/.hidden", ".git/x", "top", "a/deep/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "b10/pipe.jpg")
    (tmp_path / "b10/gone.jpg").symlink_to("nowhere")
    found = [(relative(tmp_path, folder), names) for folder, names in walk(tmp_path)]
    assert found == [
        (".", ["top"]),
        ("a", []),
        ("a/deep", ["y"]),
        ("b9", ["im_9", "im_10"]),
        ("b10", ["x.jpg"]),
    ]
    assert list(walk(tmp_path / "top")) == list(walk(tmp_path / "none")) == []


def test_walk_ends_in_loops(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(".")
    (tmp_path / "z").symlink_to("a")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    found = [(relative(tmp_path, folder), names) for folder, names in walk(tmp_path)]
    assert found == [(".", []), ("a", ["file"]), ("a/b", [])]


def test_walk_of_a_pit(tmp_path):
    """Folders nested deeper than Python recurses."""
    depth, fd = 1100, os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=fd)
        below = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert sum(1 for _ in walk(tmp_path)) == depth + 1
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY, dir_fd=fd)
        os.rmdir("a", dir_fd=above)
        os.close(fd)
        fd = above
    os.close(fd)


def test_natural():
    names = ["im_10", "im_9", "im_1", "b", "a", "10", "9", "im_1b", "im_01", ""]
    assert sorted(names, key=natural) == [
        "",
        "9",
        "10",
        "a",
        "b",
        "im_01",
        "im_1",
        "im_1b",
        "im_9",
        "im_10",
    ]
    huge = "9" * 10_000
    assert sorted(["x1" + huge, "x" + huge], key=natural) == ["x" + huge, "x1" + huge]
    assert natural("²") < natural("٣")  # digits of other scripts are letters


def test_unreadable_passes_between_processes():
    error = copy.copy(Unreadable("file", "reason"))  # made anew from its arguments, as by pickle
    assert (error.name, error.reason, str(error)) == ("file", "reason", "file: reason")
    assert str(Unreadable("", "reason")) == "reason"


def test_unreadable_can_be_printed():
    error = Unreadable("ä \udcff\n", "zero \0, bell \a")
    assert str(error) == "ä \\udcff\\n: zero \\x00, bell \\x07"
    str(error).encode()


def test_needs_and_one_of():
    assert needs("json", "this") is not None
    with pytest.raises(MachineError, match="LeRobot needs the package no_such"):
        needs("no_such.part", "LeRobot")
    one_of("fit", "crop", ("crop", "stretch"))
    with pytest.raises(UserError, match="--fit x: one of crop, stretch"):
        one_of("fit", "x", ("crop", "stretch"))


def test_a_snapshot_of_hugging_faces_cache(tmp_path):
    """Its files are links to the blobs of the same dataset, and to nothing else."""
    dataset = tmp_path / "datasets--someone--pusht"
    snapshot = dataset / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (dataset / "blobs").mkdir()
    (dataset / "blobs" / "f00d").write_text("a file")
    (tmp_path / "secret").write_text("another")
    (snapshot / "info.json").symlink_to("../../blobs/f00d")
    (snapshot / "stolen").symlink_to("../../../secret")
    assert inside(snapshot, "info.json").read_text() == "a file"
    with pytest.raises(Unreadable, match="outside"):
        inside(snapshot, "stolen")


def test_the_only_reward_marks_the_last_image():
    """Left with the last row, which led to no image, it would be lost; others are dropped."""
    leaving = Alignment("leaving", "leaving", "leaving")
    arrays = {"image": np.zeros((4, 2, 2, 3)), "action": np.ones((4, 1))}
    for reward, expected in (
        ([0, 0, 0, 1], [0, 0, 0, 1]),
        ([0, 2, 0, 1], [0, 0, 2, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ):
        out = aligned({**arrays, "reward": reward, "success": reward}, leaving)
        assert out["reward"].tolist() == out["success"].tolist() == expected
    assert aligned({**arrays, "terminal": [0, 0, 0, 1]}, leaving)["discount"].all()
