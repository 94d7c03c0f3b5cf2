"""The distribution of least estimated cost, as a search of its own: where this project's searches start.

Costs are the relative errors that the fold has measured at each site's levels, weighted by how much the
site's output counts, and added up (`tyr_jax.search.surrogate.estimated_start`). Only two candidates are
scored, the start and this one, and the better one stays.

It was made for this project and has no paper. The additive model, solved exactly, is that of Bercovich et
al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025, whose costs are measured on the
whole model instead.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.search import surrogate
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels


class Estimated(Incumbent):
    """The better of the start and the estimate so far, and the `estimate [S, L]`."""

    estimate: jax.Array


@dataclasses.dataclass(frozen=True)
class Estimate(Improving):
    """The better of the start and the distribution of least estimated cost."""

    name: ClassVar[str] = "estimate"

    generations: int = 1
    """Times that the two distributions are scored."""
    score_tokens: int = 2048
    """Tokens that they are scored on."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Estimated:
        """At the start."""
        plain = Incumbent.at(key, start, space)
        return Estimated(**vars(plain), estimate=surrogate.estimated(space, plain.levels))

    def ask(self, state: Estimated) -> Query:
        """The better one so far, and the estimate."""
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.stack([state.levels, state.estimate]), text)
