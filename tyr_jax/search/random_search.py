"""Random search: candidates from all over the space, the best of which is kept.

The baseline that every other search must beat. Bergstra and Bengio, "Random Search for Hyper-Parameter
Optimization", JMLR 2012.

Axis letters: `C` candidates, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query
from tyr_jax.search.draws import drawn_text, scattered
from tyr_jax.search.incumbent import Improving, Incumbent


@dataclasses.dataclass(frozen=True)
class RandomSearch(Improving):
    """Random search. The best so far is scored again with each generation, on the same text as the others."""

    name: ClassVar[str] = "random"

    generations: int = 50
    """Generations of a round."""
    candidates: int = 64
    """Candidates of a generation."""
    score_tokens: int = 2048
    """Tokens that the candidates of a generation are scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse a search without candidates."""
        super().check()
        require(self.candidates >= 1, "--candidates", self.candidates, "at least 1")

    def ask(self, state: Incumbent) -> Query:
        """The best so far and random candidates."""
        drawn = scattered(state.draw, state.space, self.candidates, state.levels)
        return Query(
            jnp.concatenate([state.levels[None], drawn]),
            drawn_text(state.draw, state.space, self.score_tokens),
        )
