"""What happened in a run: in memory and, where the run has a directory, in a file of JSON lines."""

import contextlib
import copy
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from tyr_jax.errors import UserError

NAME = "events.jsonl"
"""The file."""


class EventLog:
    """Events of a run, after those of the run that it goes on from; in a file, if it has one, each line is
    flushed when it happens."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries = read_entries(path) if path else []
        self._file = path.open("a", encoding="utf-8") if path else None
        self._start = time.monotonic()
        self._fields: dict[str, Any] = {}

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def part(self, **fields: Any) -> "EventLog":
        """The same log for a part of the work: its events carry `fields` as well."""
        part = copy.copy(self)
        part._fields = self._fields | fields
        return part

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the seconds since the start."""
        seconds = round(time.monotonic() - self._start, 3)
        entry = {"event": event, "seconds": seconds, **self._fields, **fields}
        self._entries.append(entry)
        if self._path and self._file:
            _check_there(self._path, self._file)
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def entries(self) -> list[dict[str, Any]]:
        """All events, those of the run that it goes on from included; of a part, its own and what all parts
        share."""
        return [
            entry
            for entry in self._entries
            if all(entry.get(name, value) == value for name, value in self._fields.items())
        ]

    def written(self, event: str) -> list[dict[str, Any]]:
        """Events of one name."""
        return [entry for entry in self.entries() if entry["event"] == event]

    def save(self, directory: Path) -> None:
        """Write all events into a directory."""
        lines = [json.dumps(entry) + "\n" for entry in self.entries()]
        (directory / NAME).write_text("".join(lines), encoding="utf-8")


def _check_there(path: Path, file: IO[str]) -> None:
    """Notice that an open file was deleted or moved, which writing to it does not.

    Raises:
        UserError: it was.
    """
    if not (path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        raise UserError(
            f"{path} has disappeared while the run was writing it: something deletes or moves what lies "
            "beside the output; start the same command again"
        )


def read_entries(path: Path) -> list[dict[str, Any]]:
    """All events in a file, the last line left out if the process died while writing it."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def read_events(path: Path, event: str) -> list[dict[str, Any]]:
    """Events of one name in a file."""
    return [entry for entry in read_entries(path) if entry["event"] == event]
