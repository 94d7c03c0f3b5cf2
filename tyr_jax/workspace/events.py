"""What happened in a run, as JSON lines."""

import contextlib
import copy
import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Events of a run as JSON lines, each flushed when it happens, after those of the run it goes on from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._start = time.monotonic()
        self._fields: dict[str, Any] = {}

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def part(self, **fields: Any) -> "EventLog":
        """The same log for a part of the work: its events carry `fields` as well."""
        part = copy.copy(self)
        part._fields = self._fields | fields
        return part

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the seconds since the start."""
        seconds = round(time.monotonic() - self._start, 3)
        self._file.write(json.dumps({"event": event, "seconds": seconds, **self._fields, **fields}) + "\n")
        self._file.flush()

    def written(self, event: str) -> list[dict[str, Any]]:
        """Events of one name that are in the log, those of the run it goes on from included; of a part, its
        own and what all parts share."""
        return [
            entry
            for entry in read_events(self._path, event)
            if all(entry.get(name, value) == value for name, value in self._fields.items())
        ]


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """Events of one name in a log, the last line left out if the process died while writing it."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry["event"] == event:
                found.append(entry)
    return found
