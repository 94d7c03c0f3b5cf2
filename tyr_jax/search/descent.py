"""This project's descent as a search: proposals from slopes and level errors, scored before they count.

The first generation starts at the distribution of least `disturbance`, where evolution starts as well
(`tyr_jax.search.surrogate`). Each generation has two stages: slopes at the present levels, then a score of
these levels and of one proposal for each of `CAUTIONS`. In the first generation, the levels that were given
to start from take the place of the last proposal, so that the search can leave a bad estimate.

It was made for this project and has no paper. The nearest known method is sequential quadratic
programming (Nocedal and Wright, "Numerical Optimization", 2006, chapter 18).

Axis letters: `P` parts of a text, `Q` proposals, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.search import surrogate
from tyr_jax.search.contract import Query, SearchSpace, Sites
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Budget, Levels


@flax.struct.dataclass
class Proposed(Incumbent):
    """The best so far; what is proposed to replace it, `proposals [Q, S, L]`; and the levels that were given
    to start from, `start [S, L]`."""

    proposals: jax.Array
    start: jax.Array


@dataclasses.dataclass(frozen=True)
class Descent(Improving):
    """Descent along the objective's slopes, one level at a time."""

    name: ClassVar[str] = "descent"

    generations: int = 20
    """Steps of a round."""
    estimate: bool = True
    """Start from the distribution of least estimated cost."""
    reach: int = 1
    """Maximum number of levels by which a site moves in a step."""
    slope_tokens: int = 2048
    """Tokens that slopes are computed on."""
    score_tokens: int = 2048
    """Tokens that proposals are scored on."""

    def check(self) -> None:
        """Refuse a reach below 1."""
        super().check()
        require(self.reach >= 1, "--reach", self.reach, "at least 1")

    def stages(self, space: SearchSpace) -> int:
        """Slopes, then scores."""
        return 2

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Proposed:
        """At the start, or at the estimate."""
        plain = given = Incumbent.at(key, start, space)
        if self.estimate:
            found = on_host(estimated, plain.levels.shape, space.sites, space.budget, plain.levels)
            plain = plain.replace(levels=found)  # type: ignore[attr-defined]
        proposals = jnp.repeat(plain.levels[None], len(surrogate.CAUTIONS), axis=0)
        return Proposed(**vars(plain), proposals=proposals, start=given.levels)

    def ask(self, state: Proposed) -> Query:
        """Slopes at the present levels; or scores of these and of the proposals."""
        if state.stage == 0:
            text = drawn_text(state.draw, state.space, self.slope_tokens)
            return Query(state.levels[None], text, "slopes")
        text = drawn_text(jax.random.fold_in(state.draw, 1), state.space, self.score_tokens)
        return Query(jnp.concatenate([state.levels[None], state.proposals]), text)

    def tell(self, state: Proposed, candidates: jax.Array, fitness: jax.Array) -> Proposed:
        """Proposals from the slopes; or the best of them and the levels before."""
        if state.stage == 1:
            return state.after(candidates, fitness)
        slopes, known = jnp.asarray(fitness, jnp.float32)[0], (state.space.sites, state.space.budget)
        reach = jnp.int32(self.reach)
        found = on_host(proposals, state.proposals.shape, slopes, *known, state.levels, reach)
        if self.estimate:
            found = jnp.where(state.generation == 0, found.at[-1].set(state.start), found)
        return state.replace(proposals=found, stage=1)  # type: ignore[attr-defined]


def on_host(function: object, shape: tuple[int, ...], *arguments: object) -> jax.Array:
    """Levels of this shape that `function` computes in numpy on the host."""
    result = jax.ShapeDtypeStruct(shape, jnp.int32)
    return jax.pure_callback(function, result, *arguments, vmap_method="sequential")  # type: ignore[arg-type]


def estimated(sites: Sites, budget: Budget, around: Levels) -> np.ndarray:
    """`surrogate.estimated_start`, or `around [S, L]` if it finds none."""
    sites, budget, around = jax.tree.map(np.asarray, (sites, budget, around))
    found = surrogate.estimated_start(sites, budget, around)
    return np.asarray(around if found is None else found, np.int32)


def proposals(
    slopes: np.ndarray, sites: Sites, budget: Budget, levels: Levels, reach: np.ndarray
) -> np.ndarray:
    """`surrogate.proposals` of slopes `[P, S, L, E]`: `[Q, S, L]`."""
    slopes, sites, budget, levels = jax.tree.map(np.asarray, (slopes, sites, budget, levels))
    return surrogate.proposals(slopes, sites, budget, levels, int(reach)).astype(np.int32)
