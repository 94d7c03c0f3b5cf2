"""Simulated annealing in parallel chains.

Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing", Science 1983. Each chain scores its
present levels and one neighbour on the same new text, and moves to the neighbour with the Metropolis
probability. The temperature falls geometrically. In the last generations it is so low that the search is
greedy.

Axis letters: `C` chains, `S` kinds of site, `L` layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import ACCEPTANCE_DRAW, drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, mutate


class Chains(Incumbent):
    """The best of the last generation, and all chains, `chains [C, S, L]`."""

    chains: jax.Array


@dataclasses.dataclass(frozen=True)
class Annealing(Improving):
    """Simulated annealing: a worse neighbour is accepted with a probability that falls."""

    name: ClassVar[str] = "annealing"

    generations: int = 100
    """Steps of each chain in a round."""
    chains: int = 16
    """Chains side by side."""
    heat: float = 0.02
    """Initial temperature, as a share of a chain's own objective."""
    cooled: float = 0.01
    """Final temperature, as a share of the initial one."""
    max_shifts: int = 2
    """At most this many sparsity shifts lead to a neighbour: the number is the smaller of two draws."""
    score_tokens: int = 2048
    """Tokens that a step is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse a schedule that does not cool."""
        super().check()
        require(self.chains >= 1, "--chains", self.chains, "at least 1")
        require(self.heat >= 0, "--heat", self.heat, "at least 0")
        require(0 < self.cooled <= 1, "--cooled", self.cooled, "above 0, and at most 1")
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Chains:
        """All chains at the start."""
        plain = Incumbent.at(key, start, space)
        return Chains(**vars(plain), chains=jnp.repeat(plain.levels[None], self.chains, axis=0))

    def ask(self, state: Chains) -> Query:
        """Where the chains are, and a neighbour of each."""
        keys, exists = jax.random.split(state.draw, self.chains), jnp.asarray(state.space.exists)
        moved = jax.vmap(lambda key, now: mutate(key, now, exists, state.space.budget, self.max_shifts))
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.chains, moved(keys, state.chains)]), text)

    def tell(self, state: Chains, candidates: jax.Array, fitness: jax.Array) -> Chains:
        """Move each chain, or not."""
        values = jnp.asarray(fitness, jnp.float32)
        (now, then), at = jnp.split(values, 2), jnp.split(jnp.asarray(candidates, jnp.int32), 2)
        done = state.generation / max(1, self.generations - 1)
        temperature = self.heat * self.cooled**done * jnp.abs(now)
        key = jax.random.fold_in(state.draw, ACCEPTANCE_DRAW)
        luck = jnp.log(jax.random.uniform(key, now.shape, minval=1e-9))
        goes = (then <= now) | (jnp.isfinite(then) & (now - then > luck * temperature))
        chains = jnp.where(goes[:, None, None], at[1], at[0])
        return state.after(candidates, fitness).replace(chains=chains)
