"""metrics.jsonl and TensorBoard, and how they go on after a crash."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from veorl_tf.core import metrics
from veorl_tf.core.metrics import METRICS, Logger, describe, markdown, read_metrics


def lines(tmp_path):
    return read_metrics(tmp_path / "metrics.jsonl")


def test_table():
    assert describe("time/data") is METRICS["time/data"]  # the exact entry comes before the pattern
    assert describe("time/anything") is METRICS["time/*"] and describe("time/a/b") is None
    assert describe("nothing") is None
    for pattern, metric in METRICS.items():
        assert metric.unit and metric.description.endswith(".") and f"`{pattern}`" in markdown()


def test_lines(tmp_path):
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.scalars(3, {"time/data": np.float32(0.5), "other": np.array(2)}, "model")
        logger.scalars(4, {"a": math.nan, "b": math.inf, "c": -1})
    assert lines(tmp_path) == [
        {"step": 3, "stage": "model", "time/data": 0.5, "other": 2.0},
        {"step": 4, "a": None, "b": None, "c": -1.0},
    ]
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # strictly JSON: no NaN


def test_strict(tmp_path):
    with Logger(tmp_path, strict=True, tensorboard=False) as logger:
        logger.scalars(0, {"time/data": 1})
        with pytest.raises(KeyError, match="undescribed"):
            logger.scalars(1, {"time/data": 1, "undescribed": 2})
    assert len(lines(tmp_path)) == 1


def test_resume_takes_back_later_lines(tmp_path):
    with Logger(tmp_path, tensorboard=False) as logger:
        sizes = []
        for step in range(5):
            logger.scalars(step, {"a": step})
            sizes.append(logger.sync())
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "a": ')  # killed while writing
    with Logger(tmp_path, (2, sizes[2]), tensorboard=False) as logger:
        logger.scalars(3, {"a": 30})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 30),
    ]
    with Logger(tmp_path, tensorboard=False) as logger:  # without a step it appends
        logger.scalars(3, {"b": 1})
    assert len(lines(tmp_path)) == 5


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    with Logger(tmp_path) as logger:
        sizes = []
        for step in range(5):
            logger.scalars(step, {"a": step})
            sizes.append(logger.sync())
        logger.image(1, "picture", frames[0])
        logger.video(1, "film", frames, fps=10)
    with Logger(tmp_path, (2, sizes[2])) as logger:
        logger.scalars(3, {"a": math.inf})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, math.inf),
    ]
    picture = Image.open(io.BytesIO(events.Images("picture")[0].encoded_image_string))
    np.testing.assert_array_equal(np.asarray(picture), frames[0])
    film = Image.open(io.BytesIO(events.Images("film")[0].encoded_image_string))
    assert (
        film.format == "GIF"
        and film.n_frames == 3
        and film.size == (24, 16)
        and film.info["duration"] == 100
    )
    assert events.Images("film")[0].width == 24


def test_everything_in_the_module_is_reachable():
    assert all(hasattr(metrics, name) for name in metrics.__all__)


def test_documented():
    """docs/metrics.md holds the table as it is in the code."""
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert markdown() in text
