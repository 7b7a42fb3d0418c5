"""One progress bar: rate and time left; a line now and then where nobody watches."""

from __future__ import annotations

import sys
import time

QUIET_SECONDS = 30.0


class Progress:
    """Progress of something counted, on stderr. Made by `progress`; usable in a `with` block."""

    def __init__(self, total: int, initial: int, desc: str, unit: str):
        self.total, self.count, self.desc, self.unit = total, initial, desc, unit
        self._initial = initial
        self._begun = self._told = time.monotonic()
        self._bar = None
        self._message = ""
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=desc,
                unit=f" {unit}",
                dynamic_ncols=True,
                smoothing=0.1,
                leave=True,
                file=sys.stderr,
            )

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.count += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._told >= QUIET_SECONDS:
            self._tell()

    def note(self, text: str) -> None:
        """Print a line of its own above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """What to show beside the count from now on, for example the newest losses."""
        self._message = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Finish the bar, or print the last quiet line."""
        if self._bar is not None:
            self._bar.close()
        elif self.count > self._initial:
            self._tell()

    @property
    def rate(self) -> float:
        """Units per second since the bar began."""
        return (self.count - self._initial) / max(time.monotonic() - self._begun, 1e-9)

    def _tell(self) -> None:
        self._told = time.monotonic()
        rate = self.rate
        left = (
            f", {duration((self.total - self.count) / rate)} left"
            if rate > 0 and self.count < self.total
            else ""
        )
        speed = (
            f"{rate:.2f} {self.unit}/s"
            if rate >= 0.1 or not rate
            else f"{1 / rate:.1f} s/{self.unit}"
        )
        message = f" | {self._message}" if self._message else ""
        print(
            f"{self.desc}: {self.count}/{self.total} {self.unit}, {speed}{left}{message}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def progress(total: int, initial: int = 0, desc: str = "", unit: str = "updates") -> Progress:
    """A bar from `initial` (done earlier, not counted in the rate) to `total`.

    On a terminal it is tqdm's; elsewhere a line every 30 s and one at the end.
    """
    return Progress(total, initial, desc, unit)


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3 h 20 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
