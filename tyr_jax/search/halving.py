"""Successive halving: many candidates on little text, the better half on twice as much, and so on.

Karnin, Koren and Somekh, "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013; Jamieson and
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016. A
generation is one bracket: it begins with the best so far and its rivals, and its rungs share their text, so
that a rung scores only on what it adds. The best so far stays until the last rung, because a score on little
text can rank it too low.

Axis letters: `C` candidates, `P` candidates that remain, `S` kinds of site, `L` layers.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.search.contract import Asked, Query, SearchSpace
from tyr_jax.search.draws import drawn_order, neighbours
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels


class Bracket(Incumbent):
    """The best so far; the candidates that remain before the present stage, which is a rung, `pool
    [P, S, L]` with the best so far in front; and the `sums [P]` of their fitness over the sequences so
    far."""

    pool: jax.Array
    sums: jax.Array


class Racing(Improving):
    """Base of the searches whose generations are brackets: they say who the rivals are, and how much text
    candidates have been scored on after each rung."""

    @property
    def entrants(self) -> int:
        """Candidates that a bracket begins with."""
        raise NotImplementedError

    def rivals(self, state: Bracket) -> jax.Array:
        """The candidates `[C - 1, S, L]` that a bracket begins with beside the best so far."""
        raise NotImplementedError

    def ends(self, space: SearchSpace) -> list[int]:
        """Sequences that candidates have been scored on after each rung."""
        raise NotImplementedError

    def stages(self, space: SearchSpace) -> int:
        """Rungs."""
        return len(self.ends(space))

    def queries(self, space: SearchSpace) -> list[Asked]:
        """All queries of a round."""
        count, rungs = self.entrants, []
        for start, end in itertools.pairwise([0, *self.ends(space)]):
            rungs.append(Asked(count, end - start, self.generations))
            count = remaining(count)
        return rungs

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Bracket:
        """Before the first bracket."""
        plain = Incumbent.at(key, start, space)
        return Bracket(**vars(plain), pool=plain.levels[None], sums=jnp.zeros(1))

    def ask(self, state: Bracket) -> Query:
        """The candidates that remain, on the text that the rung adds."""
        start, end = ([0, *self.ends(state.space)][state.stage + at] for at in (0, 1))
        text = drawn_order(state.draw, state.space)[start:end]
        if state.stage:
            return Query(state.pool, text)
        return Query(jnp.concatenate([state.levels[None], self.rivals(state)]), text)

    def tell(self, state: Bracket, candidates: jax.Array, fitness: jax.Array) -> Bracket:
        """The next rung with the better half; or the next bracket around the best."""
        ends = [0, *self.ends(state.space)]
        added = ends[state.stage + 1] - ends[state.stage]
        sums = added * jnp.asarray(fitness, jnp.float32) + (state.sums if state.stage else 0)
        if state.stage + 1 == self.stages(state.space):
            ended = state.after(candidates, sums / ends[-1])
            return ended.replace(pool=ended.levels[None], sums=jnp.zeros(1))
        left = jnp.argsort(sums.at[0].set(-jnp.inf))[: remaining(len(sums))]
        pool = jnp.asarray(candidates, jnp.int32)[left]
        return state.replace(stage=state.stage + 1, pool=pool, sums=sums[left])


def remaining(count: int) -> int:
    """Of `count` candidates in a rung, those in the next: the better half, but two if there are two."""
    return min(count, max(2, count // 2))


@dataclasses.dataclass(frozen=True)
class Halving(Racing):
    """Brackets of successive halving around the best so far."""

    name: ClassVar[str] = "halving"

    generations: int = 20
    """Brackets of a round."""
    candidates: int = 128
    """Candidates that a bracket begins with."""
    rungs: int = 6
    """Rungs of a bracket; each halves the candidates and doubles the text."""
    score_tokens: int = 512
    """Tokens of the first rung."""
    max_shifts: int = 8
    """At most this many sparsity shifts lead from the best so far to a candidate: the number is the smaller
    of two draws."""

    def check(self) -> None:
        """Refuse a bracket that halves more often than it can."""
        super().check()
        require(self.candidates >= 1, "--candidates", self.candidates, "at least 1")
        most = self.candidates.bit_length()
        halves = f"from 1 to {most}, because each rung halves the {self.candidates} --candidates"
        require(1 <= self.rungs <= most, "--rungs", self.rungs, halves)
        require(self.max_shifts >= 1, "--max-shifts", self.max_shifts, "at least 1")

    def ends(self, space: SearchSpace) -> list[int]:
        """Sequences that candidates have been scored on after each rung. A rung that finds no more text ends
        the bracket."""
        first = max(1, self.score_tokens // space.length)
        wanted = [first * 2**rung for rung in range(self.rungs)]
        return sorted({min(count, space.sequences) for count in wanted})

    @property
    def entrants(self) -> int:
        """Candidates that a bracket begins with."""
        return self.candidates

    def rivals(self, state: Bracket) -> jax.Array:
        """Mutants of the best so far."""
        return neighbours(state.draw, state.levels, state.space, self.candidates - 1, self.max_shifts)
