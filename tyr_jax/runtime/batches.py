"""How many sequences run at a time."""

from typing import NamedTuple

import numpy as np

from tyr_jax.runtime import devices

BATCH_TOKENS = 4096
"""Tokens that run at a time on a device: enough rows for the matmul rate, few enough to stay in memory."""

CPU_CANDIDATE_TOKENS = 512
"""Candidate-tokens that run at a time on a CPU. They are few, so that what a layer passes to the next stays
in cache, and so that candidates that run together, if there are several, have much in common."""


class BatchRows(NamedTuple):
    """Indices of the sequences of a batch, padded to a multiple of the number of devices. The first `real` of
    them are the batch's; the others are padding."""

    indices: np.ndarray
    real: int


def candidate_tokens() -> int:
    """Candidate-tokens that run at a time on a device."""
    return CPU_CANDIDATE_TOKENS if devices.are_cpus() else BATCH_TOKENS


def batches(sequences: np.ndarray, tokens: int = BATCH_TOKENS) -> list[BatchRows]:
    """Batches of all `sequences [B, T]`, of at most `tokens` tokens (at least one sequence) per device."""
    count, length = sequences.shape
    size = devices.count() * max(1, tokens // length)
    parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    return [
        BatchRows(np.pad(part, (0, -len(part) % devices.count()), mode="edge"), len(part)) for part in parts
    ]
