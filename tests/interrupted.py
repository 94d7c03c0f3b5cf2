"""Shared by tests of interrupted runs: the end of a process, and the result of a run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.workspace.store import Store

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


def die_at(patch: pytest.MonkeyPatch, work: str) -> None:
    """Let the process die when it would save a piece, or a step, of this work."""
    save = Store.save

    def dying(store: Store, name: str, *rest: Any, **more: Any) -> None:
        if re.fullmatch(rf"{work}(-\d+)*", name):
            raise Died
        save(store, name, *rest, **more)

    patch.setattr(Store, "save", dying)


def result(directory: Path) -> dict[str, Any]:
    """Weights and results of every model in an output directory."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("summary.json")):
        summary = json.loads(path.read_text())
        weights = (path.parent / "model.safetensors").read_bytes()
        found[str(path.parent.relative_to(directory))] = weights, [summary[key] for key in RESULTS]
    return found
