"""The paper's evolutionary search (§2.4, Algorithm 3): sparsity shifts, staged selection, elitism.

`init / ask / tell` over an explicit, immutable state. Every random draw is a function of the key and the
generation, so a run repeats and can continue from its state. Axis letters: `C` candidates, `L` layers,
`E` levels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.space import mutate

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(candidates [C, 2, L], sequences [s]) -> objective [C]`, lower is better."""


@dataclasses.dataclass(frozen=True)
class EvolutionSettings:
    """Schedule of the search: stage i scores what is left on `stage_tokens[i]`, keeps `survivors[i]`.

    Stages share their text: each scores on what it adds to the last one's, and averages over all.
    """

    generations: int = 50
    """Generations of a round."""
    offspring: int = 128
    """Offspring of the one parent in a generation."""
    survivors: tuple[int, ...] = (16, 4, 1)
    """Offspring left after each stage; the parent is scored beside them, and competes in the last."""
    stage_tokens: tuple[int, ...] = (2048, 16384, 131072)
    """Tokens that candidates have been scored on after each stage."""
    max_shifts: int = 4
    """An offspring differs by the smaller of two draws from 1 … this many sparsity shifts."""

    def stage_sizes(self) -> tuple[int, ...]:
        """Candidates scored at each stage, the parent among them."""
        return tuple(1 + size for size in (self.offspring, *self.survivors[:-1]))

    def candidate_tokens(self, sequence_length: int) -> int:
        """Candidate-tokens of one generation."""
        pairs = zip(self.stage_sizes(), self.new_sequences(sequence_length), strict=True)
        return sum(size * sequences * sequence_length for size, sequences in pairs)

    def stage_sequences(self, sequence_length: int) -> tuple[int, ...]:
        """Sequences of `sequence_length` that each stage's tokens amount to, at least one."""
        return tuple(max(1, tokens // sequence_length) for tokens in self.stage_tokens)

    def new_sequences(self, sequence_length: int) -> tuple[int, ...]:
        """Sequences that each stage adds to those of the stage before."""
        counts = self.stage_sequences(sequence_length)
        return tuple(count - before for before, count in itertools.pairwise((0, *counts)))


@flax.struct.dataclass
class EvolutionState:
    """Key, number of finished generations, the parent `[2, L]` and its objective in the last of them."""

    key: jax.Array
    generation: jax.Array
    parent: jax.Array
    fitness: jax.Array


def init(key: jax.Array, parent: np.ndarray) -> EvolutionState:
    """A search that starts from `parent`, levels `[2, L]`."""
    return EvolutionState(key, jnp.int32(0), jnp.asarray(parent, jnp.int32), jnp.float32(jnp.inf))


@functools.partial(jax.jit, static_argnames=("offspring", "max_shifts"))
def ask(state: EvolutionState, exists: jax.Array, offspring: int, max_shifts: int) -> jax.Array:
    """Offspring `[C, 2, L]` of the parent, each by independent sparsity shifts; `exists [2, L, E]`."""
    key = jax.random.fold_in(state.key, state.generation)
    keys = jax.random.split(key, offspring)
    return jax.vmap(lambda k: mutate(k, state.parent, exists, max_shifts))(keys)


def tell(state: EvolutionState, winner: np.ndarray, fitness: float) -> EvolutionState:
    """The state after a generation won by `winner [2, L]` at objective `fitness`."""
    return state.replace(  # type: ignore[attr-defined]
        generation=state.generation + 1,
        parent=jnp.asarray(winner, jnp.int32),
        fitness=jnp.float32(fitness),
    )


def draw_sequences(state: EvolutionState, pool: int, count: int) -> np.ndarray:
    """This generation's order of `count` of the pool's sequences; each stage takes the next of them."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.generation), 1 << 20)
    return np.asarray(jax.random.permutation(key, pool))[:count]


def staged_selection(
    offspring: np.ndarray,
    parent: np.ndarray,
    stages: list[tuple[np.ndarray, int]],
    score: Scorer,
) -> tuple[np.ndarray, float, float]:
    """Narrow `offspring [C, 2, L]` stage by stage; the parent competes in the last (elitism).

    Args:
        offspring: candidates.
        parent: levels `[2, L]`.
        stages: (sequences that it adds, survivors) of every stage, of the last one survivor.
        score: the objective; candidates of a stage are scored on the same sequences.

    Returns:
        The winner `[2, L]`, its objective on all sequences, and the parent's. A candidate must beat the
        parent to replace it; one whose objective is not finite never does.
    """
    pool = np.concatenate([parent[None], offspring])
    sums, seen = np.zeros(len(pool)), 0
    for sequences, survivors in stages:
        if len(sequences):
            sums = sums + len(sequences) * score(pool, sequences)
            seen += len(sequences)
        sums = np.where(np.isfinite(sums), sums, np.inf)
        left = [0, *(1 + np.argsort(sums[1:], kind="stable")[:survivors])]
        pool, sums = pool[left], sums[left]
    best = int(np.argmin(sums))
    return pool[best], float(sums[best] / seen), float(sums[0] / seen)


def evolve(
    state: EvolutionState,
    exists: np.ndarray,
    score: Scorer,
    pool_sequences: int,
    sequence_length: int,
    settings: EvolutionSettings,
    on_generation: Callable[[EvolutionState, float], None] = lambda state, parent_fitness: None,
) -> EvolutionState:
    """Run the generations that `state` still lacks (Algorithm 3).

    Args:
        state: from `init`, or a saved one to continue.
        exists: levels that exist `[2, L, E]`.
        score: the objective of candidates on given sequences of the search pool.
        pool_sequences: sequences in the pool.
        sequence_length: their tokens.
        settings: the schedule.
        on_generation: called after each generation with the state and the parent's objective in it.
    """
    counts = settings.stage_sequences(sequence_length)
    for _ in range(int(state.generation), settings.generations):
        offspring = ask(state, jnp.asarray(exists), settings.offspring, settings.max_shifts)
        order = draw_sequences(state, pool_sequences, counts[-1])
        stages = list(zip(np.split(order, counts[:-1]), settings.survivors, strict=True))
        winner, fitness, parent_fitness = staged_selection(
            np.asarray(offspring), np.asarray(state.parent), stages, score
        )
        state = tell(state, winner, fitness)
        on_generation(state, parent_fitness)
    return state
