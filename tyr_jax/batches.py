"""How many sequences run at a time."""

import jax
import numpy as np

BATCH_TOKENS = 4096
"""Tokens that run at a time: enough rows for the matmul rate, small enough to stay in memory."""

CPU_CANDIDATE_TOKENS = 512
"""Candidate-tokens that run at a time on a CPU: so few that what a layer passes to the next stays in cache,
and that candidates which run together, if there is more than one, have much in common."""


def candidate_tokens() -> int:
    """Candidate-tokens that run at a time."""
    return CPU_CANDIDATE_TOKENS if jax.default_backend() == "cpu" else BATCH_TOKENS


def batches(sequences: np.ndarray, tokens: int = BATCH_TOKENS) -> list[slice]:
    """Slices of `sequences [S, T]` of at most `tokens` tokens (at least one sequence) each."""
    size = max(1, tokens // sequences.shape[1])
    return [slice(start, start + size) for start in range(0, len(sequences), size)]
