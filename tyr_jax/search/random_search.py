"""Random search: candidates from all over the space, the best of which is kept.

Every rival must beat it. Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 2012.

Axis letters: `C` candidates, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, Search, SearchSpace
from tyr_jax.search.draws import drawn_text, scattered
from tyr_jax.search.incumbent import Incumbent
from tyr_jax.space import Levels


@dataclasses.dataclass(frozen=True)
class RandomSearch(Search):
    """Random search. The best so far is scored again with each generation, on the same text as the others."""

    name: ClassVar[str] = "random"
    traceable: ClassVar[bool] = True

    generations: int = 50
    """Generations of a round."""
    candidates: int = 64
    """Candidates of a generation."""
    score_tokens: int = 2048
    """Tokens that the candidates of a generation are scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse a search without candidates."""
        require(self.candidates >= 1, "--candidates", self.candidates, "at least 1")

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Incumbent:
        """The start is the best so far."""
        return Incumbent.at(key, start, space)

    def ask(self, state: Incumbent) -> Query:
        """The best so far and random candidates."""
        drawn = scattered(state.draw, state.space, self.candidates, state.levels)
        return Query(
            jnp.concatenate([state.levels[None], drawn]),
            drawn_text(state.draw, state.space, self.score_tokens),
        )

    def tell(self, state: Incumbent, candidates: jax.Array, fitness: jax.Array) -> Incumbent:
        """The best of all."""
        return state.after(candidates, fitness)

    def best(self, state: Incumbent) -> jax.Array:
        """The best so far."""
        return state.levels
