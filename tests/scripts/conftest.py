"""Running a script in a test."""

import runpy
import sys
from collections.abc import Callable

import pytest
from script_tables import SCRIPTS, Rows


@pytest.fixture
def table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, list[object]], Rows]:
    """Run a script, and return the cells of the Markdown rows that it prints."""

    def run(script: str, arguments: list[object]) -> Rows:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]

    return run
