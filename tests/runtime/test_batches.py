"""Batches have every sequence once and in order, and no more tokens than asked for."""

import numpy as np
import pytest

from tyr_jax.runtime.batches import batches


@pytest.mark.parametrize(
    ("sequences", "length", "sizes"),
    [(5, 16, [5]), (9, 1024, [4, 4, 1]), (3, 4096, [1, 1, 1]), (2, 8192, [1, 1]), (4, 2048, [2, 2])],
)
def test_batches(sequences: int, length: int, sizes: list[int]) -> None:
    found = batches(np.zeros((sequences, length), np.int8))
    assert [rows.real for rows in found] == sizes
    assert np.concatenate([rows.indices for rows in found]).tolist() == list(range(sequences))
