"""Small sources of every format, and what a worker does with one that was damaged.

`samples` writes them; `attempt` runs in a worker process, which a crash may end.
"""

import io
import json
import random
import shutil
import sys
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

import av
import h5py
import numpy as np
from PIL import Image

from veorl_tf.core.errors import UserError
from veorl_tf.data.episodes import KEYS, load_episode, save_episode
from veorl_tf.data.importers.base import Options
from veorl_tf.data.importers.registry import formats
from veorl_tf.data.importers.work import import_item, measure_actions
from veorl_tf.data.synthetic import random_episode

ROWS = 12  # of every episode
OPTIONS = Options(shortest=2, clip=8, fps=10, still=0, cut=0)
CHECKED = ("episodes", "dreamerv3", "images", "rlds")  # every content has a checksum


def samples(folder: Path) -> dict[str, Path]:
    """A source of every format."""
    writers = {
        "episodes": episodes,
        "dreamerv3": replay,
        "vd4rl": vd4rl,
        "minari": minari,
        "lerobot": lerobot,
        "rlds": rlds,
        "video": videos,
        "cliplist": cliplist,
        "images": images,
        "bridge": bridge,
        "nuscenes": nuscenes,
    }
    for name, write in writers.items():
        write(folder / name)
    return {name: folder / name for name in writers}


def picture(i: int, size=(24, 32)) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(i))
    return rng.integers(0, 256, (*size, 3), np.uint8)


def pictures(count: int = ROWS) -> np.ndarray:
    return np.stack([picture(i) for i in range(count)])


def encoded(i: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(i)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def episodes(folder: Path) -> None:
    for i in range(2):
        save_episode(folder, random_episode(ROWS, seed=i), f"{i}.npz")


def replay(folder: Path) -> None:
    folder.mkdir(parents=True)
    ids = [uuid.UUID(int=i).hex[-22:] for i in range(3)]
    for i in range(2):
        np.savez_compressed(
            folder / f"20250101T00000{i}F000000-{ids[i]}-{ids[i + 1]}-{ROWS}.npz",
            image=pictures(),
            action=np.full((ROWS, 2), 0.5, np.float32),
            reward=np.ones(ROWS, np.float32),
            is_first=np.arange(ROWS) % 8 == 0,
            is_last=np.zeros(ROWS, bool),
            is_terminal=np.zeros(ROWS, bool),
        )


def vd4rl(folder: Path) -> None:
    folder.mkdir(parents=True)
    with h5py.File(folder / "shard_1.hdf5", "w") as file:
        shape = (3, 84, 84)
        noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (ROWS, *shape), np.uint8)
        file.create_dataset("observation", data=noise, compression="gzip")
        file["action"] = np.zeros((ROWS, 2), np.float32)
        file["reward"] = np.ones(ROWS, np.float32)
        file["discount"] = np.ones(ROWS, np.float32)
        file["step_type"] = np.array([0, *[1] * (ROWS - 2), 2])


def minari(folder: Path) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group.attrs["id"] = 0
        group["observations"] = pictures(ROWS + 1)
        group["actions"] = np.zeros((ROWS, 2), np.float32)
        for key in ("rewards", "terminations", "truncations"):
            group[key] = np.zeros(ROWS, np.float32 if key == "rewards" else bool)
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]}
    metadata = {"total_episodes": 1, "total_steps": ROWS, "action_space": json.dumps(box)}
    (data / "metadata.json").write_text(json.dumps(metadata))


def lerobot(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    video(folder / "videos/chunk-000/observation.image/episode_000000.mp4", ROWS)
    rows = {
        "action": [[0.1 * i, 1.0] for i in range(ROWS)],
        "timestamp": [i / 10 for i in range(ROWS)],
        "frame_index": list(range(ROWS)),
        "episode_index": [0] * ROWS,
        "index": list(range(ROWS)),
        "next.reward": [1.0] * ROWS,
    }
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(rows), folder / "data/chunk-000/episode_000000.parquet")
    chunk = "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "total_episodes": 1,
        "chunks_size": 1000,
        "data_path": f"data/{chunk}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": {
            "observation.image": {"dtype": "video", "shape": [24, 32, 3]},
            "action": {"dtype": "float32", "shape": [2]},
            "next.reward": {"dtype": "float32", "shape": [1]},
        },
    }
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": %d}\n' % ROWS)


def rlds(folder: Path) -> None:
    """With TensorFlow's writer, where the worker that reads it has no TensorFlow."""
    import tensorflow as tf

    floats = lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values))
    ints = lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    files = tf.train.BytesList(value=[encoded(i) for i in range(ROWS)])
    features = {
        "steps/observation/image": tf.train.Feature(bytes_list=files),
        "steps/action": floats([0.5] * 2 * ROWS),
        "steps/reward": floats([1.0] * ROWS),
        "steps/is_terminal": ints([0] * (ROWS - 1) + [1]),
    }
    folder.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "toy-train.tfrecord-00000-of-00001")) as writer:
        for _ in range(2):
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def video(path: Path, frames: int = 30, codec: str = "mpeg4") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())


def videos(folder: Path) -> None:
    video(folder / "a.mp4", codec="h264")
    video(folder / "b.webm", codec="libvpx-vp9")
    video(folder / "c.avi")
    video(folder / "d.mkv", codec="h264")
    for suffix in ("gif", "webp"):
        frames = [Image.fromarray(picture(i)) for i in range(4)]
        frames[0].save(
            folder / f"e.{suffix}", save_all=True, append_images=frames[1:], duration=100
        )


def cliplist(folder: Path) -> None:
    video(folder / "abc.mp4")
    entries = [{"id": "abc", "begin": 0.5, "end": 2.0}, {"id": "abc", "begin": 2, "end": 2.9}]
    (folder / "clips.json").write_text(json.dumps(entries))


def images(folder: Path) -> None:
    for i in range(ROWS):
        put(folder / "run" / f"frame_{i}.png", encoded(i))


def bridge(folder: Path) -> None:
    trajectory = folder / "2022-01-01" / "raw" / "traj_group0" / "traj0"
    for i in range(ROWS):
        put(trajectory / "images0" / f"im_{i}.jpg", encoded(i, "JPEG"))
    put(trajectory / "policy_out.pkl", b"never opened")


def nuscenes(folder: Path) -> None:
    tables = {
        "sensor": [{"token": "s", "channel": "CAM_FRONT", "modality": "camera"}],
        "calibrated_sensor": [{"token": "c", "sensor_token": "s"}],
        "scene": [{"token": "scene", "name": "scene-0001"}],
        "sample": [{"token": "sample", "scene_token": "scene", "timestamp": 0}],
        "sample_data": [
            {
                "token": str(i),
                "sample_token": "sample",
                "calibrated_sensor_token": "c",
                "timestamp": 100_000 * i,
                "filename": f"sweeps/CAM_FRONT/{i}.jpg",
                "is_key_frame": i == 0,
            }
            for i in range(ROWS)
        ],
    }
    for name, rows in tables.items():
        put(folder / "v1.0-mini" / f"{name}.json", json.dumps(rows).encode())
    for i in range(ROWS):
        put(folder / "sweeps" / "CAM_FRONT" / f"{i}.jpg", encoded(i, "JPEG"))


def damage(folder: Path, seed: int) -> str:
    """Changes one file of a source: bytes flipped, zeroed, put in or taken away, or its end cut."""
    rng = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(paths)
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "zero", "insert", "remove", "cut"))
    at = rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        count = min(rng.choice((4, 64, 512)), len(data) - at)
        data[at : at + count] = bytes(count)
    elif kind == "insert":
        data[at:at] = rng.randbytes(rng.choice((1, 16, 300)))
    elif kind == "remove":
        del data[at : at + rng.choice((1, 16, 300))]
    else:
        del data[at:]
    path.write_bytes(data)
    return f"{kind} in {path.relative_to(folder)}, seed {seed}"


def attempt(format: str, source: str, seed: int) -> dict:
    """Imports a source, damaged by `seed` (-1: as it is). Returns `how` it was damaged, the
    `problems` told, and the `episodes` written: their arrays by file and key as bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "source", Path(place) / "out"
        shutil.copytree(source, folder)
        how = damage(folder, seed) if seed >= 0 else ""
        problems = []
        reader = formats()[format]
        reader.detect(folder)
        try:
            items = list(reader.items(folder, OPTIONS, problems.append))
        except UserError as error:
            return {"how": how, "problems": [str(error)], "episodes": {}}
        problems = [f"{problem.name}: {problem.reason}" for problem in problems]
        for number, item in enumerate(items):
            common = (format, str(folder), asdict(item), asdict(OPTIONS))
            if hasattr(reader, "alignment"):
                measured = measure_actions(*common)
                problems += [measured["error"][1]] if "error" in measured else []
            done = import_item(*common, str(out), f"{number:04d}")
            if "error" in done:
                problems.append(done["error"][1])
            else:
                problems += [": ".join(problem) for problem in done["problems"]]
        return {"how": how, "problems": problems, "episodes": contents(out)}


def contents(out: Path) -> dict:
    """All episodes, each of which must be whole and well-formed."""
    found = {}
    for path in sorted(out.glob("*")):
        with np.load(path, allow_pickle=False) as archive:
            kind = "target" if {"action", "reward"} <= set(archive.files) else "source"
        episode = load_episode(path, KEYS[kind])
        assert episode["image"].shape[1:] == (64, 64, 3) and len(episode["image"]) >= 2
        assert kind == "source" or np.isfinite(episode["action"]).all()
        found[path.name] = {key: array.tobytes() for key, array in episode.items()}
    return found


if __name__ == "__main__":
    sys.exit(print(json.dumps({k: str(v) for k, v in samples(Path(sys.argv[1])).items()})))
