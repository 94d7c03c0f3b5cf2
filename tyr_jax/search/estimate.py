"""The best of several starts: where this project's searches start.

A race between the given start and the distributions of least estimated cost
(`tyr_jax.search.surrogate.starts`), in two heats: all of them are scored on the same text, then the given one
and the best other once more, on twice as much fresh text. Costs are the relative errors that the fold has
measured at each site's levels, weighted by how much the site's output counts, and added up.

It was made for this project and has no paper. The additive model, solved exactly, is that of Bercovich et
al., "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", ICML 2025, whose costs are measured on the
whole model instead.

Axis letters: `Q` starts, `P` starts in a heat, `S` kinds of site, `L` layers, `s` sequences.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.search import surrogate
from tyr_jax.search.contract import Asked, Query, SearchSpace
from tyr_jax.search.draws import drawn_order
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels


class Race(Incumbent):
    """The best so far; the estimated `starts [Q, S, L]`; and, in the second heat, the best of these in front,
    with the `sums [P]` of the fitness of both finalists over the sequences so far."""

    starts: jax.Array
    sums: jax.Array


@dataclasses.dataclass(frozen=True)
class Estimate(Improving):
    """The best of the start and the distributions of least estimated cost, scored side by side."""

    name: ClassVar[str] = "estimate"

    generations: int = 1
    """Races."""
    score_tokens: int = 1024
    """Tokens of the first heat; the second has twice as many others."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Race:
        """At the start."""
        plain = Incumbent.at(key, start, space)
        starts = surrogate.estimated(space, plain.levels)
        return Race(**vars(plain), starts=starts, sums=jnp.zeros(2))

    def stages(self, space: SearchSpace) -> int:
        """Two heats; one if all text is needed for it."""
        return 2 if space.sequences > self.heat(space) else 1

    def queries(self, space: SearchSpace) -> list[Asked]:
        """All queries of a round."""
        first, several = self.heat(space), 1 + len(surrogate.EXCHANGES)
        heats = [Asked(several, first, self.generations)]
        if self.stages(space) == 2:
            heats.append(Asked(2, min(3 * first, space.sequences) - first, self.generations))
        return heats

    def heat(self, space: SearchSpace) -> int:
        """Sequences of the first heat."""
        return min(max(1, self.score_tokens // space.length), space.sequences)

    def ask(self, state: Race) -> Query:
        """The best so far, and its rivals."""
        order, first = drawn_order(state.draw, state.space), self.heat(state.space)
        rivals, text = (
            (state.starts[:1], order[first : 3 * first]) if state.stage else (state.starts, order[:first])
        )
        return Query(jnp.concatenate([state.levels[None], rivals]), text)

    def tell(self, state: Race, candidates: jax.Array, fitness: jax.Array) -> Race:
        """The second heat, of the best so far and its best rival; or the winner of both heats together."""
        values, space = jnp.asarray(fitness, jnp.float32), state.space
        first = self.heat(space)
        if state.stage or self.stages(space) == 1:
            more = min(3 * first, space.sequences) - first
            total = (state.sums + more * values) / (first + more) if state.stage else values
            return state.after(candidates, total)
        best = 1 + jnp.argmin(values[1:])
        finalists = jnp.stack([values[0], values[best]])
        starts = jnp.roll(state.starts, 1 - best, axis=0)
        return state.replace(starts=starts, sums=first * finalists, stage=1)
