"""Whole blocks: the layers that change the residual stream least are removed, as far as the budget goes.

Men, Xu, Zhang, Wang, Wang and Jing, "ShortGPT: Layers in Large Language Models are More Redundant Than You
Expect", 2024, arXiv 2403.03853. Their block influence is 1 − the cosine of a block's input and output; here
it is how much the outputs of the layer's two sites count, which the fold has measured: their share of the
residual stream or, with `--metric fisher`, nats. A baseline that no search should lose to.

Axis letters: `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, relaxed


class Removal(Incumbent):
    """The distribution, and the `start [S, L]`, which is used if the distribution's fitness is not finite."""

    start: jax.Array


@dataclasses.dataclass(frozen=True)
class Blocks(Improving):
    """The sparsest level for the layers of least influence, the densest for the others, and one in between
    where the budget ends within a layer."""

    name: ClassVar[str] = "blocks"

    generations: int = 1
    """Times that the one distribution is scored."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Removal:
        """The distribution; the start if it does not meet the budget."""
        plain, exists = Incumbent.at(key, start, space), jnp.asarray(space.exists)
        price, limit = (jnp.asarray(array, jnp.float32) for array in (space.budget.price, space.budget.limit))
        taken = jnp.einsum("rkle,r->kle", price, 1 / jnp.maximum(limit, 1))
        most = jnp.max(jnp.where(exists, taken, -jnp.inf), axis=-1, keepdims=True)
        influence = jnp.asarray(space.sites.share, jnp.float32).sum(axis=0)
        # In proportion to what it saves, so that both sites of a layer go at the same multiplier.
        cost = influence[:, None] * (most - jnp.where(exists, taken, most))
        levels = relaxed(cost, exists, space.budget, plain.levels)
        return Removal(**vars(plain) | {"levels": levels}, start=plain.levels)

    def ask(self, state: Removal) -> Query:
        """The distribution, on one sequence."""
        return Query(state.levels[None], jnp.zeros(1, int))

    def tell(self, state: Removal, candidates: jax.Array, fitness: jax.Array) -> Removal:
        """The distribution if its fitness is finite, else the start."""
        after = super().tell(state, candidates, fitness)
        levels = jnp.where(jnp.isfinite(after.fitness), after.levels, state.start)
        return after.replace(levels=levels)
