"""How many sequences run at a time."""

import numpy as np

BATCH_TOKENS = 4096
"""Tokens that run at a time: enough rows for the matmul rate, small enough to stay in memory."""


def batches(sequences: np.ndarray, tokens: int = BATCH_TOKENS) -> list[slice]:
    """Slices of `sequences [S, T]` of at most `tokens` tokens (at least one sequence) each."""
    size = max(1, tokens // sequences.shape[1])
    return [slice(start, start + size) for start in range(0, len(sequences), size)]
