"""What a search is: `init`, `ask` and `tell` over an explicit state, as in evosax and mctx.

A search of your own is a frozen dataclass. `ask` returns candidates, and the sequences of the search text to
score them on (so that candidates can be dropped early). `tell` gets the fitness of all of them. Lower is
better, and a fitness that is not finite arrives as infinity::

    @dataclasses.dataclass(frozen=True)
    class RandomSearch(Search):
        generations: int = 20

        def init(self, key, start, space): ...
        def ask(self, state): ...
        def tell(self, state, candidates, fitness): ...
        def best(self, state): ...

`--search my_module:RandomSearch --generations 50` then searches by it. The caller checks every candidate's
budget, scores it, shows progress, and resumes an interrupted search from the state of the last step. So all
random draws must come from the key.

Axis letters: `C` candidates, `L` layers, `E` levels, `S` sequences.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from tyr_jax.components import Component
from tyr_jax.space import Budget, Candidates, Fitness, LevelGrid, Levels, kept_units

State = Any
"""State of a search: a pytree of arrays."""


class SearchSpace(NamedTuple):
    """What a search may choose from.

    Units `kept [2, L, E]` at the levels of every site; which of these levels exist, `exists [2, L, E]`; the
    `budget` of every candidate; and the search text, `sequences` sequences of `length` tokens.
    """

    kept: np.ndarray
    exists: np.ndarray
    budget: Budget
    sequences: int
    length: int

    @classmethod
    def around(cls, grid: LevelGrid, start: Levels, sequences: int, length: int) -> Self:
        """The levels of `grid`, with as many units of each kind as `start [2, L]` has, and a search text of
        `sequences` sequences of `length` tokens."""
        budget = Budget.of_units(grid.kept, kept_units(grid, start).sum(axis=-1))
        return cls(grid.kept, grid.exists, budget, sequences, length)


class Query(NamedTuple):
    """Candidates to score, `[C, 2, L]`, and the sequences `[S]` of the search text to score them on."""

    candidates: Candidates
    sequences: np.ndarray


class Search(Component):
    """Base of all searches."""

    role: ClassVar[str] = "search"

    generations: int
    """Steps of a round, unless `steps` says otherwise."""

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> State:
        """The state before the first step; `start [2, L]` are the levels to start from."""
        raise NotImplementedError

    def ask(self, state: State) -> Query:
        """What to score next."""
        raise NotImplementedError

    def tell(self, state: State, candidates: Candidates, fitness: Fitness) -> State:
        """The state once the candidates asked for, `candidates [C, 2, L]`, have their `fitness [C]`."""
        raise NotImplementedError

    def best(self, state: State) -> Levels:
        """The best levels `[2, L]` found so far."""
        raise NotImplementedError

    def steps(self, space: SearchSpace) -> int:
        """Pairs of `ask` and `tell` in a round."""
        return self.generations

    def record(self, state: State) -> Mapping[str, float] | None:
        """What to record of the step that led to `state`, besides its best fitness; None if there is nothing,
        as between the stages of a generation. An interrupted search continues from a recorded step."""
        return {}

    def check_text(self, sequences: int, length: int) -> None:
        """Refuse a search text of `sequences` sequences of `length` tokens that is too short.

        Raises:
            UserError: names the flag and what is wanted.
        """

    def queries(self, space: SearchSpace) -> list[tuple[int, int, int]]:
        """(candidates, sequences, times) of all queries of a round, to predict its cost. By default, all are
        as large as the first."""
        levels = space.kept.shape[-1]
        centre = np.full(space.kept.shape[:2], levels // 2, np.int32)
        candidates, sequences = self.ask(self.init(jax.random.key(0), centre, space))
        return [(len(candidates), len(sequences), self.steps(space))]

    def candidate_tokens(self, space: SearchSpace) -> int:
        """Candidate-tokens of a round."""
        return sum(
            candidates * sequences * times * space.length
            for candidates, sequences, times in self.queries(space)
        )
