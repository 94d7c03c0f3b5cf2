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
budget, scores it, shows progress, and resumes an interrupted search from the state of the last generation. So
all random draws must come from the key.

A search whose methods are JAX functions says `traceable = True`. They are then compiled, and a whole search
can run as one program on the device, hundreds of them side by side (`tyr_jax.search.device`).

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `E` levels, `B` sequences, `P` parts of a text.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.components import Component, broken
from tyr_jax.errors import require
from tyr_jax.space import Budget, LevelGrid, Levels, kept_units

Array = Any
"""An array: of numpy, or of JAX in a traceable search."""

State = Any
"""State of a search: a pytree of arrays."""

SLOPE_COST = 4
"""Candidate-tokens that a token of slopes counts as: a forward pass, the same once more in the backward pass,
and two passes of as many FLOPs for the derivatives."""


class Sites(NamedTuple):
    """What a supernet's fold tells about its sites: relative layer `error [S, L, E]`; `share [S, L]`, how
    much a site's dense output counts (in nats per token with `--metric fisher`, else as a share of the
    residual stream); and which levels exist, `exists [S, L, E]`."""

    error: np.ndarray
    share: np.ndarray
    exists: np.ndarray


class SearchSpace(flax.struct.PyTreeNode):
    """What a search may choose from.

    Units `kept [S, L, E]` at the levels of every site; which of these levels exist, `exists [S, L, E]`; the
    `budget` of every candidate; what the fold has measured at the `sites`; and the search text, `sequences`
    sequences of `length` tokens.
    """

    kept: np.ndarray
    exists: np.ndarray
    budget: Budget
    sites: Sites
    sequences: int = flax.struct.field(pytree_node=False)
    length: int = flax.struct.field(pytree_node=False)

    @classmethod
    def around(cls, grid: LevelGrid, start: Levels, sequences: int, length: int) -> Self:
        """The levels of `grid`, with as many units of each kind as `start [S, L]` has, and a search text of
        `sequences` sequences of `length` tokens. The error of a level is the share of units that it removes,
        and all sites count alike."""
        budget = Budget.of_units(grid.kept, kept_units(grid, start).sum(axis=-1))
        most = grid.kept.max(axis=-1, keepdims=True)
        sites = Sites(1 - grid.kept / np.maximum(most, 1), np.ones(most.shape[:-1]), grid.exists)
        return cls(grid.kept, grid.exists, budget, sites, sequences, length)


class Query(flax.struct.PyTreeNode):
    """Candidates to score, `[C, S, L]`, and the sequences `[s]` of the search text to score them on.

    Its `purpose` is one of three. Candidates that `compete` must meet the budget. Those that only `probe`, to
    learn what single changes cost, need not. With `slopes`, `tell` gets the slopes `[C, P, S, L, E]` of the
    objective from each candidate towards every level, on parts of the text, in place of its fitness.
    """

    candidates: Array
    sequences: Array
    purpose: Literal["compete", "probe", "slopes"] = flax.struct.field(pytree_node=False, default="compete")


class Asked(NamedTuple):
    """Queries of a round that are alike: how many `candidates` and `sequences` each has, how many `times` it
    is asked, and whether for `slopes`."""

    candidates: int
    sequences: int
    times: int
    slopes: bool = False


class Search(Component):
    """Base of all searches."""

    role: ClassVar[str] = "search"
    traceable: ClassVar[bool] = False
    """Whether `ask`, `tell` and `best` are JAX functions, of static shapes in every stage."""

    generations: int
    """Generations of a round."""

    def check(self) -> None:
        """Refuse a round without generations. A search that checks more calls this too."""
        require(self.generations >= 1, "--generations", self.generations, "at least 1 (or --rounds 0)")

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> State:
        """The state before the first step; `start [S, L]` are the levels to start from."""
        raise NotImplementedError

    def ask(self, state: State) -> Query:
        """What to score next."""
        raise NotImplementedError

    def tell(self, state: State, candidates: Array, fitness: Array) -> State:
        """The state after the `candidates [C, S, L]` that were asked for are scored.

        `fitness` is `[C]`, infinity where it is not finite. For a query of `slopes`, it holds the slopes
        `[C, P, S, L, E]` on P parts of the text.
        """
        raise NotImplementedError

    def best(self, state: State) -> Array:
        """The levels `[S, L]` that are the result if the search ends now."""
        raise NotImplementedError

    def stages(self, space: SearchSpace) -> int:
        """Pairs of `ask` and `tell` in a generation."""
        return 1

    def steps(self, space: SearchSpace) -> int:
        """Pairs of `ask` and `tell` in a round."""
        return self.generations * self.stages(space)

    def record(self, state: State) -> Mapping[str, float] | None:
        """What to record of the step that led to `state`, besides its best fitness; None if there is nothing,
        as between the stages of a generation. An interrupted search continues from a recorded step."""
        return {}

    def check_text(self, sequences: int, length: int) -> None:
        """Refuse a search text of `sequences` sequences of `length` tokens that is too short.

        Raises:
            UserError: names the flag and what is wanted.
        """

    def queries(self, space: SearchSpace) -> list[Asked]:
        """All queries of a round, to predict its cost. By default, all generations are as large as the
        first."""
        generations = self.steps(space) // self.stages(space)
        return [
            Asked(len(query.candidates), len(query.sequences), generations, query.purpose == "slopes")
            for query in self.first_queries(space)
        ]

    def first_queries(self, space: SearchSpace) -> list[Query]:
        """The queries of a first generation, as they would be if every candidate had a fitness of 0."""
        depth, levels = space.kept.shape[1:]
        state = self.init(jax.random.key(0), np.full((2, depth), levels // 2, np.int32), space)
        queries = []
        for stage in range(stages := self.stages(space)):
            query = checked(self, self.ask(state))
            queries.append(query)
            if stage + 1 < stages:
                shape = (1, *space.kept.shape) if query.purpose == "slopes" else ()
                answer = np.zeros((len(query.candidates), *shape))
                state = self.tell(state, query.candidates, answer)
        return queries

    def candidate_tokens(self, space: SearchSpace) -> int:
        """Candidate-tokens of a round."""
        return sum(
            asked.candidates
            * asked.sequences
            * asked.times
            * (SLOPE_COST if asked.slopes else 1)
            * space.length
            for asked in self.queries(space)
        )


def checked(search: Search, asked: Any) -> Query:
    """What a search asks for, if it is a query.

    Raises:
        UserError: it is something else; names the search and what that is.
    """
    if not isinstance(asked, Query):
        raise broken(search, f"asks for a {type(asked).__name__}: return a Query")
    return asked


@functools.partial(jax.jit, static_argnames="search")
def traced_ask(search: Search, state: State) -> Query:
    """`search.ask`, compiled once for each stage."""
    return search.ask(state)


@functools.partial(jax.jit, static_argnames="search")
def traced_tell(search: Search, state: State, candidates: jax.Array, answer: jax.Array) -> State:
    """`search.tell`, compiled once for each stage."""
    return search.tell(state, candidates, answer)


def told(query: Query, answer: Array) -> Array:
    """The answer to a query as a search gets it: a fitness that is not finite as infinity, such a slope as
    zero."""
    array = jnp if isinstance(answer, jax.Array) else np
    return array.where(array.isfinite(answer), answer, 0.0 if query.purpose == "slopes" else np.inf)
