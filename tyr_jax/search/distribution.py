"""Estimation of distribution: sample every site's level from its own distribution, and learn from the best.

Baluja, "Population-Based Incremental Learning", CMU 1994; with several levels per site, the univariate
marginal distribution algorithm (Mühlenbein, "The Equation for Response to Selection and Its Use for
Prediction", Evolutionary Computation 1997).

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, repaired


class Marginals(Incumbent):
    """The best so far, and the probability of each level, `chance [S, L, E]`."""

    chance: jax.Array


@dataclasses.dataclass(frozen=True)
class Distribution(Improving):
    """Estimation of distribution with independent sites."""

    name: ClassVar[str] = "distribution"

    generations: int = 50
    """Generations of a round."""
    samples: int = 64
    """Candidates sampled in a generation."""
    elite: int = 8
    """Number of best candidates that the probabilities learn from."""
    learning: float = 0.2
    """Share by which the probabilities move towards the levels of the best."""
    spread: float = 0.8
    """Standard deviation, in levels, of the first samples around the start."""
    least_chance: float = 0.01
    """Minimum probability of a level, before each site's probabilities are normalised."""
    score_tokens: int = 2048
    """Tokens that a generation is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse rates that are not shares."""
        super().check()
        require(self.samples >= 1, "--samples", self.samples, "at least 1")
        require(1 <= self.elite <= self.samples, "--elite", self.elite, f"1 to --samples ({self.samples})")
        require(0 < self.learning <= 1, "--learning", self.learning, "above 0, and at most 1")
        require(self.spread > 0, "--spread", self.spread, "above 0")
        require(0 <= self.least_chance < 1, "--least-chance", self.least_chance, "from 0 to below 1")

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Marginals:
        """Probabilities of a normal distribution around the start."""
        plain, exists = Incumbent.at(key, start, space), jnp.asarray(space.exists)
        away = (jnp.arange(exists.shape[-1]) - plain.levels[..., None]) / self.spread
        return Marginals(**vars(plain), chance=self.bounded(jnp.exp(-(away**2) / 2), exists))

    def bounded(self, chance: jax.Array, exists: jax.Array) -> jax.Array:
        """`chance [S, L, E]` as probabilities of the levels that exist, raised to the least and scaled."""
        share = chance / jnp.sum(jnp.where(exists, chance, 0), axis=-1, keepdims=True)
        raised = jnp.where(exists, jnp.maximum(share, self.least_chance), 0)
        return raised / raised.sum(axis=-1, keepdims=True)

    def ask(self, state: Marginals) -> Query:
        """The best so far, and samples by the Gumbel-max trick. A sample that breaks the budget is moved
        onto it at the least loss of perturbed log-probability."""
        exists, budget = jnp.asarray(state.space.exists), state.space.budget
        logits = jnp.log(jnp.maximum(state.chance, 1e-30))

        def sample(key: jax.Array) -> jax.Array:
            cost = jnp.where(exists, -logits - jax.random.gumbel(key, exists.shape), 0)
            drawn = jnp.argmin(jnp.where(exists, cost, jnp.inf), axis=-1)
            return repaired(cost, drawn, exists, budget, state.levels)

        samples = jax.vmap(sample)(jax.random.split(state.draw, self.samples))
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.levels[None], samples]), text)

    def tell(self, state: Marginals, candidates: jax.Array, fitness: jax.Array) -> Marginals:
        """Move the probabilities towards the levels of the best candidates."""
        exists = jnp.asarray(state.space.exists)
        values = jnp.asarray(fitness, jnp.float32)
        best = jnp.argsort(values)[: self.elite]
        counted = jnp.isfinite(values[best])
        levels = jax.nn.one_hot(jnp.asarray(candidates)[best], exists.shape[-1])
        seen = jnp.einsum("c,ckle->kle", counted / jnp.maximum(counted.sum(), 1), levels)
        moved = jnp.where(counted.any(), state.chance + self.learning * (seen - state.chance), state.chance)
        chance = self.bounded(moved, exists)
        return state.after(candidates, fitness).replace(chance=chance)
