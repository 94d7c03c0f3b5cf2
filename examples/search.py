"""A custom search: parallel chains, each of which keeps a sparsity shift unless it makes the chain worse.

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


class Chains(flax.struct.PyTreeNode):
    """The random key, finished steps, levels `[C, S, L]` and fitness `[C]` of the chains, which levels exist,
    and the budget."""

    key: jax.Array
    step: int
    levels: np.ndarray
    fitness: np.ndarray
    exists: np.ndarray
    budget: Budget
    sequences: int = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class HillClimbing(Search):
    """Parallel hill climbing on the same sequences in every step."""

    generations: int = 20
    """Steps of a round."""
    chains: int = 4
    """Number of chains that climb in parallel."""
    text: int = 2
    """Sequences that candidates are scored on."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Any:
        """Put all chains at the start, with a fitness that any neighbour beats."""
        levels = np.repeat(start[None], self.chains, axis=0)
        worst = np.full(self.chains, np.inf)
        known = space.exists, space.budget
        return Chains(key, 0, levels, worst, *known, min(self.text, space.sequences))

    def ask(self, state: Any) -> Query:
        """Ask for a neighbour of every chain; in the first step, for the start itself."""
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), self.chains)
        shift = jax.vmap(lambda key, levels: mutate(key, levels, jnp.asarray(state.exists), state.budget, 1))
        candidates = shift(keys, jnp.asarray(state.levels)) if state.step else state.levels
        return Query(np.asarray(candidates), np.arange(state.sequences))

    def tell(self, state: Any, candidates: Candidates, fitness: Fitness) -> Any:
        """Move every chain to its neighbour unless that is worse."""
        better = fitness <= state.fitness
        levels = np.where(better[:, None, None], candidates, state.levels)
        return state.replace(
            step=state.step + 1, levels=levels, fitness=np.where(better, fitness, state.fitness)
        )

    def best(self, state: Any) -> Levels:
        """Levels of the best chain."""
        return np.asarray(state.levels[int(np.argmin(state.fitness))])
