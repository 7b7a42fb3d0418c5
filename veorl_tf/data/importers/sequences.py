"""Pictures in files of their own, read one after the other: folders of pictures, BridgeData V2's
raw recordings and nuScenes' cameras. All are footage, without actions.

An item holds the names of its pictures and `times`, when each was taken, in seconds from the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import (
    Footage,
    Frame,
    Item,
    Unreadable,
    inside,
    natural,
    relative,
    walk,
)
from veorl_tf.data.importers.pictures import SUFFIXES, load_picture
from veorl_tf.data.mistaken import mistaken

PIECE = 3000  # pictures of a long sequence that one worker imports


class PictureSequence(Footage):
    """What readers of picture files have in common: an item names them in order, with `times`."""

    def frames(self, source, item, options):
        for name, time in zip(item.files, item.spec["times"], strict=True):
            yield Frame(time, partial(_load, source, name))

    def pieces(self, source, item):
        count = len(item.files)
        if count < 2 * PIECE:
            return [item]
        begins = range(0, count - PIECE + 1, PIECE)
        cuts = [slice(a, b) for a, b in zip(begins, [*begins[1:], count])]
        return [
            _sequence(f"{item.name}#{i:04d}", item.files[cut], item.spec["times"][cut])
            for i, cut in enumerate(cuts)
        ]


class ImageFolders(PictureSequence):
    """Folders of pictures: one, or a tree of them. Each that holds at least two is a sequence, in
    natural order, at the rate of the clips: its pictures have no times."""

    name = "images"
    about = "folders of jpg or png pictures, in natural order"

    def detect(self, source):
        return any(len(_pictures(names)) > 1 for _, names in walk(source))

    def items(self, source, options, leave_out):
        for folder, names in walk(source):
            pictures = _pictures(names)
            if len(pictures) > 1:
                name = _name_of(source) if folder == source else relative(source, folder)
                files = [relative(source, folder / picture) for picture in pictures]
                yield _sequence(name, files, [k / (options.fps or 1) for k in range(len(files))])


class BridgeData(PictureSequence):
    """BridgeData V2 as recorded, https://rail-berkeley.github.io/bridgedata:

        .../<date>/raw/traj_group<i>/traj<j>/images0/im_<k>.jpg     also images1, depth_images0, ...
                                            /obs_dict.pkl, policy_out.pkl, agent_data.pkl, lang.txt

    An item is a trajectory seen by one camera, `images0` or the one that `camera` names. Picture k
    was taken at k / 5 s: the robot acts at 5 Hz. Actions are pickles, which are never opened.
    """

    name = "bridge"
    about = "BridgeData V2, raw: trajectory folders with images0/im_0.jpg, ...; pictures only"

    rate = 5.0
    TRAJECTORY = re.compile(r"traj[0-9]+")
    PICTURE = re.compile(r"im_([0-9]{1,9})\.(jpg|jpeg|png)")

    def detect(self, source):
        return any((folder / "images0/im_0.jpg").is_file() for folder in self.trajectories(source))

    def items(self, source, options, leave_out):
        camera = options.camera or "images0"
        if not re.fullmatch(r"\w+", camera):
            raise UserError(f"--camera {camera}: the name of a folder beside images0 expected")
        for folder in self.trajectories(source):
            _, names = next(walk(folder / camera), (None, []))
            found = [match for name in names if (match := self.PICTURE.fullmatch(name))]
            name = relative(source, folder / camera)
            if len(found) > 1:
                files = [f"{name}/{match[0]}" for match in found]
                yield _sequence(name, files, [int(match[1]) / self.rate for match in found])
            else:
                leave_out(Unreadable(name, "fewer than two pictures im_0.jpg, im_1.jpg, ..."))

    def trajectories(self, source: Path) -> Iterator[Path]:
        """Folders that are called like trajectories, or hold pickles beside folders of pictures."""
        for folder, names in walk(source):
            pickles = any(name.endswith(".pkl") for name in names)
            if self.TRAJECTORY.fullmatch(folder.name) or pickles and (folder / "images0").is_dir():
                yield folder


class NuScenes(PictureSequence):
    """nuScenes by its tables, https://www.nuscenes.org/nuscenes#data-format, each a JSON list of
    records that name each other by `token`:

        v1.0-mini/ or v1.0-trainval/:                   scene <- sample <- sample_data
            scene.json sample.json sample_data.json                         |
            calibrated_sensor.json sensor.json      sensor <- calibrated_sensor
        samples/CAM_FRONT/*.jpg    at 2 Hz, annotated
        sweeps/CAM_FRONT/*.jpg     between them, 12 Hz in all

    An item is a scene seen by one camera, `CAM_FRONT` or the one that `camera` names: samples and
    sweeps in the order of their `timestamp`, which counts microseconds. `split` names the folder of
    tables where there are several.
    """

    name = "nuscenes"
    about = "nuScenes: v1.0-mini/*.json, samples/, sweeps/; a camera's pictures by scene"

    SCENE = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")

    def detect(self, source):
        return bool(self.splits(source))

    def items(self, source, options, leave_out):
        tables = self.tables(source, options.split)
        camera = options.camera or "CAM_FRONT"
        mounted = self.mounted(tables, camera)
        scenes = dict(table(tables, "scene", token=str, name=str))
        scene_of = dict(table(tables, "sample", token=str, scene_token=str))
        taken: dict[str, list[tuple[int, str]]] = {token: [] for token in scenes}
        columns = {
            "calibrated_sensor_token": str,
            "sample_token": str,
            "timestamp": int,
            "filename": str,
        }
        for sensor, sample, time, name in table(tables, "sample_data", **columns):
            if sensor not in mounted:
                continue
            if scene_of.get(sample) in taken:
                taken[scene_of[sample]].append((time, name))
            else:
                leave_out(Unreadable(name, "belongs to no scene of the tables"))
        before = None
        for token, scene in sorted(scenes.items(), key=lambda item: (natural(item[1]), item[0])):
            records = sorted(taken.pop(token))
            if not self.SCENE.fullmatch(scene) or scene == before:
                leave_out(Unreadable(scene, "no name for a scene, or a second one of that name"))
            elif len(records) < 2:
                leave_out(Unreadable(scene, f"fewer than two pictures of {camera}"))
            else:
                records = self.present(source, scene, records, leave_out)
                times = [(time - records[0][0]) / 1e6 for time, _ in records]
                if len(records) > 1:
                    yield _sequence(f"{scene}/{camera}", [name for _, name in records], times)
            before = scene

    def splits(self, source: Path) -> dict[str, Path]:
        """Folders of tables by name."""
        return {path.parent.name: path.parent for path in sorted(source.glob("v1.0-*/scene.json"))}

    def tables(self, source: Path, split: str) -> Path:
        """The folder of tables of that name, or the only one. Raises UserError."""
        splits = self.splits(source)
        if not splits:
            raise UserError(f"{source}: no tables of nuScenes, v1.0-mini/scene.json, ...")
        if not split and len(splits) > 1:
            raise UserError(f"{source}: has {', '.join(splits)}; name one with --split")
        split = split or next(iter(splits))
        if split not in splits:
            raise UserError(f"--split {split}: {source} has {', '.join(splits)}")
        return splits[split]

    def mounted(self, tables: Path, camera: str) -> set[str]:
        """Tokens of that camera on the vehicles: one per calibration. Raises UserError."""
        columns = {"token": str, "channel": str, "modality": str}
        cameras: dict[str, set[str]] = {}
        for token, channel, modality in table(tables, "sensor", **columns):
            if modality == "camera":
                cameras.setdefault(channel, set()).add(token)
        if camera not in cameras:
            raise UserError(f"--camera {camera}: {tables} has {', '.join(sorted(cameras))}")
        rows = table(tables, "calibrated_sensor", token=str, sensor_token=str)
        return {token for token, sensor in rows if sensor in cameras[camera]}

    def present(self, source, scene, records, leave_out) -> Sequence[tuple[int, str]]:
        """The records of a scene whose pictures are there; the others are told, a line a reason."""
        found, lost = [], {}
        for record in records:
            try:
                inside(source, record[1])
                found.append(record)
            except Unreadable as problem:
                lost.setdefault(problem.reason, []).append(record[1])
        for reason, names in lost.items():
            others = f" (and {len(names) - 1} more of {scene})" if names[1:] else ""
            leave_out(Unreadable(names[0], reason + others))
        return found


def _load(source: Path, name: str) -> np.ndarray:
    return load_picture(inside(source, name), name)


def _sequence(name: str, files: Sequence[str], times: Sequence[float]) -> Item:
    return Item(name, tuple(files), {"times": list(times)})


def _pictures(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def _name_of(source: Path) -> str:
    """The source's own name, made different from those of the folders in it."""
    name = source.name
    while (source / name).exists():
        name += "_"
    return name


RECORD = 1 << 16  # characters of a table's record, at most
SEPARATOR = re.compile(r"\s*([\[,\]])\s*")


def table(folder: Path, name: str, /, **columns: type) -> Iterator[tuple]:
    """The named columns, `str` or `int`, of a table's rows in turn. Raises UserError."""
    path = folder / f"{name}.json"
    try:
        for number, row in enumerate(_records(path)):
            values = tuple(row.get(column) for column in columns)
            for value, (column, kind) in zip(values, columns.items()):
                if type(value) is not kind or kind is int and abs(value) >> 63:
                    raise ValueError(f"record {number} has no {column}")
            yield values
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = mistaken(path) or f"no table of nuScenes ({error})"
        raise UserError(f"{path}: {reason}") from None


def _records(path: Path) -> Iterator[dict]:
    """The objects of a JSON list, one at a time: sample_data has 2.6 million of them. Raises
    ValueError."""
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8") as file:
        text, at, allowed = "", 0, "["
        while True:
            if len(text) - at < RECORD:
                text, at = text[at:] + file.read(16 * RECORD), 0
            mark = SEPARATOR.match(text, at)
            if mark is None or mark[1] not in allowed:
                raise ValueError(f"a list of records expected, found {text[at : at + 20]!r}")
            if mark[1] == "]" or text[mark.end() : mark.end() + 1] == "]" and allowed == "[":
                return
            record, at = decode(text, mark.end())
            if not isinstance(record, dict):
                raise ValueError(f"records expected, found {text[mark.end() : at][:20]!r}")
            allowed = ",]"
            yield record
