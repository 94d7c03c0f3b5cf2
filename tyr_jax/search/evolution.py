"""The paper's evolutionary search: sparsity shifts, staged selection, elitism.

Li et al., "Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization", NeurIPS
2025, §2.4 and Algorithm 3.

A generation has several stages. The first scores the parent and its offspring on a few tokens. Every later
one scores the parent and the remaining offspring on the text that it adds, and averages over all text so far.
Every random draw is a function of the key and the generation.

Axis letters: `C` candidates, `P` candidates that remain, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.search.contract import Asked, Query, Search, SearchSpace
from tyr_jax.search.draws import drawn_order, neighbours
from tyr_jax.space import Levels


class EvolutionState(flax.struct.PyTreeNode):
    """Where the search stands.

    Key; what may be chosen, `space`; finished generations; the `parent [S, L]`, with its `fitness` in the
    last generation, and the fitness there of the parent it had to beat, `beaten`; the `stage` of the present
    generation, with the remaining candidates `pool [P, S, L]`, the parent first, and the `sums [P]` of their
    fitness over the sequences so far.
    """

    key: jax.Array
    space: SearchSpace
    generation: jax.Array
    parent: jax.Array
    fitness: jax.Array
    beaten: jax.Array
    pool: jax.Array
    sums: jax.Array
    stage: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Evolution(Search):
    """Evolution: stage i scores the remaining candidates on `stage_tokens[i]`, and keeps `survivors[i]`.

    Stages share their text: each scores only on what it adds to the last one's, and averages over all.
    """

    name: ClassVar[str] = "evolution"
    traceable: ClassVar[bool] = True

    generations: int = 50
    """Generations of a round."""
    offspring: int = 128
    """Offspring of the one parent in a generation."""
    survivors: tuple[int, ...] = (16, 4, 1)
    """Offspring left after each stage; the parent is scored with them, and competes only in
    the last stage."""
    stage_tokens: tuple[int, ...] = (2048, 16384, 131072)
    """Tokens on which candidates have been scored by the end of each stage."""
    max_shifts: int = 4
    """Maximum number of sparsity shifts of an offspring; their number is the smaller of two random draws."""

    def check(self) -> None:
        """Refuse an invalid schedule."""
        super().check()
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")
        same = len(self.survivors) == len(self.stage_tokens) >= 1
        require(same, "--survivors", self.survivors, "as many values as --stage-tokens has")
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

    def schedule(self, length: int) -> list[tuple[int, int]]:
        """(sequences that it adds, offspring left after it) of every stage that adds any. A stage that adds
        none only reduces what is left after the one before."""
        counts = self.stage_sequences(length)
        added = [count - before for before, count in itertools.pairwise((0, *counts))]
        last = [*itertools.accumulate(bool(count) for count in added)]
        left = dict(zip(last, self.survivors, strict=True))
        return list(zip(filter(None, added), left.values(), strict=True))

    def stages(self, space: SearchSpace) -> int:
        """Stages that add text."""
        return len(self.schedule(space.length))

    def queries(self, space: SearchSpace) -> list[Asked]:
        """All queries of a round, the parent among the candidates."""
        added, left = zip(*self.schedule(space.length), strict=True)
        sizes = self.offspring, *left[:-1]
        return [Asked(1 + size, count, self.generations) for size, count in zip(sizes, added, strict=True)]

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> EvolutionState:
        """A search whose first parent is `start [S, L]`."""
        parent, unknown = jnp.asarray(start, jnp.int32), jnp.float32(jnp.inf)
        return EvolutionState(
            key, space, jnp.int32(0), parent, unknown, unknown, parent[None], jnp.zeros(1), stage=0
        )

    def ask(self, state: EvolutionState) -> Query:
        """The parent and its offspring, or those of them that remain, on the text that the stage adds."""
        key = jax.random.fold_in(state.key, state.generation)
        ends = np.cumsum([added for added, _ in self.schedule(state.space.length)])
        sequences = jnp.split(drawn_order(key, state.space)[: ends[-1]], ends[:-1])[state.stage]
        if state.stage:
            return Query(state.pool, sequences)
        offspring = neighbours(key, state.parent, state.space, self.offspring, self.max_shifts)
        return Query(jnp.concatenate([state.parent[None], offspring]), sequences)

    def tell(self, state: EvolutionState, candidates: jax.Array, fitness: jax.Array) -> EvolutionState:
        """The next stage, with the best offspring and the parent; or the next generation, whose parent is the
        best of them. An offspring must beat the parent to replace it."""
        stages = self.schedule(state.space.length)
        added, survivors = stages[state.stage]
        sums = added * jnp.asarray(fitness, jnp.float32) + (state.sums if state.stage else 0)
        left = jnp.concatenate([jnp.zeros(1, int), 1 + jnp.argsort(sums[1:])[:survivors]])
        pool, sums = jnp.asarray(candidates, jnp.int32)[left], sums[left]
        if state.stage + 1 < len(stages):
            return state.replace(stage=state.stage + 1, pool=pool, sums=sums)
        total, best = sum(added for added, _ in stages), jnp.argmin(sums)
        return state.replace(
            generation=state.generation + 1,
            parent=pool[best],
            fitness=sums[best] / total,
            beaten=sums[0] / total,
            stage=0,
            pool=pool[best][None],
            sums=jnp.zeros(1),
        )

    def best(self, state: EvolutionState) -> jax.Array:
        """The parent."""
        return state.parent

    def record(self, state: EvolutionState) -> Mapping[str, float] | None:
        """At the end of a generation: its number, its winner's fitness, and that of the parent to beat."""
        if state.stage:
            return None
        return {
            "generation": int(state.generation),
            "objective": float(state.fitness),
            "parent": float(state.beaten),
        }
