"""EvoPress's (1 + λ) evolution.

Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress: Accurate Dynamic Model Compression via Evolutionary
Search", ICML 2025. The first parent is the best of random candidates. Offspring differ from the parent by a
few level switches, whose number is the smaller of two draws. Selection has several stages, each on text of
its own, and the parent competes in the last. The paper's evolution (`tyr_jax.search.evolution`) differs in
three points: it starts from the given distribution, its stages share their text, and the parent is scored in
all of them.

Axis letters: `C` candidates, `P` candidates that remain, `S` kinds of site, `L` layers.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.draws import drawn_text, neighbours, scattered
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels


class Selection(Incumbent):
    """An incumbent, and the offspring that remain before the present stage, `pool [P, S, L]`."""

    pool: jax.Array


@dataclasses.dataclass(frozen=True)
class EvoPress(Improving):
    """(1 + λ) evolution: stage i scores the offspring that remain on `stage_tokens[i]` of new text, and keeps
    `survivors[i]`."""

    name: ClassVar[str] = "evopress"

    generations: int = 50
    """Generations of a round. The first has random candidates in place of offspring."""
    offspring: int = 64
    """Offspring of the one parent in a generation."""
    survivors: tuple[int, ...] = (8, 2, 1)
    """Offspring left after each stage; in the last, the parent competes."""
    stage_tokens: tuple[int, ...] = (2048, 8192, 32768)
    """Tokens on which each stage scores."""
    max_shifts: int = 3
    """Maximum number of sparsity shifts of an offspring; their number is the smaller of two random draws."""

    def check(self) -> None:
        """Refuse an invalid schedule."""
        super().check()
        same = len(self.survivors) == len(self.stage_tokens) >= 1
        require(same, "--survivors", self.survivors, "as many values as --stage-tokens has")
        falls = all(a >= b >= 1 for a, b in itertools.pairwise([self.offspring, *self.survivors]))
        require(falls and self.survivors[-1] == 1, "--survivors", self.survivors, "non-increasing, from at "
                f"most --offspring ({self.offspring}) down to 1")  # fmt: skip
        require(min(self.stage_tokens) >= 1, "--stage-tokens", self.stage_tokens, "at least 1 each")
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")

    def stages(self, space: SearchSpace) -> int:
        """Stages of the selection."""
        return len(self.survivors)

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Selection:
        """A search whose first parent is the start, unless a random candidate is better."""
        plain = Incumbent.at(key, start, space)
        return Selection(**vars(plain), pool=plain.levels[None])

    def ask(self, state: Selection) -> Query:
        """The offspring that remain, on new text; in the last stage, with the parent before them."""
        pool, stage = state.pool, state.stage
        if stage == 0:
            count, space = self.offspring, state.space
            first = scattered(state.draw, space, count, state.levels)
            later = neighbours(state.draw, state.levels, space, count, self.max_shifts)
            pool = jnp.where(state.generation == 0, first, later)
        if stage + 1 == len(self.survivors):
            pool = jnp.concatenate([state.levels[None], pool])
        text = drawn_text(jax.random.fold_in(state.draw, stage), state.space, self.stage_tokens[stage])
        return Query(pool, text)

    def tell(self, state: Selection, candidates: jax.Array, fitness: jax.Array) -> Selection:
        """The next stage, with the best offspring; or the next generation, with the best of all."""
        if state.stage + 1 == len(self.survivors):
            ended = state.after(candidates, fitness)
            return ended.replace(pool=ended.levels[None])
        left = jnp.argsort(jnp.asarray(fitness))[: self.survivors[state.stage]]
        pool = jnp.asarray(candidates, jnp.int32)[left]
        return state.replace(stage=state.stage + 1, pool=pool)
