"""A search of your own: parallel chains that each keep a sparsity shift if it does not make them worse.

python -m tyr_jax.prune --preset quick --search examples.search:HillClimbing --chains 8 --output pruned
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.search.contract import Query, Search, SearchSpace
from tyr_jax.space import Budget, Candidates, Fitness, Levels, mutate


@flax.struct.dataclass
class Chains:
    """Key, finished steps, where every chain is `[C, 2, L]` and its fitness `[C]`, levels that exist, and
    what they may cost."""

    key: jax.Array
    step: int
    levels: np.ndarray
    fitness: np.ndarray
    exists: np.ndarray
    budget: Budget
    sequences: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class HillClimbing(Search):
    """Parallel hill climbing, on the same sequences in every step."""

    generations: int = 20
    """Steps of a round."""
    chains: int = 4
    """Candidates that climb side by side."""
    text: int = 2
    """Sequences that they are scored on."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Any:
        """All chains at the start, which any neighbour beats."""
        levels = np.repeat(start[None], self.chains, axis=0)
        worst = np.full(self.chains, np.inf)
        known = space.exists, space.budget
        return Chains(key, 0, levels, worst, *known, min(self.text, space.sequences))

    def ask(self, state: Any) -> Query:
        """A neighbour of every chain."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), self.chains)
        shift = jax.vmap(lambda key, levels: mutate(key, levels, jnp.asarray(state.exists), state.budget, 1))
        candidates = shift(keys, jnp.asarray(state.levels)) if state.step else state.levels
        return Query(np.asarray(candidates), np.arange(state.sequences))

    def tell(self, state: Any, candidates: Candidates, fitness: Fitness) -> Any:
        """Every chain moves to its neighbour unless that is worse."""
        better = fitness <= state.fitness
        levels = np.where(better[:, None, None], candidates, state.levels)
        return state.replace(
            step=state.step + 1, levels=levels, fitness=np.where(better, fitness, state.fitness)
        )

    def best(self, state: Any) -> Levels:
        """Where the best chain is."""
        return np.asarray(state.levels[int(np.argmin(state.fitness))])
