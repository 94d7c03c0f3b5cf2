"""Lagrangian relaxation: the additive model, solved by a multiplier for each resource of the budget.

Everett, "Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources",
Operations Research 1963.

Axis letters: `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.search.additive import Additive, Probed
from tyr_jax.space import relaxed


@dataclasses.dataclass(frozen=True)
class Lagrangian(Additive):
    """The additive model, solved by Lagrangian relaxation."""

    name: ClassVar[str] = "lagrangian"

    def solve(self, cost: jax.Array, state: Probed) -> jax.Array:
        """The relaxed solution, moved back onto the budget."""
        known = connected(jnp.isfinite(cost), state.levels)
        return relaxed(jnp.where(known, cost, jnp.inf), known, state.space.budget, state.levels)


def connected(known: jax.Array, levels: jax.Array) -> jax.Array:
    """The levels `[S, L, E]` that can be reached from `levels [S, L]` step by step over those `known`."""
    level = jnp.arange(known.shape[-1])
    above = jnp.cumprod(jnp.where(level >= levels[..., None], known, True), axis=-1)
    below = jnp.cumprod(jnp.where(level <= levels[..., None], known, True)[..., ::-1], axis=-1)[..., ::-1]
    return (above & below).astype(bool)
