"""Every level of every site is probed once, and the best sum is taken: one-shot allocation, as in Puzzle.

Bercovich et al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025. Puzzle solves the
additive model as an integer programme; for a budget with one resource, dynamic programming finds the same
optimum.
"""

import dataclasses
from typing import ClassVar

from tyr_jax.search.additive import DynamicProgramme


@dataclasses.dataclass(frozen=True)
class Puzzle(DynamicProgramme):
    """The additive model of all levels, solved once."""

    name: ClassVar[str] = "puzzle"

    generations: int = 1
    """Times that all levels are probed in a round. Each begins at the solution of the one before."""
    reach: int = 64
    """Maximum number of levels by which a site moves, in a probe or a solution; by default unlimited."""
    probe_tokens: int = 2048
    """Tokens that probes are scored on."""
