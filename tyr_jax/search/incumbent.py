"""The state of searches that keep one distribution, the best so far, from generation to generation.

Fitness on other text is not comparable. So these searches score the incumbent again in every generation, on
the same text as its rivals.

Axis letters: `C` candidates, `L` layers.
"""

from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import Levels


@flax.struct.dataclass
class Incumbent:
    """Key; what may be chosen, `space`; finished generations; the best levels so far, `levels [2, L]`, and
    their `fitness` in the last generation."""

    key: jax.Array
    space: SearchSpace
    generation: jax.Array
    levels: jax.Array
    fitness: jax.Array

    @classmethod
    def at(cls, key: jax.Array, start: Levels, space: SearchSpace) -> Self:
        """Before the first generation."""
        return cls(key, space, jnp.int32(0), jnp.asarray(start, jnp.int32), jnp.float32(jnp.inf))

    @property
    def draw(self) -> jax.Array:
        """The key of this generation."""
        return jax.random.fold_in(self.key, self.generation)

    def after(self, candidates: jax.Array, fitness: jax.Array) -> Self:
        """After a generation: the best of `candidates [C, 2, L]`, of which the first is the incumbent."""
        levels, value = best_of(candidates, fitness)
        return self.replace(generation=self.generation + 1, levels=levels, fitness=value)  # type: ignore[attr-defined]


def best_of(candidates: jax.Array, fitness: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The candidate `[2, L]` of least `fitness [C]`, the first of equals, and its fitness."""
    values = jnp.asarray(fitness, jnp.float32)
    index = jnp.argmin(values)
    return jnp.asarray(candidates, jnp.int32)[index], values[index]
