"""What a benchmark measured, kept with where, when and by which command."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def save(path: str | None, name: str, result: dict) -> None:
    """Writes `result` of `benchmarks.<name>` as JSON, after provenance and command; nothing without
    a path."""
    if not path:
        return
    from veorl_tf.run.directory import provenance

    command = f"python -m benchmarks.{name} " + " ".join(sys.argv[1:])
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(provenance() | {"command": command} | result, indent=1) + "\n")
