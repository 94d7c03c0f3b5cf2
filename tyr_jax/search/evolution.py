"""The paper's evolutionary search (§2.4, Algorithm 3): sparsity shifts, staged selection, elitism.

A generation has several stages. The first scores the parent and its offspring on a few tokens. Every later
one scores the parent and the remaining offspring on the text that it adds, and averages over all text so far.
Every random draw is a function of the key and the generation.

Axis letters: `C` candidates, `L` layers, `E` levels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, Search, SearchSpace
from tyr_jax.space import Budget, Candidates, Fitness, Levels, mutate

SEQUENCE_DRAW = 1 << 20
"""Folded into a generation's key to draw the order of the text."""


@flax.struct.dataclass
class EvolutionState:
    """Where the search stands.

    Key; finished generations; the `parent [2, L]`, with its `fitness` in the last generation, and the fitness
    there of the parent it had to beat, `beaten`; which levels exist, `[2, L, E]`, and the budget; the `stage`
    of the present generation, with the remaining candidates `pool [P, 2, L]`, the parent first, and the
    `sums [P]` of their fitness over the sequences so far.
    """

    key: jax.Array
    generation: jax.Array
    parent: jax.Array
    fitness: np.ndarray | np.float64
    beaten: np.ndarray | np.float64
    exists: np.ndarray
    budget: Budget
    stage: np.ndarray | np.int32
    pool: np.ndarray
    sums: np.ndarray
    sequences: int = flax.struct.field(pytree_node=False)
    length: int = flax.struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnames=("count", "max_shifts"))
def offspring_of(
    key: jax.Array, parent: jax.Array, exists: jax.Array, budget: Budget, count: int, max_shifts: int
) -> jax.Array:
    """Offspring `[C, 2, L]` of `parent [2, L]`, each by independent sparsity shifts; `exists [2, L, E]`."""
    keys = jax.random.split(key, count)
    return jax.vmap(lambda key: mutate(key, parent, exists, budget, max_shifts))(keys)


@dataclasses.dataclass(frozen=True)
class Evolution(Search):
    """Evolution: stage i scores the remaining candidates on `stage_tokens[i]`, and keeps `survivors[i]`.

    Stages share their text: each scores only on what it adds to the last one's, and averages over all.
    """

    name: ClassVar[str] = "evolution"

    generations: int = 50
    """Generations of a round."""
    offspring: int = 128
    """Offspring of the one parent in a generation."""
    survivors: tuple[int, ...] = (16, 4, 1)
    """Offspring left after each stage; the parent is scored beside them, and competes in the last."""
    stage_tokens: tuple[int, ...] = (2048, 16384, 131072)
    """Tokens on which candidates have been scored by the end of each stage."""
    max_shifts: int = 4
    """An offspring differs by the smaller of two draws from 1 … this many sparsity shifts."""

    def check(self) -> None:
        """Refuse an invalid schedule."""
        require(self.generations >= 1, "--generations", self.generations, "at least 1 (or --rounds 0)")
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")
        same = len(self.survivors) == len(self.stage_tokens) >= 1
        require(same, "--survivors", self.survivors, "as many numbers as --stage-tokens has")
        narrowing = [self.offspring, *self.survivors]
        falls = all(a >= b >= 1 for a, b in itertools.pairwise(narrowing))
        require(falls and narrowing[-1] == 1, "--survivors", self.survivors, "non-increasing, from at most "
                f"--offspring ({self.offspring}) down to 1")  # fmt: skip
        grows = all(a <= b for a, b in itertools.pairwise((1, *self.stage_tokens)))
        require(grows, "--stage-tokens", self.stage_tokens, "at least 1 each, and none below the one before")

    def check_text(self, sequences: int, length: int) -> None:
        """Refuse a text with fewer tokens than the last stage needs."""
        fits = self.stage_sequences(length)[-1] <= sequences
        wanted = f"at most --search-tokens ({sequences * length})"
        require(fits, "--stage-tokens", self.stage_tokens, wanted)

    def stage_sequences(self, length: int) -> tuple[int, ...]:
        """Sequences of `length` tokens that candidates have been scored on after each stage, at least one."""
        return tuple(max(1, tokens // length) for tokens in self.stage_tokens)

    def stages(self, length: int) -> list[tuple[int, int]]:
        """(sequences that it adds, offspring left after it) of every stage that adds any. A stage that adds
        none only reduces what is left after the one before."""
        counts = self.stage_sequences(length)
        added = [count - before for before, count in itertools.pairwise((0, *counts))]
        last = [*itertools.accumulate(bool(count) for count in added)]
        left = dict(zip(last, self.survivors, strict=True))
        return list(zip(filter(None, added), left.values(), strict=True))

    def generation_queries(self, length: int) -> list[tuple[int, int]]:
        """(candidates, sequences) of every query of a generation, the parent among the candidates."""
        added, left = zip(*self.stages(length), strict=True)
        return list(zip((1 + size for size in (self.offspring, *left[:-1])), added, strict=True))

    def steps(self, space: SearchSpace) -> int:
        """One step per stage."""
        return self.generations * len(self.stages(space.length))

    def queries(self, space: SearchSpace) -> list[tuple[int, int, int]]:
        """(candidates, sequences, times) of all queries of a round."""
        return [(*query, self.generations) for query in self.generation_queries(space.length)]

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> EvolutionState:
        """A search whose first parent is `start [2, L]`."""
        parent = jnp.asarray(start, jnp.int32)
        return EvolutionState(
            key=key,
            generation=jnp.int32(0),
            parent=parent,
            fitness=np.float64(np.inf),
            beaten=np.float64(np.inf),
            exists=np.asarray(space.exists),
            budget=space.budget,
            stage=np.int32(0),
            pool=np.asarray(parent)[None],
            sums=np.zeros(1),
            sequences=space.sequences,
            length=space.length,
        )

    def ask(self, state: EvolutionState) -> Query:
        """The parent and its offspring, or those of them that remain, on the text that the stage adds."""
        key = jax.random.fold_in(state.key, state.generation)
        ends = np.cumsum([added for added, _ in self.stages(state.length)])
        order = jax.random.permutation(jax.random.fold_in(key, SEQUENCE_DRAW), state.sequences)
        sequences = np.split(np.asarray(order)[: ends[-1]], ends[:-1])[int(state.stage)]
        if state.stage:
            return Query(state.pool, sequences)
        offspring = offspring_of(
            key, state.parent, jnp.asarray(state.exists), state.budget, self.offspring, self.max_shifts
        )
        return Query(np.concatenate([np.asarray(state.parent)[None], np.asarray(offspring)]), sequences)

    def tell(self, state: EvolutionState, candidates: Candidates, fitness: Fitness) -> EvolutionState:
        """The next stage, with the best offspring and the parent; or the next generation, whose parent is the
        best of them. An offspring must beat the parent to replace it."""
        stages = self.stages(state.length)
        added, survivors = stages[int(state.stage)]
        sums = added * fitness + (state.sums if state.stage else 0)
        left = [0, *(1 + np.argsort(sums[1:], kind="stable")[:survivors])]
        pool, sums = candidates[left], sums[left]
        if state.stage + 1 < len(stages):
            return state.replace(stage=state.stage + 1, pool=pool, sums=sums)  # type: ignore[attr-defined]
        total, best = sum(added for added, _ in stages), int(np.argmin(sums))
        return state.replace(  # type: ignore[attr-defined]
            generation=state.generation + 1,
            parent=jnp.asarray(pool[best], jnp.int32),
            fitness=np.float64(sums[best] / total),
            beaten=np.float64(sums[0] / total),
            stage=np.int32(0),
            pool=pool[best][None],
            sums=np.zeros(1),
        )

    def best(self, state: EvolutionState) -> Levels:
        """The parent."""
        return np.asarray(state.parent)

    def record(self, state: EvolutionState) -> Mapping[str, float] | None:
        """At the end of a generation: its number, its winner's fitness, and that of the parent to beat."""
        if state.stage:
            return None
        return {
            "generation": int(state.generation),
            "objective": float(state.fitness),
            "parent": float(state.beaten),
        }
