"""Random draws that several searches share: text to score on, neighbours, and candidates from anywhere.

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `E` levels, `s` sequences to score on.
"""

import jax
import jax.numpy as jnp

from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import mutate, repaired

SEQUENCE_DRAW = 1 << 20
"""Folded into a generation's key to draw the order of the text. Smaller numbers would give keys that `split`
gives too: under JAX's partitionable threefry, `split(key, n)[i]` is `fold_in(key, i)`."""

ACCEPTANCE_DRAW, POPULATION_DRAW, BEGIN_DRAW, TELL_DRAW = range(SEQUENCE_DRAW + 1, SEQUENCE_DRAW + 5)
"""Folded into a key to accept neighbours, for a first population, and for what a strategy draws when it
begins and is told."""


def drawn_order(key: jax.Array, space: SearchSpace) -> jax.Array:
    """The sequences `[B]` of the search text in random order."""
    return jax.random.permutation(jax.random.fold_in(key, SEQUENCE_DRAW), space.sequences)


def drawn_text(key: jax.Array, space: SearchSpace, tokens: int) -> jax.Array:
    """Sequences `[s]` of the search text, drawn at random, of at most `tokens` tokens, but at least one."""
    return drawn_order(key, space)[: min(max(1, tokens // space.length), space.sequences)]


def neighbours(
    key: jax.Array, parent: jax.Array, space: SearchSpace, count: int, max_shifts: int
) -> jax.Array:
    """Offspring `[C, S, L]` of `parent [S, L]`, each by independent sparsity shifts."""
    keys, exists = jax.random.split(key, count), jnp.asarray(space.exists)
    return jax.vmap(lambda key: mutate(key, parent, exists, space.budget, max_shifts))(keys)


def scattered(key: jax.Array, space: SearchSpace, count: int, fallback: jax.Array) -> jax.Array:
    """Candidates `[C, S, L]` from all over the space: every site at a random level, then repaired in random
    order; `fallback [S, L]` where that fails."""
    exists = jnp.asarray(space.exists)

    def one(key: jax.Array) -> jax.Array:
        cost = jax.random.uniform(key, exists.shape)
        levels = jnp.argmin(jnp.where(exists, cost, jnp.inf), axis=-1)
        return repaired(cost, levels, exists, space.budget, fallback)

    return jax.vmap(one)(jax.random.split(key, count))
