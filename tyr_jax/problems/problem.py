"""A tabulated problem: what every level of every site costs, alone and together with others.

The objective of levels on sequence `s` of the search text is

    Σ_i alone_s[i, l_i] + ½ Σ_ij pairs[i, j] · feature[i, l_i] · feature[j, l_j]

over the sites `i`. Interactions have rank one for each pair of sites: a feature says how far a level is from
a level of reference, where it is zero. The objective on held-out text has an `alone` of its own.

Tables are float32. Everything is a JAX function, so that whole searches run on the device.

Axis letters: `B` sequences, `C` candidates, `S` kinds of site, `L` layers, `E` levels; `i`, `j` sites, `S·L`
of them.
"""

import functools
from collections.abc import Sequence
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.search.contract import Query, SearchSpace


class Problem(flax.struct.PyTreeNode):
    """A tabulated objective, and the space that it is defined on.

    What may be chosen, `space`; the levels to start from, `start [S, L]`; `alone [B, S, L, E]`;
    `feature [S, L, E]`; `pairs [S·L, S·L]`, symmetric with a zero diagonal; and of the held-out text,
    `held_out_alone [S, L, E]` and the least objective, `optimum []`.
    """

    space: SearchSpace
    start: jax.Array
    alone: jax.Array
    feature: jax.Array
    pairs: jax.Array
    held_out_alone: jax.Array
    optimum: jax.Array

    def answer(self, query: Query) -> jax.Array:
        """The fitness `[C]` of the query's candidates, or slopes `[C, P, S, L, E]`, of one sequence each."""
        tables = self.alone[jnp.asarray(query.sequences)]
        chosen = self.chosen(query.candidates)

        def on_text(shares: jax.Array) -> jax.Array:
            return jax.vmap(lambda alone: self.value(shares, alone))(tables)

        if query.purpose != "slopes":
            return jax.vmap(lambda shares: on_text(shares).mean())(chosen)
        slopes = jax.vmap(jax.jacrev(on_text))(chosen)
        now = jnp.sum(slopes * chosen[:, None], axis=-1, keepdims=True)
        return slopes - now

    def held_out(self, levels: jax.Array | np.ndarray) -> jax.Array:
        """The objective `[...]` of `levels [..., S, L]` on held-out text."""
        levels = jnp.asarray(levels)
        flat = self.chosen(levels.reshape(-1, *levels.shape[-2:]))
        values = jax.vmap(lambda shares: self.value(shares, self.held_out_alone))(flat)
        return values.reshape(levels.shape[:-2])

    def chosen(self, levels: jax.Array | np.ndarray) -> jax.Array:
        """`levels [C, S, L]`, one-hot: `[C, S, L, E]`."""
        return jax.nn.one_hot(jnp.asarray(levels), self.feature.shape[-1])

    def value(self, shares: jax.Array, alone: jax.Array) -> jax.Array:
        """The objective where every site is a mixture of its levels with weights `shares [S, L, E]`, from the
        table `alone [S, L, E]`."""
        feature = jnp.sum(shares * self.feature, axis=-1).reshape(-1)
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        both = product(feature, product(self.pairs, feature))
        return jnp.sum(shares * alone) + both / 2

    def with_noise(self, key: jax.Array, size: float) -> Self:
        """The problem with sequences that differ more: to every entry of `alone`, a normal draw of standard
        deviation `size` is added, different for each sequence, and zero on average over all."""
        draws = size * jax.random.normal(key, self.alone.shape)
        draws -= draws.mean(axis=0)
        return self.replace(alone=self.alone + draws)


def stack_problems(problems: Sequence[Problem]) -> Problem:
    """Problems of one shape, stacked on a leading axis, as `search_many` takes them.

    Raises:
        UserError: they differ in shape.
    """
    shapes = {str(jax.tree.map(np.shape, problem)) for problem in problems}
    if len(shapes) != 1:
        raise UserError("problems that run side by side must have as many layers, levels and sequences")
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *problems)
