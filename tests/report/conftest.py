"""A real run on a tiny model, and its summary."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def summary(pruned: Path) -> dict[str, Any]:
    return dict(json.loads((pruned / "summary.json").read_text()))
