"""Events are lines of JSON. If a process dies while it writes one, the next process continues the file."""

import json
from pathlib import Path

import pytest
from record_samples import read_events

from tyr_jax.errors import UserError
from tyr_jax.workspace.events import EventLog, read_entries


def kinds(path: Path) -> list[str]:
    return [entry["event"] for entry in read_entries(path)]


def test_events_are_lines_of_json_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.write("start", arguments=["a\nb"])
        head, first = map(json.loads, path.read_text().splitlines())
        assert (head["event"], head["format_version"]) == ("log", 1)
        assert (first["event"], first["arguments"]) == ("start", ["a\nb"])
        events.write("done")
    assert kinds(path) == ["log", "start", "done"]
    assert 0 <= first["seconds"] <= read_entries(path)[-1]["seconds"]


def test_events_of_a_part_carry_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.part(sparsity=0.5).write("round", number=1)
        events.write("done")
    _, first, last = read_entries(path)
    assert (first["sparsity"], first["number"]) == (0.5, 1)
    assert "sparsity" not in last


def test_events_are_kept_in_memory_and_can_be_saved(tmp_path: Path) -> None:
    with EventLog() as events:
        events.part(sparsity=0.5).write("round", number=1)
        events.part(sparsity=0.25).write("round", number=2)
        events.write("done")
    half = events.part(sparsity=0.5)
    assert [entry["number"] for entry in half.written("round")] == [1]
    half.save(tmp_path)
    assert kinds(tmp_path / "events.jsonl") == ["log", "round", "done"]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.write("a", value=float("nan"), more={"x": [float("inf"), 1.5]})
        assert events.written("a")[0]["value"] is None
    entry = json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)
    assert (entry["value"], entry["more"]) == (None, {"x": [None, 1.5]})


def test_events_go_on_after_those_of_an_interrupted_run(tmp_path: Path) -> None:
    """A half-written event of the interrupted run does not swallow the next one."""
    path = tmp_path / "events.jsonl"
    assert read_events(path, "a") == []
    for number in (1, 2, 3):
        with EventLog(path) as events:
            assert [entry["number"] for entry in events.written("a")] == list(range(1, number))
            events.write("a", number=number)
        with path.open("a") as file:
            file.write('{"event": "b", "num')
    assert kinds(path) == ["log", "a", "a", "a"]


@pytest.mark.parametrize("half", ["", '{"event": "lo', "\x00\x00"])
def test_a_file_that_was_only_begun_is_begun_again(half: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(half)
    with EventLog(path) as events:
        events.write("a")
    assert kinds(path) == ["log", "a"]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"event": 3, "seconds": 0}', '{"event": "stage", "seconds": 0}', ""]
)
def test_a_line_that_is_no_event_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.write("a")
    path.write_text(path.read_text() + line + "\n" + json.dumps({"event": "b", "seconds": 1}) + "\n")
    with pytest.raises(UserError, match=r"events\.jsonl, line 3.*; delete it, or start over with --restart"):
        EventLog(path)
