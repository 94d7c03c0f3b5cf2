"""A text whose tokens say where in the text they stand."""

from pathlib import Path

import pytest
from data_samples import numbers


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(numbers(4000))
    return path
