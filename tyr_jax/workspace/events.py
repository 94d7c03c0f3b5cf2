"""The events of a run: in memory and, if the run has a directory, in a file of JSON lines."""

import copy
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.files import parse_json, read_text, write_text
from tyr_jax.options import as_json
from tyr_jax.workspace.facts import Ended
from tyr_jax.workspace.records import Damped
from tyr_jax.workspace.schema import Count, Record, Seconds, check_version, mended, parse

NAME = "events.jsonl"
"""Name of the file."""

MAX_BYTES = 2**27
"""The largest file that is read, in bytes; enough for a million events."""


class Event(Record):
    """An event of any kind, a line of `events.jsonl`."""

    mend = "delete it, or start over with --restart"

    event: str
    seconds: Seconds


class DampedEvent(Event, Damped):
    """The event of a site whose damping was raised."""


class Lost(Event):
    """The event of candidates of a step whose objectives were not finite."""

    stage: str
    step: Count
    candidates: Count


class StageEvent(Event):
    """The event of a stage that ended."""

    ended: Ended


EVENTS: dict[str, type[Event]] = {
    "damping raised": DampedEvent,
    "objective not finite": Lost,
    "stage": StageEvent,
}
"""Events with fields of their own, by name."""


class EventLog:
    """Events of a run, preceded by those of the interrupted run that it continues.

    With a file, each event is a line that is flushed at once. The first event has the format version.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries = read_entries(path) if path else []
        if path and self._entries:
            # Drops an incomplete last line, so that new events do not continue it.
            write_text(path, as_lines(self._entries))
        self._file = path.open("a" if self._entries else "w", encoding="utf-8") if path else None
        self._start = time.monotonic()
        self._fields: dict[str, Any] = {}
        if not self._entries:
            self.write("log", format_version=Event.version)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()

    def part(self, **fields: Any) -> "EventLog":
        """The same log for a part of the work, whose events also have these `fields`."""
        part = copy.copy(self)
        part._fields = self._fields | fields
        return part

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, with the seconds since the start of the run.

        Raises:
            UserError: the file has disappeared.
        """
        seconds = round(time.monotonic() - self._start, 3)
        entry = as_json({"event": event, "seconds": seconds, **self._fields, **fields})
        self._entries.append(entry)
        if self._path and self._file:
            _check_there(self._path)
            self._file.write(as_lines([entry]))
            self._file.flush()

    def entries(self) -> list[dict[str, Any]]:
        """All events, including those of the run that this one continues.

        The log of a part has that part's events and the events that all parts share.
        """
        return [
            entry
            for entry in self._entries
            if all(entry.get(name, value) == value for name, value in self._fields.items())
        ]

    def written(self, event: str) -> list[dict[str, Any]]:
        """All events with the name `event`."""
        return [entry for entry in self.entries() if entry["event"] == event]

    def save(self, directory: Path) -> None:
        """Write all events to `events.jsonl` in a directory."""
        write_text(directory / NAME, as_lines(self.entries()))


def as_lines(entries: Iterable[dict[str, Any]]) -> str:
    """Events as JSON lines."""
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)


def _check_there(path: Path) -> None:
    """Check that a file was not deleted or moved. Writing to it while it is open would not fail.

    Raises:
        UserError: it was.
    """
    if not path.is_file():
        raise UserError(
            f"{path} has disappeared while the run was writing it: something deletes or moves what lies "
            "beside the output; start the same command again"
        )


def read_entries(path: Path) -> list[dict[str, Any]]:
    """All events in a file; none if there is no file.

    An incomplete last line, left by a killed process, is dropped.

    Raises:
        UserError: a line is not an event, or the file is of another version; names it.
    """
    if not os.path.lexists(path):
        return []
    with mended(Event):
        *lines, _ = read_text(path, MAX_BYTES).split("\n")
    return [_entry(line, f"{path}, line {number}", number == 1) for number, line in enumerate(lines, 1)]


def _entry(line: str, where: str, first: bool) -> dict[str, Any]:
    """The event in a line. The first line has the version."""
    with mended(Event):
        entry = parse_json(line, where)
    if first:
        check_version(entry, Event, where)
    name = parse(Event, entry, where).event
    return parse(EVENTS.get(name, Event), entry, where).as_json()
