"""The additive model: probe what each change costs alone, and find the best sum that meets the budget.

In a generation, every site alone is moved to each level near its own, and the changes of the objective are
taken as costs that add up. The levels of least total cost under the budget are then found by dynamic
programming over sites and budget (Bellman, "Dynamic Programming", 1957): exactly, if the budget has one
resource. `tyr_jax.search.lagrangian` solves the same model by multipliers, and `tyr_jax.search.puzzle` probes
every level at once.

A second stage scores the solution beside the levels that it started from, and the better one stays. Probes
may break the budget: they only inform.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `W` levels probed at a site.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.search import surrogate
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Budget, Levels


class Probed(Incumbent):
    """The best so far; the solution to score beside it, `solution [S, L]`, in the second stage."""

    solution: jax.Array


@dataclasses.dataclass(frozen=True)
class Additive(Improving):
    """Base of the searches that solve an additive model."""

    generations: int = 4
    """Times that all sites are probed in a round."""
    reach: int = 2
    """Maximum number of levels by which a site moves, in a probe or a solution."""
    probe_tokens: int = 1024
    """Tokens that probes are scored on."""
    score_tokens: int = 8192
    """Tokens on which a solution and the levels before it are scored."""

    def check(self) -> None:
        """Refuse a reach below 1."""
        super().check()
        require(self.reach >= 1, "--reach", self.reach, "at least 1")

    def solve(self, cost: jax.Array, state: Probed) -> jax.Array:
        """The levels `[S, L]` of least total `cost [S, L, E]`, +inf where a level is out of reach."""
        raise NotImplementedError

    def stages(self, space: SearchSpace) -> int:
        """Probes, then the solution."""
        return 2

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Probed:
        """At the start."""
        plain = Incumbent.at(key, start, space)
        return Probed(**vars(plain), solution=plain.levels)

    def offsets(self, space: SearchSpace) -> np.ndarray:
        """The level steps `[W]` that are probed at each site."""
        reach = min(self.reach, space.exists.shape[-1] - 1)
        steps = np.arange(-reach, reach + 1)
        return steps[steps != 0]

    def ask(self, state: Probed) -> Query:
        """The present levels, and every site alone moved by every step; or these levels and the solution."""
        if state.stage == 0:
            text = drawn_text(state.draw, state.space, self.probe_tokens)
            moved = state.levels + self.single_steps(state)
            return Query(jnp.concatenate([state.levels[None], moved]), text, "probe")
        text = drawn_text(jax.random.fold_in(state.draw, 1), state.space, self.score_tokens)
        return Query(jnp.stack([state.levels, state.solution]), text)

    def single_steps(self, state: Probed) -> jax.Array:
        """Every site alone moved by every step, `[W·S·L, S, L]`; zero where there is no such level."""
        exists = jnp.asarray(state.space.exists)
        site = jnp.eye(state.levels.size, dtype=int).reshape(-1, *state.levels.shape)
        steps = (jnp.asarray(self.offsets(state.space))[:, None, None, None] * site).reshape(
            -1, *site.shape[1:]
        )
        there = jax.vmap(lambda step: reachable(exists, state.levels + step))(steps)
        return jnp.where(there[:, None, None], steps, 0)

    def tell(self, state: Probed, candidates: jax.Array, fitness: jax.Array) -> Probed:
        """After the probes, the state with the solution of the additive model; after its score, the state
        with the better of the solution and the levels before."""
        if state.stage == 1:
            return state.after(candidates, fitness)
        values = jnp.asarray(fitness, jnp.float32)
        exists, levels = jnp.asarray(state.space.exists), state.levels
        offsets = self.offsets(state.space)
        # If the objective of the present levels is not finite, every finite probe counts as an improvement.
        worst = jnp.max(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        base = jnp.where(jnp.isfinite(values[0]), values[0], worst)
        changes = (values[1:] - base).reshape(len(offsets), *levels.shape)
        cost = jnp.where(jnp.arange(exists.shape[-1]) == levels[..., None], 0.0, jnp.inf)
        for offset, change in zip(offsets, changes, strict=True):
            here = jnp.arange(exists.shape[-1]) == (levels + offset)[..., None]
            cost = jnp.where(here & exists & jnp.isfinite(change)[..., None], change[..., None], cost)
        return state.replace(solution=self.solve(cost, state), stage=1)


def reachable(exists: jax.Array, levels: jax.Array) -> jax.Array:
    """Whether every level of `levels [S, L]` exists."""
    inside = jnp.clip(levels, 0, exists.shape[-1] - 1)
    there = jnp.take_along_axis(exists, inside[..., None], axis=-1)[..., 0]
    return jnp.all((inside == levels) & there)


def cheapest(cost: np.ndarray, budget: Budget, around: np.ndarray) -> np.ndarray:
    """`surrogate.cheapest` over all levels of finite `cost [S, L, E]`; `around [S, L]` if there are none."""
    found = surrogate.cheapest(cost, budget, around, cost.shape[-1])
    return around if found is None else found


@dataclasses.dataclass(frozen=True)
class DynamicProgramme(Additive):
    """The additive model, solved by dynamic programming."""

    name: ClassVar[str] = "additive"

    def solve(self, cost: jax.Array, state: Probed) -> jax.Array:
        """The solution, found on the host."""
        return surrogate.on_host(cheapest, state.levels.shape, cost, state.space.budget, state.levels)
