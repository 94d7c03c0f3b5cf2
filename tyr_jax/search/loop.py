"""The host's loop of a search: ask, score, tell, and check that the search keeps its contract.

Axis letters: `C` candidates, `L` layers, `S` sequences.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from tyr_jax.components import broken, guarded
from tyr_jax.search.contract import Query, Search, SearchSpace, State
from tyr_jax.space import Candidates, Fitness, Levels, values_at

Scorer = Callable[[Candidates, np.ndarray], np.ndarray]
"""`(candidates [C, 2, L], sequences [S]) -> objective [C]`, lower is better."""


def begin(search: Search, key: jax.Array, start: Levels, space: SearchSpace) -> State:
    """The state of a search before its first step.

    Raises:
        UserError: the search breaks its contract.
    """
    with guarded(search, "init"):
        return checked_state(search, search.init(key, start, space))


def run(
    search: Search,
    state: State,
    space: SearchSpace,
    score: Scorer,
    done: int = 0,
    on_step: Callable[[int, State, Fitness], None] = lambda step, state, fitness: None,
) -> Levels:
    """Run the steps that a search still lacks.

    Args:
        search: the algorithm.
        state: from `begin`, or a saved one to continue from.
        space: what it chooses from.
        score: the objective of candidates on given sequences of the search text.
        done: steps that led to `state`.
        on_step: called after each step with its number, the state after it, and the fitness `[C]`.

    Returns:
        The levels `[2, L]` found.

    Raises:
        UserError: the search breaks its contract.
    """
    with guarded(search, "steps"):
        steps = search.steps(space)
    for step in range(done, steps):
        with guarded(search, "ask"):
            query = checked_query(search, search.ask(state), space)
        fitness = np.asarray(score(query.candidates, query.sequences), float)
        fitness = np.where(np.isfinite(fitness), fitness, np.inf)
        with guarded(search, "tell"):
            state = checked_state(search, search.tell(state, query.candidates, fitness))
        on_step(step + 1, state, fitness)
    with guarded(search, "best"):
        levels = np.asarray(search.best(state))
    check_candidates(search, levels[None], space, "best gives")
    return levels.astype(np.int32)


def checked_state(search: Search, state: State) -> State:
    """`state`, checked to be a pytree of arrays.

    Raises:
        UserError: it is not; names the search and what the state holds.
    """
    for leaf in jax.tree.leaves(state):
        if not (isinstance(leaf, jax.Array) or np.asarray(leaf).dtype.kind in "biuf"):
            raise broken(
                search, f"has a state that holds a {type(leaf).__name__}: it must be a pytree of arrays"
            )
    return state


def checked_query(search: Search, query: Query, space: SearchSpace) -> Query:
    """`query`, checked: candidates within the budget, and sequences that exist.

    Raises:
        UserError: it is something else; names the search and what is wrong.
    """
    if not (isinstance(query, tuple) and len(query) == 2):
        raise broken(search, "does not ask for a pair of candidates and sequences: return a Query")
    candidates, sequences = (np.asarray(part) for part in query)
    check_candidates(search, candidates, space, "asks for")
    numbers = sequences.ndim == 1 and sequences.size and np.issubdtype(sequences.dtype, np.integer)
    if not numbers or sequences.min() < 0 or sequences.max() >= space.sequences:
        raise broken(
            search,
            f"asks for sequences {sequences.tolist()}: they must be numbers from 0 to {space.sequences - 1}, "
            "at least one",
        )
    return Query(candidates.astype(np.int32), sequences)


def checked_record(search: Search, record: Mapping[str, float]) -> dict[str, float]:
    """What a search records of a step, checked: numbers by name.

    Raises:
        UserError: it is something else; names the search and what that is.
    """
    if not isinstance(record, Mapping):
        raise broken(search, f"records a {type(record).__name__}: it must be a mapping, or None")
    for name, value in record.items():
        kinds, wanted = ("iu", "whole number from 0 on") if name == "generation" else ("iuf", "number")
        right = isinstance(name, str) and not np.ndim(value) and np.asarray(value).dtype.kind in kinds
        if not right or (name == "generation" and value < 0):
            raise broken(search, f"records a {type(value).__name__} as {name!r}: it must be a {wanted}")
    return {name: np.asarray(value).item() for name, value in record.items()}


def check_candidates(search: Search, candidates: Candidates, space: SearchSpace, verb: str) -> None:
    """Check that candidates are levels that exist, and keep the budget.

    Raises:
        UserError: they are not; names the search, and what is wrong with the first such candidate.
    """
    kinds, depth, levels = space.kept.shape
    right = candidates.ndim == 3 and candidates.shape[1:] == (kinds, depth) and len(candidates)
    if not right or not np.issubdtype(candidates.dtype, np.integer):
        raise broken(
            search,
            f"{verb} candidates of shape {candidates.shape} and type {candidates.dtype}: they must be "
            f"integers of shape (C, {kinds}, {depth}), C at least 1",
        )
    inside = (candidates >= 0) & (candidates < levels)
    there = inside & values_at(space.exists, np.clip(candidates, 0, levels - 1))
    if not there.all():
        _, kind, layer = np.argwhere(~there)[0]
        raise broken(
            search,
            f"{verb} level {candidates[~there][0]} at site {kind} of layer {layer}, which does not exist: "
            "look at the space's `exists`",
        )
    wrong = candidates[~space.budget.allows(candidates)]
    if len(wrong):
        raise broken(
            search,
            f"{verb} a candidate that costs {space.budget.spent(wrong[0]).tolist()}, but the budget is "
            f"{space.budget.limit.tolist()}: move levels between sites, as `sparsity_shift` does",
        )
