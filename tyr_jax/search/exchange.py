"""Local exchange: one site becomes denser, another sparser, as long as some such pair helps.

Teitz and Bart, "Heuristic Methods for Estimating the Generalized Vertex Median of a Weighted Graph",
Operations Research 1968. All pairs are tried in a random order without repetition, a batch in each
generation. The best pair of a batch is made if it helps. When a pass over all pairs has ended, a new one
begins in another order.

Axis letters: `C` candidates, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import allowed, picked


@dataclasses.dataclass(frozen=True)
class Exchange(Improving):
    """The best single swap of a batch, again and again."""

    name: ClassVar[str] = "exchange"

    generations: int = 50
    """Batches of a round."""
    swaps: int = 64
    """Pairs of sites tried in a batch."""
    score_tokens: int = 2048
    """Tokens that a batch is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse an empty batch."""
        require(self.swaps >= 1, "--swaps", self.swaps, "at least 1")

    def ask(self, state: Incumbent) -> Query:
        """The present levels and the next swaps of them. A swap that the budget or the levels forbid leaves
        them as they are."""
        sites = state.levels.size
        pairs = sites * sites
        batches = -(-pairs // self.swaps)
        order = jax.random.permutation(jax.random.fold_in(state.key, state.generation // batches), pairs)
        place = (state.generation % batches) * self.swaps + jnp.arange(self.swaps)
        up, down = jnp.divmod(order[place % pairs], sites)
        swapped = jax.vmap(lambda up, down: swap(state.levels, up, down, state.space))(up, down)
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.levels[None], swapped]), text)


def swap(levels: jax.Array, up: jax.Array, down: jax.Array, space: SearchSpace) -> jax.Array:
    """`levels [2, L]` with site `up` one level denser and site `down` one level sparser, both counted over
    the two kinds; unchanged if that is not allowed."""
    place = jnp.arange(levels.size).reshape(levels.shape)
    moved = levels + (place == up) - (place == down)
    exists = jnp.asarray(space.exists)
    inside = jnp.clip(moved, 0, exists.shape[-1] - 1)
    fits = jnp.all((inside == moved) & picked(exists, inside)) & allowed(inside, space.budget)
    return jnp.where(fits, inside, levels)
