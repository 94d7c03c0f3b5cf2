"""The best of several starts: where this project's searches start.

The given start and the distributions of least estimated cost (`tyr_jax.search.surrogate.starts`) are scored
on the same text. Then the given start and its best rival are scored on twice as much fresh text, and the
better one on both together wins. Costs are the relative errors that the fold has measured at each site's
levels, weighted by how much the site's output counts, and added up.

It was made for this project and has no paper. The additive model, solved exactly, is that of Bercovich et
al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025, whose costs are measured on the
whole model instead.

Axis letters: `Q` starts, `S` kinds of site, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax

from tyr_jax.search import surrogate
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.halving import Bracket, Racing


@dataclasses.dataclass(frozen=True)
class Estimate(Racing):
    """The best of the start and the distributions of least estimated cost, scored side by side."""

    name: ClassVar[str] = "estimate"

    generations: int = 1
    """Times that the start and its rivals are scored."""
    score_tokens: int = 1024
    """Tokens that all of them are scored on; the start and its best rival also on twice as many others."""

    @property
    def entrants(self) -> int:
        """The start and its rivals."""
        return 1 + len(surrogate.EXCHANGES)

    def ends(self, space: SearchSpace) -> list[int]:
        """Sequences for all starts, and those for the last two; the same if there is no more text."""
        first = max(1, self.score_tokens // space.length)
        return sorted({min(count, space.sequences) for count in (first, 3 * first)})

    def rivals(self, state: Bracket) -> jax.Array:
        """The estimated starts `[Q, S, L]`."""
        return surrogate.estimated(state.space, state.levels)
