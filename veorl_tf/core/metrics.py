"""Where metrics go: `metrics.jsonl`, one JSON object a line, and TensorBoard.

Both continue after a crash as if nothing had happened: what was written after the checkpoint that
a run resumes from is taken back. A number that is not finite becomes null in metrics.jsonl, since
JSON has no NaN, and stays what it is in TensorBoard.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from veorl_tf.core.errors import warn
from veorl_tf.core.files import host, naming
from veorl_tf.core.media import gif_bytes, png_bytes
from veorl_tf.core.metrics_table import METRICS, Metric, describe, markdown

__all__ = ["METRICS", "Logger", "Metric", "Silence", "describe", "markdown", "read_metrics"]


class Logger:
    """Writes metrics of a run. Steps are updates, counted over all stages.

    Args:
        logdir: the run's directory; events go there too, so `tensorboard --logdir logs` finds them.
        resume: step and size of metrics.jsonl (of `sync`) to go back to: what was written later is
            removed, and TensorBoard forgets events of later steps. None appends.
        strict: a metric that `METRICS` does not describe raises KeyError instead of being written.
        tensorboard: False writes metrics.jsonl alone.
    """

    def __init__(
        self,
        logdir: str | Path,
        resume: tuple[int, int] | None = None,
        strict: bool = False,
        tensorboard: bool = True,
    ):
        self.logdir, self.strict = Path(logdir), strict
        self.logdir.mkdir(parents=True, exist_ok=True)
        self._path = self.logdir / "metrics.jsonl"
        _cut(self._path, None if resume is None else resume[1])
        self._file = open(self._path, "a", encoding="utf-8")
        self._events = _Events(self.logdir, resume and resume[0]) if tensorboard else None

    def scalars(self, step: int, values: Mapping[str, float], stage: str = "") -> None:
        """Write one line {"step": n, "stage": name, metric: value, ...}.

        Values are numbers or arrays of rank 0.
        """
        values = {name: float(value) for name, value in values.items()}
        unknown = [name for name in values if describe(name) is None]
        if unknown and self.strict:
            raise KeyError(
                f"metric {unknown[0]!r} is not described in veorl_tf/core/metrics_table.py"
            )
        line = {
            "step": int(step),
            **({"stage": stage} if stage else {}),
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        with naming(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._events:
            self._events.scalars(int(step), values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 3], in TensorBoard."""
        if self._events:
            self._events.picture(int(step), name, png_bytes(image), image.shape[:2])

    def video(self, step: int, name: str, frames: np.ndarray, fps: float = 20) -> None:
        """Show a video, uint8 [T, H, W, 3], in TensorBoard: an animated GIF among the images."""
        if self._events:
            self._events.picture(int(step), name, gif_bytes(frames, fps), frames.shape[1:3])

    def sync(self) -> int:
        """Bring everything to the disk; returns the size of metrics.jsonl, for `resume`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Flush and close; may be called twice."""
        with naming(self._path):
            self._file.close()
        if self._events:
            with naming(self._events.path):
                self._events.writer.close()
            self._events = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Silence:
    """In place of a `Logger` where another process of the run logs."""

    def scalars(self, step: int, values: Mapping[str, float], stage: str = "") -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def video(self, step: int, name: str, frames: np.ndarray, fps: float = 20) -> None: ...

    def sync(self) -> int:
        return 0

    def close(self) -> None: ...


class _Events:
    """TensorBoard's event file. Not by TensorFlow's writer, which cannot take back steps, nor by
    TensorBoard's, whose thread makes a full disk a crash."""

    def __init__(self, logdir: Path, resume_step: int | None):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2, summary_pb2
        number = len(list(logdir.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time())}.{host()}.{os.getpid()}.{number}"
        self.path = logdir / name
        self.writer = RecordWriter(open(self.path, "wb"))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_step is not None:
            # A session that starts at step n makes TensorBoard drop what earlier files say of steps
            # >= n.
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(resume_step + 1, session_log=session)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        values = [
            self.summary.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._add(step, summary=self.summary.Summary(value=values))

    def picture(self, step: int, name: str, data: bytes, size: tuple[int, int]) -> None:
        image = self.summary.Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=data
        )
        self._add(
            step,
            summary=self.summary.Summary(value=[self.summary.Summary.Value(tag=name, image=image)]),
        )

    def _add(self, step: int, **content: object) -> None:
        self._write(self.event.Event(wall_time=time.time(), step=step, **content))

    def _write(self, event) -> None:
        with naming(self.path):
            self.writer.write(event.SerializeToString())
            self.writer.flush()


def read_metrics(path: str | Path) -> list[dict[str, object]]:
    """Lines of a metrics.jsonl; a last line that was cut by a crash is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if text.endswith("\n") and isinstance(line, dict):
            lines.append(line)
    return lines


def _cut(path: Path, size: int | None) -> None:
    """Remove what follows the first `size` bytes, and a half-written last line."""
    content = path.read_bytes()[:size] if path.exists() else b""
    if len(content) < (size or 0):
        warn(f"{path}: {size - len(content):,} bytes of what was logged are missing")
    if not path.exists():
        return
    os.truncate(path, content.rfind(b"\n") + 1)
