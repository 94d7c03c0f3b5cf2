"""A real run on a tiny model, and its summary."""

import json
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.cli import prune


@pytest.fixture(scope="session")
def pruned(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A searched model whose layers differ; not to be written to."""
    directory = tmp_path_factory.mktemp("run") / "pruned"
    prune.main([*tiny_arguments, "--sparsity", "0.5", "--output", str(directory)])
    return directory


@pytest.fixture
def summary(pruned: Path) -> dict[str, Any]:
    return dict(json.loads((pruned / "summary.json").read_text()))
