"""How a population and the text that it is scored on are divided into what runs at a time.

Axis letters: `C` candidates, `L` layers.
"""

import math
from typing import NamedTuple

import numpy as np

from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import candidate_tokens
from tyr_jax.space import Candidates, Fitness


def part_rows(count: int, most: int) -> int:
    """Sequences of each of the fewest parts of one size, at most `most`, that `count` sequences make."""
    return max(size for size in range(1, max(1, most) + 1) if count % size == 0)


class ChunkShape(NamedTuple):
    """How (chunk of candidates, part of sequences) pairs are dealt to devices: `beside` parts and `groups`
    chunks run at a time, of `rows` sequences and `width` candidates."""

    beside: int
    groups: int
    rows: int
    width: int


def chunk_shape(candidates: int, sequences: int, length: int) -> ChunkShape:
    """How so many candidates and sequences of `length` tokens are dealt: as many parts beside each other as
    divide the number of devices, and only then several chunks."""
    size = candidate_tokens()
    rows = part_rows(sequences, size // length)
    beside = math.gcd(sequences // rows, devices.count())
    groups = devices.count() // beside
    width = min(-(-candidates // groups), size // (length * rows))
    return ChunkShape(beside, groups, rows, max(1, width))


class ChunkedPopulation(NamedTuple):
    """Candidates and sequences as they run: `sequences [P, n · rows]`, those of n devices one after the
    other; `chunks [M, n, width, 2, L]` of candidates, one for each device, which meet all of them; and how
    many of the candidates there are `real [M]`, not repeats."""

    shape: ChunkShape
    sequences: np.ndarray
    chunks: np.ndarray
    real: list[int]

    @property
    def together(self) -> int:
        """Sequences that a candidate meets at a time."""
        return self.shape.beside * self.shape.rows

    def means(self, scores: np.ndarray) -> Fitness:
        """Mean `[C]` over all sequences of the candidates' `scores [P, M, n · width]`."""
        beside, groups, _, width = self.shape
        means = scores.reshape(*scores.shape[:2], groups, beside, width).mean(axis=(0, 3))
        return means.reshape(-1)[: sum(self.real)]


def chunk_population(candidates: Candidates, sequences: np.ndarray, length: int) -> ChunkedPopulation:
    """`candidates [C, 2, L]` and `sequences [s]` of `length` tokens as they run: a chunk of candidates meets
    a part of the sequences on one device, and on n devices n such pairs run at a time."""
    count, sites = len(candidates), candidates.shape[1:]
    plan = chunk_shape(count, len(sequences), length)
    beside, groups, rows, width = plan
    # Chunks of one shape compile once: the last ones are filled up with repeats that are then ignored.
    together = groups * width
    padded = np.concatenate([candidates, np.repeat(candidates[-1:], -count % together, axis=0)])
    chunks = np.repeat(padded.reshape(-1, groups, width, *sites), beside, axis=1)
    tiled = np.tile(sequences.reshape(-1, beside * rows), (1, groups))
    return ChunkedPopulation(
        plan, tiled, chunks, [min(together, count - start) for start in range(0, count, together)]
    )
