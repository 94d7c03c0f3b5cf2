"""What a job was asked for is noted, and read again as input."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from record_samples import altered

from tyr_jax.errors import UserError
from tyr_jax.settings import Settings
from tyr_jax.workspace.job import asked, claim

SETTINGS = Settings(sparsity=(0.5,))


def test_a_job_goes_on_with_what_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    claim(path, SETTINGS)
    record = json.loads(path.read_text())
    assert record == {"format_version": 1, "settings": asked(SETTINGS)}
    claim(path, dataclasses.replace(SETTINGS, overwrite=True))
    with pytest.raises(UserError, match="was begun with another --seed, --sparsity; give what it"):
        claim(path, Settings(seed=1))
    assert json.loads(path.read_text()) == record


def test_numbers_that_are_not_finite_are_the_same_again(tmp_path: Path) -> None:
    pruning = dataclasses.replace(SETTINGS.pruning, damping=float("inf"))
    for _ in range(2):
        claim(tmp_path / "settings.json", dataclasses.replace(SETTINGS, pruning=pruning))


def test_whatever_is_done_to_the_note(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    refusals = []
    for what, record in altered({"format_version": 1, "settings": asked(SETTINGS)}):
        path.write_text(json.dumps(record))
        try:
            claim(path, SETTINGS)
        except UserError as error:
            refusals.append((what, str(error)))
    assert len(refusals) > 500
    assert not [each for each in refusals if "--restart" not in each[1]]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", b"\xff", "[" * 5000, '{"format_version": 2}', "{}"])
def test_what_is_no_note(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"settings\.json.*begin anew with --restart"):
        claim(path, SETTINGS)
