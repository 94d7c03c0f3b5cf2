"""Algorithms of evosax, which search real vectors, on levels.

A vector has a number for every site: the level that it asks for, relative to the start and in units of
`scale` levels. It is rounded to those levels within the budget that have the least sum of squared distances.
With `logits`, it has a logit for every level of every site instead: a level is worth its logit times `scale`,
less the squared distance from the start, and the levels of the largest sum within the budget are taken. With
nine levels, these are nine times as many dimensions, and the cost of CMA-ES grows with their cube. Needs the
extra `tyr-jax[search]`.

Lange, "evosax: JAX-based Evolution Strategies", 2022, arXiv 2212.04180. The default algorithm is CMA-ES:
Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary
Computation, 2001.

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import UserError, require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import BEGIN_DRAW, POPULATION_DRAW, TELL_DRAW, drawn_text
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels, relaxed

UNFIT = "LM_MA_ES", "RandomSearch", "SV_CMA_ES", "SV_Open_ES"
"""Algorithms of evosax that cannot be compiled, or that need more than a population and a shape."""


class Strategy(Incumbent):
    """The best so far; the levels to start from, `start [S, L]`; what the strategy asks for next, `vectors
    [C, S, L]`, or `[C, S, L, E]` of logits; and its own state after that, `inner`."""

    start: jax.Array
    vectors: jax.Array
    inner: Any


@dataclasses.dataclass(frozen=True)
class Evosax(Improving):
    """An algorithm of evosax by the name of its class, such as CMA_ES, SNES or DifferentialEvolution."""

    name: ClassVar[str] = "evosax"

    generations: int = 50
    """Generations of a round."""
    strategy: str = "CMA_ES"
    """Name of the algorithm's class in evosax.algorithms."""
    population: int = 64
    """Candidates of a generation."""
    scale: float = 1.0
    """Number of levels that one unit of a vector stands for. With `--logits`, the squared distance from the
    start that a logit of one makes up for."""
    logits: bool = False
    """Search a logit for every level of every site, not one number for every site."""
    score_tokens: int = 2048
    """Tokens that a generation is scored on, drawn anew for each."""

    def check(self) -> None:
        """Refuse an algorithm that evosax does not have."""
        super().check()
        require(self.population >= 2, "--population", self.population, "at least 2")
        require(self.scale > 0, "--scale", self.scale, "above 0")
        algorithm_of(self.strategy, self.population, (2, 1))

    def shape(self, space: SearchSpace) -> tuple[int, ...]:
        """Shape of a vector: a number for every site, or for every level of it."""
        return space.exists.shape if self.logits else space.exists.shape[:2]

    def algorithm(self, space: SearchSpace) -> Any:
        """The algorithm for vectors of this shape."""
        return algorithm_of(self.strategy, self.population, self.shape(space))

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Strategy:
        """A strategy around the start."""
        plain, algorithm = Incumbent.at(key, start, space), self.algorithm(space)
        shape = self.shape(space)
        if has_population(self.strategy):
            draw = jax.random.fold_in(key, POPULATION_DRAW)
            drawn = jax.random.normal(draw, (self.population, *shape)).at[0].set(0.0)
            begun = drawn, jnp.full(self.population, jnp.inf)
        else:
            begun = (jnp.zeros(shape),)  # type: ignore[assignment]
        inner = algorithm.init(jax.random.fold_in(key, BEGIN_DRAW), *begun, algorithm.default_params)
        # Of the types that later states have, so that nothing compiles twice.
        inner = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), inner)
        vectors, inner = algorithm.ask(plain.draw, inner, algorithm.default_params)
        return Strategy(**vars(plain), start=plain.levels, vectors=vectors, inner=inner)

    def ask(self, state: Strategy) -> Query:
        """The best so far, and the strategy's vectors as levels."""
        levels = jax.vmap(lambda vector: self.rounded(vector, state))(state.vectors)
        text = drawn_text(state.draw, state.space, self.score_tokens)
        return Query(jnp.concatenate([state.levels[None], levels]), text)

    def rounded(self, vector: jax.Array, state: Strategy) -> jax.Array:
        """The levels `[S, L]` within the budget that are nearest to a `vector [S, L]`, or whose logits,
        `vector [S, L, E]`, are largest."""
        exists = jnp.asarray(state.space.exists)
        level, last = jnp.arange(exists.shape[-1]), exists.shape[-1] - 1
        scaled = self.scale * jnp.nan_to_num(vector)
        # Beyond the bounds nothing changes, and clipping keeps a diverging strategy finite.
        if self.logits:
            cost = (level - state.start[..., None]) ** 2 - jnp.clip(scaled, -(last**2), last**2)
        else:
            cost = (level - jnp.clip(state.start + scaled, 0, last)[..., None]) ** 2
        return relaxed(cost, exists, state.space.budget, state.start)

    def tell(self, state: Strategy, candidates: jax.Array, fitness: jax.Array) -> Strategy:
        """Tell the strategy, and let it ask; keep the best.

        Both factorise matrices, and XLA's CPU client can block forever if two threads do that at once. So the
        strategy asks only after it was told.
        """
        algorithm = self.algorithm(state.space)
        values = jnp.asarray(fitness, jnp.float32)
        # Strategies weigh by fitness, which infinity would make NaN.
        worst = jnp.max(jnp.where(jnp.isfinite(values), values, -jnp.inf))
        known = jnp.where(jnp.isfinite(values), values, jnp.where(jnp.isfinite(worst), worst + 1, 0))[1:]
        draw = jax.random.fold_in(state.draw, TELL_DRAW)
        told = draw, state.vectors, known, state.inner, algorithm.default_params
        inner, _ = algorithm.tell(*told)
        after = state.after(candidates, values)
        vectors, inner = algorithm.ask(after.draw, inner, algorithm.default_params)
        return after.replace(vectors=vectors, inner=inner)


@functools.cache
def algorithm_of(name: str, population: int, shape: tuple[int, ...]) -> Any:
    """The algorithm `name` of evosax for vectors of this shape.

    Raises:
        UserError: evosax is not installed, has no such algorithm, or not for this population.
    """
    known = {name: kind for kinds in known_algorithms() for name, kind in kinds.items()}
    require(name in known, "--strategy", name, f"an algorithm of evosax: {', '.join(sorted(known))}")
    # It holds arrays, which must not belong to the trace that is the first to ask for it, nor to its devices.
    with jax.ensure_compile_time_eval(), jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        try:
            return known[name](population_size=population, solution=jnp.zeros(shape))
        except AssertionError as error:
            why = str(error) or "some need an even number, or more candidates"
            raise UserError(f"--population is {population}, but {name} does not allow it: {why}") from error


def has_population(name: str) -> bool:
    """Whether an algorithm of evosax begins with a population; others begin with a mean."""
    return name in known_algorithms()[1]


def known_algorithms() -> tuple[dict[str, Any], dict[str, Any]]:
    """The classes of evosax that have a distribution, and those that have a population, by name, without the
    `UNFIT`.

    Raises:
        UserError: evosax is not installed.
    """
    try:
        from evosax import algorithms
    except ImportError as error:
        raise UserError("--search evosax needs evosax: pip install 'tyr-jax[search]'") from error
    kinds = algorithms.distribution_based_algorithms, algorithms.population_based_algorithms
    with_distribution, with_population = (
        {name: known for name, known in kind.items() if name not in UNFIT} for kind in kinds
    )
    return with_distribution, with_population
