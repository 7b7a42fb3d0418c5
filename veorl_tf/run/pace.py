"""The clock of a training loop: how many updates a call makes, and where the time goes."""

from __future__ import annotations

import time


class Pace:
    """How many updates a call makes: at first one, then as many as take about a second, so that
    signals are answered soon; never more than `most`. With `fixed` always `most`: processes that
    train together have to make the same calls."""

    SECONDS = 1.0

    def __init__(self, most: int, fixed: bool = False):
        self.most, self.now, self._count, self._began = most, most if fixed else 1, 0, 0.0
        self._calls, self._fixed = 0, fixed

    def __call__(self, count: int) -> Pace:
        self._count = count
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_) -> None:
        self._calls += 1
        if self._calls > 1 and not self._fixed:  # the first one compiles
            each = (time.monotonic() - self._began) / self._count
            self.now = max(1, min(self.most, int(self.SECONDS / each)))


class Stopwatch:
    """Where an update's time goes, as means since the last reading."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.updates = 0  # done since the last reading
        self.read_at, self.name, self.entered = time.monotonic(), "", 0.0

    def __call__(self, name: str) -> Stopwatch:
        self.name = name
        return self

    def __enter__(self):
        self.entered = time.monotonic()

    def __exit__(self, *_):
        self.sums[self.name] = self.sums.get(self.name, 0.0) + time.monotonic() - self.entered

    def read(self) -> dict[str, float]:
        """Seconds per update of each part, updates per second of wall clock; starts anew."""
        now = time.monotonic()
        means = {f"time/{name}": total / self.updates for name, total in self.sums.items()}
        means["time/updates_per_second"] = self.updates / (now - self.read_at)
        self.sums, self.updates, self.read_at = {}, 0, now
        return means
