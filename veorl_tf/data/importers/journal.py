"""What was imported into a folder, and how."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from veorl_tf.core.errors import UserError
from veorl_tf.core.files import atomic_write, naming, sweep_leftovers

REPORT, JOURNAL, LOCK = "import.json", ".import/journal.jsonl", ".import/lock"
ENTRY = {"files", "counts", "problems", "numbers"}  # of an item
WRITTEN = re.compile(r".*\.[0-9a-f]{12}\.[0-9]{4,}\.npz")  # names of episodes that imports write


class Journal:
    """What was imported into a folder: a line of JSON per finished item, by key."""

    def __init__(self, out: Path):
        self.out, self.path = out, out / JOURNAL
        self.entries: dict[str, dict] = {}
        self.digests: dict[str, str] = {}  # of files, by name, size and time
        self.measured: dict[str, dict] = {}  # actions' ranges, by key
        self.about: dict[str, str] = {}  # `source`: what is imported here
        if not self.path.exists():
            if out.is_dir() and any(path.name != ".import" for path in out.iterdir()):
                raise UserError(f"{out}: not empty, and no import; name another folder")
            if out.exists() and not out.is_dir():
                raise UserError(f"{out}: is a file; name a folder")
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                if entry["of"] == "entries" and not ENTRY <= set(entry["value"]):
                    continue
                getattr(self, entry["of"])[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the line that was being written when the process was killed
        sweep_leftovers(out)
        present = {entry.name for entry in os.scandir(out)}
        self.entries = {
            key: entry for key, entry in self.entries.items() if present.issuperset(entry["files"])
        }

    def add(self, of: str, key: str, value: Any) -> None:
        """Notes `value` under `key` in the table `of`, on disk too."""
        getattr(self, of)[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"of": of, "key": key, "value": value}) + "\n")

    def begin(self, source: Path) -> None:
        """Before anything is written: the folder belongs to this source."""
        known = self.about.get("source", str(source))
        if known != str(source):
            raise UserError(f"{self.out}: holds an import of {known}; name another folder")
        if not self.about:
            self.add("about", "source", str(source))

    def reopen(self) -> None:
        """Before episodes are written: the import is not finished."""
        (self.out / REPORT).unlink(missing_ok=True)

    def keep(self, keys: set[str]) -> int:
        """Forgets all other items and removes their episodes, and those that a killed process left;
        returns how many."""
        self.entries = {key: entry for key, entry in self.entries.items() if key in keys}
        known = {name for entry in self.entries.values() for name in entry["files"]}
        gone = [path for path in self.out.glob("*.npz") if WRITTEN.fullmatch(path.name)]
        gone = [path for path in gone if path.name not in known]
        for path in gone:
            path.unlink()
        with atomic_write(self.path, "w") as file:
            for of in ("about", "digests", "measured", "entries"):
                for key, value in sorted(getattr(self, of).items()):
                    file.write(json.dumps({"of": of, "key": key, "value": value}) + "\n")
        return len(gone)


def unfinished(folder: Path) -> bool:
    """Whether a folder holds an import that was interrupted."""
    return (folder / JOURNAL).exists() and not (folder / REPORT).exists()


def action_scale(folder: Path) -> dict[str, list[float]]:
    """`low` and `high`, the actions that an import made -1 and 1; empty where none were scaled."""
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))["action"] or {}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / REPORT}: damaged; import again") from None
