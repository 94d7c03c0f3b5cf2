"""Continuous relaxation: a softmax over the levels of every site, trained by slopes, rounded onto the budget.

Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, with one level at a time in
the model: the slopes are taken at the rounded levels and passed to the probabilities as they are (Bengio,
Léonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013).

A generation has two stages: slopes at the rounded levels, then a score of the newly rounded levels beside the
best so far.

Axis letters: `P` parts of a text, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, relaxed


class Relaxed(Incumbent):
    """The best so far; the `logits [S, L, E]` of the levels, with the moments of their optimiser; and the
    levels that they are rounded to, `rounded [S, L]`."""

    logits: jax.Array
    moments: optax.OptState
    rounded: jax.Array


@dataclasses.dataclass(frozen=True)
class Relaxation(Improving):
    """Gradient descent on the probabilities of levels."""

    name: ClassVar[str] = "relaxation"

    generations: int = 40
    """Steps of a round."""
    rate: float = 0.1
    """Learning rate of Adam on the logits."""
    confidence: float = 2.0
    """How much lower the initial logit is for every level further from the start."""
    slope_tokens: int = 2048
    """Tokens that slopes are computed on."""
    score_tokens: int = 2048
    """Tokens that rounded levels are scored on."""

    def check(self) -> None:
        """Refuse a learning rate that is not positive."""
        super().check()
        require(self.rate > 0, "--rate", self.rate, "above 0")

    def stages(self, space: SearchSpace) -> int:
        """Slopes, then scores."""
        return 2

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Relaxed:
        """Logits that fall with the distance from the start."""
        plain, levels = Incumbent.at(key, start, space), space.exists.shape[-1]
        logits = -self.confidence * jnp.abs(jnp.arange(levels) - plain.levels[..., None]).astype(float)
        moments = optax.adam(self.rate).init(logits)
        return Relaxed(**vars(plain), logits=logits, moments=moments, rounded=plain.levels)

    def ask(self, state: Relaxed) -> Query:
        """Slopes at the rounded levels; or scores of the best so far and of these."""
        if state.stage == 0:
            text = drawn_text(state.draw, state.space, self.slope_tokens)
            return Query(state.rounded[None], text, "slopes")
        text = drawn_text(jax.random.fold_in(state.draw, 1), state.space, self.score_tokens)
        return Query(jnp.stack([state.levels, state.rounded]), text)

    def tell(self, state: Relaxed, candidates: jax.Array, fitness: jax.Array) -> Relaxed:
        """A step of the logits along the slopes, and its rounding; or the better of the two."""
        if state.stage == 1:
            return state.after(candidates, fitness)
        slopes, exists = jnp.asarray(fitness, jnp.float32)[0].mean(axis=0), jnp.asarray(state.space.exists)

        def chances(logits: jax.Array) -> jax.Array:
            return jax.nn.softmax(jnp.where(exists, logits, -jnp.inf), axis=-1)

        gradient = jax.grad(lambda logits: jnp.sum(jnp.where(exists, slopes, 0) * chances(logits)))(
            state.logits
        )
        updates, moments = optax.adam(self.rate).update(gradient, state.moments)
        logits = optax.apply_updates(state.logits, updates)
        cost = jnp.where(exists, -jnp.log(jnp.maximum(chances(logits), 1e-30)), 0)
        rounded = relaxed(cost, exists, state.space.budget, state.levels)
        return state.replace(logits=logits, moments=moments, rounded=rounded, stage=1)
