"""The output directory is whole or not there, and an old one is only lost to a new one."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.workspace import output
from tyr_jax.workspace.events import EventLog, read_entries, read_events
from tyr_jax.workspace.output import staged_directory


def write(target: Path, overwrite: bool = False, content: str = "new") -> None:
    with staged_directory(target, overwrite, restart=False) as paths:
        assert paths.staging.parent.parent == target.resolve().parent
        (paths.staging / "model").write_text(content)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with something in it."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "model").write_text("old")
    return old


def test_a_new_directory(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    write(target)
    assert (target / "model").read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o755
    assert os.listdir(tmp_path / "a") == ["b"]


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path)
    assert os.listdir(tmp_path) == ["model"]


def test_a_directory_in_use_is_replaced_only_if_asked(old: Path) -> None:
    with pytest.raises(UserError, match=r"old exists and is not empty; .*--overwrite"):
        write(old)
    assert (old / "model").read_text() == "old"
    (old / "notes").touch()
    write(old, overwrite=True)
    assert os.listdir(old) == ["model"]
    assert os.listdir(old.parent) == ["old"]


def write_half(target: Path, error: BaseException) -> None:
    with staged_directory(target, overwrite=True, restart=False) as paths:
        (paths.staging / "model").write_text("half")
        raise error


@pytest.mark.parametrize("error", [UserError("no"), ValueError(), KeyboardInterrupt(), OSError(28, "full")])
def test_a_body_that_fails_leaves_all_as_it_was(error: BaseException, old: Path) -> None:
    for target in (old, old.parent / "a" / "b"):
        with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
            write_half(target, error)
    assert os.listdir(old.parent) == ["old"]
    assert (old / "model").read_text() == "old"


def test_the_old_output_comes_back_when_the_new_one_cannot_take_its_place(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    replace = os.replace

    def fail_second(source: Any, target: Any) -> None:
        moves.append(str(source))
        if len(moves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(output.os, "replace", fail_second)
    with pytest.raises(UserError, match=r"could not finish writing .*old: No space left on device"):
        write(old, overwrite=True)
    assert len(moves) == 3
    assert os.listdir(old.parent) == ["old"]
    assert (old / "model").read_text() == "old"


def test_files_are_no_directories(old: Path) -> None:
    file = old / "model"
    with pytest.raises(UserError, match="model is a file; choose a directory"):
        write(file, overwrite=True)
    for below in (file / "a", file / "a" / "b"):
        with pytest.raises(UserError, match=r"lies below .*model, which is a file"):
            write(below)
    assert file.read_text() == "old"


def test_names_that_the_disk_refuses(tmp_path: Path) -> None:
    # The longer one cannot even be asked about; the shorter could be, but not with what staging adds.
    for length in (300, 250):
        with pytest.raises(UserError, match=r"cannot write output directory .*File name too long"):
            write(tmp_path / ("x" * length))
    assert not os.listdir(tmp_path)


def test_links_and_dots_are_followed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = old.parent / "link"
    link.symlink_to(old, target_is_directory=True)
    write(link, overwrite=True)
    assert link.is_symlink()
    assert (old / "model").read_text() == "new"
    monkeypatch.chdir(old)
    write(Path("."), overwrite=True, content="newer")
    assert (old / "model").read_text() == "newer"


def test_events_are_lines_of_json_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.write("start", arguments=["a\nb"])
        first = json.loads(path.read_text())
        assert (first["event"], first["arguments"]) == ("start", ["a\nb"])
        events.write("done")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "done"]
    assert 0 <= first["seconds"] <= json.loads(path.read_text().splitlines()[1])["seconds"]


def test_events_of_a_part_carry_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        events.part(sparsity=0.5).write("round", number=1)
        events.write("done")
    first, last = map(json.loads, path.read_text().splitlines())
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
    assert [entry["event"] for entry in read_entries(tmp_path / "events.jsonl")] == ["round", "done"]


def test_events_go_on_after_those_of_an_interrupted_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path, "a") == []
    for number in (1, 2):
        with EventLog(path) as events:
            events.write("a", number=number)
            events.write("b")
    with path.open("a") as file:
        file.write('{"event": "a", "num')
    assert [entry["number"] for entry in read_events(path, "a")] == [1, 2]
    with EventLog(path) as events:
        assert [entry["number"] for entry in events.written("a")] == [1, 2]


def test_json_files_end_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
