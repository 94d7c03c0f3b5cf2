"""What long jobs share: where they work, and what an interruption leaves them."""

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.workspace.events import read_events
from tyr_jax.workspace.job import Request, open_workspace
from tyr_jax.workspace.output import work_paths

QUIET = Request(quiet=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    output: Path
    overwrite: bool = False
    restart: bool = False
    size: int = 3


class Killed(BaseException):
    """Nothing after it is done."""


def interrupted(settings: Settings) -> None:
    """A job that has finished some work when it ends."""
    with contextlib.suppress(Killed), open_workspace(settings, QUIET) as workspace:
        workspace.store.save("piece", facts={"a": 1})
        raise Killed


def test_seconds_of_a_stage_that_was_killed_count_once(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "new")
    interrupted(settings)
    write_json(work_paths(settings.output).stage, {"part": "", "stage": "search", "seconds": 40.0})
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
    settings = Settings(tmp_path / "new")
    interrupted(settings)
    work_paths(settings.output).stage.write_text(noted)
    with pytest.raises(UserError, match=r"stage\.json"), open_workspace(settings, QUIET):
        pass
    assert not settings.output.exists()
