"""A genetic algorithm: (μ + λ) selection with crossover.

Uniform crossover takes every site's level from one of two parents (Syswerda, "Uniform Crossover in Genetic
Algorithms", ICGA 1989). A child is then moved back onto the budget, and mutated by sparsity shifts.

Axis letters: `C` candidates, `M` parents, `S` kinds of site, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import SEQUENCE_DRAW, drawn_text, neighbours
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, mutate, repaired


class Population(Incumbent):
    """The best so far, and the `parents [M, S, L]`, the best first."""

    parents: jax.Array


@dataclasses.dataclass(frozen=True)
class Genetic(Improving):
    """(μ + λ) evolution with uniform crossover. Parents are scored again with each generation."""

    name: ClassVar[str] = "genetic"

    generations: int = 50
    """Generations of a round."""
    parents: int = 8
    """Parents μ that survive a generation."""
    children: int = 56
    """Children λ of a generation."""
    crossed: float = 0.5
    """Share of the children that have two parents; the others are mutants of one."""
    max_shifts: int = 3
    """At most this many sparsity shifts lead to a child: the number is the smaller of two draws."""
    score_tokens: int = 2048
    """Tokens that a generation is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse an empty population."""
        super().check()
        require(self.parents >= 1, "--parents", self.parents, "at least 1")
        require(self.children >= 1, "--children", self.children, "at least 1")
        require(0 <= self.crossed <= 1, "--crossed", self.crossed, "a share, from 0 to 1")
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Population:
        """The start and neighbours of it."""
        plain = Incumbent.at(key, start, space)
        more = neighbours(
            jax.random.fold_in(key, SEQUENCE_DRAW), plain.levels, space, self.parents - 1, self.max_shifts
        )
        return Population(**vars(plain), parents=jnp.concatenate([plain.levels[None], more]))

    def ask(self, state: Population) -> Query:
        """The parents and their children."""
        keys = jax.random.split(state.draw, self.children)
        children = jax.vmap(lambda key: self.child(key, state))(keys)
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.parents, children]), text)

    def child(self, key: jax.Array, state: Population) -> jax.Array:
        """A child `[S, L]` of two parents, or of one."""
        draws = jax.random.split(key, 5)
        one, other = state.parents[jax.random.randint(draws[0], (2,), 0, self.parents)]
        exists, budget = jnp.asarray(state.space.exists), state.space.budget
        crossed = jnp.where(jax.random.bernoulli(draws[1], shape=one.shape), one, other)
        cost = jax.random.uniform(draws[2], exists.shape)
        both = repaired(cost, crossed, exists, budget, one)
        from_two = jax.random.uniform(draws[3]) < self.crossed
        return mutate(draws[4], jnp.where(from_two, both, one), exists, budget, self.max_shifts)

    def tell(self, state: Population, candidates: jax.Array, fitness: jax.Array) -> Population:
        """The best of parents and children are the next parents."""
        order = jnp.argsort(jnp.asarray(fitness))[: self.parents]
        parents = jnp.asarray(candidates, jnp.int32)[order]
        return state.after(candidates, fitness).replace(parents=parents)
