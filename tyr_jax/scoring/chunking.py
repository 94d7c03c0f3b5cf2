"""How a population and the text that it is scored on are divided into chunks that run at a time.

Axis letters: `C` candidates, `S` kinds of site, `L` layers.
"""

import math
from typing import NamedTuple

import numpy as np

from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import candidate_tokens
from tyr_jax.space import Candidates, Fitness


def part_rows(count: int, most: int) -> int:
    """Sequences per part, if `count` sequences are split into the fewest equal parts of at most `most`."""
    return max(size for size in range(1, max(1, most) + 1) if count % size == 0)


class ChunkShape(NamedTuple):
    """How pairs (chunk of candidates, part of sequences) are dealt to devices: `beside` parts of `rows`
    sequences, and `groups` chunks of `width` candidates, run at a time."""

    beside: int
    groups: int
    rows: int
    width: int


def chunk_shape(candidates: int, sequences: int, length: int) -> ChunkShape:
    """How this many `candidates` and `sequences`, of `length` tokens each, are dealt to devices. As many
    parts run side by side as the greatest common divisor of the numbers of parts and devices; the remaining
    devices run other chunks."""
    size = candidate_tokens()
    rows = part_rows(sequences, size // length)
    beside = math.gcd(sequences // rows, devices.count())
    groups = devices.count() // beside
    width = min(-(-candidates // groups), size // (length * rows))
    return ChunkShape(beside, groups, rows, max(1, width))


class ChunkedPopulation(NamedTuple):
    """Candidates and sequences as they run on n devices.

    `sequences [P, n · rows]` has those of the devices one after the other. `chunks [M, n, width, S, L]` has,
    M times, a chunk of candidates for each device; every chunk meets all sequences. `real [M]` counts the
    candidates in each of the M that are not padding.
    """

    shape: ChunkShape
    sequences: np.ndarray
    chunks: np.ndarray
    real: list[int]

    @property
    def together(self) -> int:
        """Sequences that a candidate is scored on at a time."""
        return self.shape.beside * self.shape.rows

    def means(self, scores: np.ndarray) -> Fitness:
        """Mean `[C]` over all sequences of the candidates' `scores [P, M, n · width]`."""
        beside, groups, _, width = self.shape
        means = scores.reshape(*scores.shape[:2], groups, beside, width).mean(axis=(0, 3))
        return means.reshape(-1)[: sum(self.real)]


def chunk_population(candidates: Candidates, sequences: np.ndarray, length: int) -> ChunkedPopulation:
    """Divide `candidates [C, S, L]` and `sequences [s]` of `length` tokens. A device scores a chunk of
    candidates on a part of the sequences, and n devices run n such pairs at a time."""
    count, sites = len(candidates), candidates.shape[1:]
    plan = chunk_shape(count, len(sequences), length)
    beside, groups, rows, width = plan
    # Chunks of one shape compile once, so the last ones are padded with repeats that are then ignored.
    together = groups * width
    padded = np.concatenate([candidates, np.repeat(candidates[-1:], -count % together, axis=0)])
    chunks = np.repeat(padded.reshape(-1, groups, width, *sites), beside, axis=1)
    tiled = np.tile(sequences.reshape(-1, beside * rows), (1, groups))
    return ChunkedPopulation(
        plan, tiled, chunks, [min(together, count - start) for start in range(0, count, together)]
    )
