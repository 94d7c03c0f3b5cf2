"""The request of a job is recorded, and checked like any input when it is read again."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from record_samples import altered, read_events

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.settings import Settings
from tyr_jax.workspace.facts import Work
from tyr_jax.workspace.job import Request, asked, claim, open_workspace
from tyr_jax.workspace.output import work_paths
from tyr_jax.workspace.programs import programs_of

SETTINGS = Settings(sparsity=(0.5,))


def test_a_job_goes_on_with_what_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    claim(path, SETTINGS)
    record = json.loads(path.read_text())
    assert record == {
        "format_version": 4,
        "settings": asked(SETTINGS),
        "programs": programs_of(asked(SETTINGS)),
    }
    claim(path, dataclasses.replace(SETTINGS, overwrite=True))
    with pytest.raises(UserError, match="used a different --seed, --sparsity; give the same"):
        claim(path, Settings(seed=1))
    assert json.loads(path.read_text()) == record


def test_numbers_that_are_not_finite_are_the_same_again(tmp_path: Path) -> None:
    pruning = dataclasses.replace(SETTINGS.pruning, damping=float("inf"))
    for _ in range(2):
        claim(tmp_path / "settings.json", dataclasses.replace(SETTINGS, pruning=pruning))


def test_whatever_is_done_to_the_note(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    refusals = []
    for what, record in altered({"format_version": 4, "settings": asked(SETTINGS), "programs": {}}):
        path.write_text(json.dumps(record))
        try:
            claim(path, SETTINGS)
        except UserError as error:
            refusals.append((what, str(error)))
    assert len(refusals) > 500
    assert not [each for each in refusals if "--restart" not in each[1]]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", b"\xff", "[" * 5000, '{"format_version": 4}', "{}"])
def test_what_is_no_note(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"settings\.json.*start over with --restart"):
        claim(path, SETTINGS)


QUIET = Request(quiet=True)


@dataclasses.dataclass(frozen=True)
class Job:
    output: Path
    overwrite: bool = False
    restart: bool = False
    size: int = 3


class Killed(BaseException):
    """The end of a process: nothing after it runs."""


def interrupted(settings: Job) -> None:
    """A job that has finished some work when it ends."""
    with contextlib.suppress(Killed), open_workspace(settings, QUIET) as workspace:
        workspace.store.save("piece", facts=Work(a=1))
        raise Killed


def test_seconds_of_a_stage_that_was_killed_count_once(tmp_path: Path) -> None:
    settings = Job(tmp_path / "new")
    interrupted(settings)
    write_json(
        work_paths(settings.output).stage,
        {"format_version": 4, "part": "", "stage": "search", "seconds": 40.0},
    )
    for _ in range(2):
        interrupted(settings)
    with open_workspace(settings, QUIET) as workspace:
        with workspace.progress.stage("search"):
            pass
        assert 40 <= workspace.progress.timings["search"] < 41
    assert os.listdir(tmp_path) == ["new"]
    assert [
        entry["ended"]["seconds"] >= 40 for entry in read_events(tmp_path / "new" / "events.jsonl", "stage")
    ] == [
        True,
        False,
    ]


@pytest.mark.parametrize("noted", ["", "[]", "{}", '{"part": "", "stage": "a", "seconds": "x"}', "[" * 5000])
def test_a_damaged_note_is_named(noted: str, tmp_path: Path) -> None:
    settings = Job(tmp_path / "new")
    interrupted(settings)
    work_paths(settings.output).stage.write_text(noted)
    with pytest.raises(UserError, match=r"stage\.json"), open_workspace(settings, QUIET):
        pass
    assert not settings.output.exists()
