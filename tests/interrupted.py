"""Shared by tests of interrupted runs: the end of a process, and the result of a run."""

import json
from pathlib import Path
from typing import Any

RESULTS = (
    "distribution",
    "rounds",
    "texts",
    "dense",
    "uniform",
    "searched",
    "reconstructed",
    "written",
    "health",
)
"""Entries of a summary that do not depend on when it was made."""


class Died(BaseException):
    """The end of a process, as its own code sees it: nothing catches it."""


def result(directory: Path) -> dict[str, Any]:
    """Weights and results of every model in an output directory."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("summary.json")):
        summary = json.loads(path.read_text())
        weights = (path.parent / "model.safetensors").read_bytes()
        found[str(path.parent.relative_to(directory))] = weights, [summary[key] for key in RESULTS]
    return found
