"""What `inspect` tells of a directory."""

import numpy as np
import pytest

from veorl_tf.core.errors import UserError
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.inspect import contact_sheet, inspect_directory
from veorl_tf.data.synthetic import random_episode


def episode(length=7, seed=0, actions=4):
    return random_episode(length, seed, actions, image_size=8)


def test_table_of_target_data(tmp_path):
    for i, (length, success) in enumerate(((5, [0, 1, 0, 0, 0]), (9, [0] * 9))):
        data = episode(length) | {
            "reward": np.full(length, i + 1.0),
            "success": np.array(success),
            "action": np.linspace(-i, i + 1, length)[:, None].repeat(2, 1),
        }
        save_episode(tmp_path, data, name=f"{i}.npz")
    (tmp_path / "z.npz").write_bytes(b"xx")
    seen = []
    rows = inspect_directory(tmp_path, lambda *args: seen.append(args)).splitlines()
    table = {
        row.split("  ")[0]: " ".join(row.split("  ")[1:]).strip()
        for row in rows
        if not row.startswith(" ")
    }
    assert table["episodes"] == "2" and table["frames"] == "14 (12 steps)"
    assert table["lengths"] == "mean 7, from 5 to 9 frames"
    assert table["return"] == "mean 11.50, from 5.00 to 18.00"
    assert table["success"].startswith("50.0%") and table["reward"] == "1 to 2"
    assert table["action"] == "2 numbers: -1 to 2, -1 to 2"
    assert table["keys"] == "image: uint8 [n, 8, 8, 3]" and any(
        "reward: float32 [n]" in row for row in rows
    )
    assert table["damaged files"] == "1" and rows[-1].strip().startswith(
        "z.npz: no whole npz archive"
    )
    assert seen == [(1, 2), (2, 2)]


def test_source_videos_and_success_not_recorded(tmp_path):
    save_episode(tmp_path / "a", {"image": episode()["image"]})
    text = inspect_directory(tmp_path / "a")
    assert "source videos" in text and "return" not in text
    data = episode()
    del data["success"]
    save_episode(tmp_path / "b", data)
    assert "not recorded" in inspect_directory(tmp_path / "b")


def test_damage_inside_an_array_is_found(tmp_path):
    path = save_episode(tmp_path, episode(40), name="a.npz")
    data = bytearray(path.read_bytes())
    data[400:440] = bytes(40)
    path.write_bytes(data)
    assert "damaged files  1" in inspect_directory(tmp_path)
    with pytest.raises(UserError, match="a.npz"):
        contact_sheet(tmp_path)


def test_contact_sheet(tmp_path):
    for i in range(5):
        image = np.empty((11, 8, 8, 3), np.uint8)
        image[...] = (100 + 20 * i + np.arange(11))[:, None, None, None]
        save_episode(tmp_path, {"image": image}, name=f"{i}.npz")
    sheet = contact_sheet(tmp_path, episodes=3, columns=6)
    assert sheet.dtype == np.uint8 and sheet.shape == (3 * 10 - 2, 6 * 10 - 2, 3)
    assert sheet[::10, ::10, 0].tolist() == [
        [100 + 20 * i + t for t in range(0, 11, 2)] for i in (0, 2, 4)
    ]


def test_nothing_there(tmp_path):
    for function in (inspect_directory, contact_sheet):
        with pytest.raises(UserError, match="no episode"):
            function(tmp_path)
        with pytest.raises(UserError, match="no such directory"):
            function(tmp_path / "missing")
