"""The state of searches that keep one distribution, the incumbent, from generation to generation.

Fitness values on different texts are not comparable. So these searches score the incumbent again in every
generation, on the same text as its competitors.

Axis letters: `C` candidates, `S` kinds of site, `L` layers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from tyr_jax.search.contract import Search, SearchSpace
from tyr_jax.space import Levels


class Incumbent(flax.struct.PyTreeNode):
    """Key; what may be chosen, `space`; finished generations; the incumbent's `levels [S, L]`, and
    their `fitness` in the last generation; and the `stage` of the present one, which is static, because every
    stage has shapes of its own."""

    key: jax.Array
    space: SearchSpace
    generation: jax.Array
    levels: jax.Array
    fitness: jax.Array
    stage: int = flax.struct.field(pytree_node=False)

    @classmethod
    def at(cls, key: jax.Array, start: Levels, space: SearchSpace) -> Self:
        """Before the first generation."""
        return cls(key, space, jnp.int32(0), jnp.asarray(start, jnp.int32), jnp.float32(jnp.inf), 0)

    @property
    def draw(self) -> jax.Array:
        """The key of this generation."""
        return jax.random.fold_in(self.key, self.generation)

    def after(self, candidates: jax.Array, fitness: jax.Array) -> Self:
        """After a generation: the best of `candidates [C, S, L]`, the first of equals."""
        levels, value = best_of(candidates, fitness)
        return self.replace(generation=self.generation + 1, levels=levels, fitness=value, stage=0)


class Improving(Search):
    """Base of the searches whose state is an incumbent."""

    traceable: ClassVar[bool] = True

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Any:
        """The start is the incumbent."""
        return Incumbent.at(key, start, space)

    def tell(self, state: Any, candidates: jax.Array, fitness: jax.Array) -> Any:
        """The best of all."""
        return state.after(candidates, fitness)

    def best(self, state: Any) -> jax.Array:
        """The incumbent."""
        return state.levels

    def record(self, state: Any) -> Mapping[str, float] | None:
        """At the end of a generation: its number, and the fitness of the incumbent."""
        if state.stage:
            return None
        return {"generation": int(state.generation), "objective": float(state.fitness)}


def best_of(candidates: jax.Array, fitness: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The candidate `[S, L]` of least `fitness [C]`, the first of equals, and its fitness."""
    values = jnp.asarray(fitness, jnp.float32)
    index = jnp.argmin(values)
    return jnp.asarray(candidates, jnp.int32)[index], values[index]
