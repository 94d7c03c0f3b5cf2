"""Local exchange: one site becomes denser, another sparser, as long as some such pair helps.

Teitz and Bart, "Heuristic Methods for Estimating the Generalized Vertex Median of a Weighted Graph",
Operations Research 1968. Each generation tries some of the pairs that the budget allows, drawn at random
without repetition, or all of them, and exchanges the best one if that helps.

Axis letters: `C` candidates, `S` kinds of site, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import picked


@dataclasses.dataclass(frozen=True)
class Exchange(Improving):
    """The best single swap of a batch, again and again."""

    name: ClassVar[str] = "exchange"

    generations: int = 50
    """Batches of a round."""
    swaps: int = 64
    """Pairs of sites tried in a batch. If the budget allows no more than that, it tries all of them."""
    score_tokens: int = 2048
    """Tokens that a batch is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse an empty batch."""
        super().check()
        require(self.swaps >= 1, "--swaps", self.swaps, "at least 1")

    def ask(self, state: Incumbent) -> Query:
        """The present levels and swaps of them; these levels again where fewer swaps are allowed."""
        fits = allowed_swaps(state.levels, state.space)
        drawn = jnp.where(fits, jax.random.uniform(jax.random.fold_in(state.draw, 1), fits.shape), -1.0)
        chance, pair = jax.lax.top_k(drawn.reshape(-1), min(self.swaps, drawn.size))
        place = jnp.arange(state.levels.size)
        up, down = (place == site[:, None] for site in jnp.divmod(pair, len(fits)))
        change = jnp.where(chance[:, None] >= 0, up.astype(int) - down, 0)
        swapped = state.levels + change.reshape(-1, *state.levels.shape)
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.levels[None], swapped]), text)


def allowed_swaps(levels: jax.Array, space: SearchSpace) -> jax.Array:
    """Whether the budget allows site i to be one level denser than in `levels [S, L]` and site j one level
    sparser: `[S·L, S·L]`, sites counted over both kinds."""
    exists, price = jnp.asarray(space.exists), jnp.asarray(space.budget.price)

    def moved(by: int) -> tuple[jax.Array, jax.Array]:
        """Which sites can move `[S·L]`, and what more they then take `[R, S·L]`."""
        target = jnp.clip(levels + by, 0, exists.shape[-1] - 1)
        can = (target == levels + by) & picked(exists, target)
        taken = picked(price, target) - picked(price, levels)
        return can.reshape(-1), taken.reshape(len(price), -1)

    (up, more), (down, less) = moved(1), moved(-1)
    now = picked(price, levels).sum(axis=(-1, -2))
    spent = now[:, None, None] + more[:, :, None] + less[:, None, :]
    limit = jnp.asarray(space.budget.limit)[:, None, None]
    within = jnp.where(space.budget.exact, jnp.all(spent == limit, axis=0), jnp.all(spent <= limit, axis=0))
    return within & up[:, None] & down & ~jnp.eye(len(up), dtype=bool)
