"""The host's loop of a search: ask, score, tell, and check that the search keeps its contract.

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `B` sequences.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.components import broken, guarded
from tyr_jax.errors import UserError
from tyr_jax.search.contract import (
    Query,
    Search,
    SearchSpace,
    State,
    checked,
    told,
    traced_ask,
    traced_tell,
)
from tyr_jax.space import Candidates, Fitness, Levels, values_at

Scorer = Callable[[Candidates, np.ndarray], np.ndarray]
"""`(candidates [C, S, L], sequences [B]) -> objective [C]`, lower is better."""

SlopesFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(levels [S, L], sequences [B]) -> slopes [P, S, L, E]` of the objective towards every level, on parts of
the sequences."""


def no_slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """Slopes of an objective that has none.

    Raises:
        UserError: always.
    """
    raise UserError("this objective gives no slopes; choose a search that asks for none")


def begin_search(search: Search, key: jax.Array, start: Levels, space: SearchSpace) -> State:
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
    slopes: SlopesFunction = no_slopes,
) -> Levels:
    """Run the steps that a search still lacks.

    Args:
        search: the algorithm.
        state: from `begin`, or a saved one to continue from.
        space: what it chooses from.
        score: the objective of candidates on given sequences of the search text.
        done: steps that led to `state`.
        on_step: called after each step with its number, the state after it, and the answer: the fitness
            `[C]`, or slopes `[C, P, S, L, E]`.
        slopes: the objective's slopes, for a search that asks for them.

    Returns:
        The levels `[S, L]` found.

    Raises:
        UserError: the search breaks its contract.
    """
    steps = checked_steps(search, space)
    for step in range(done, steps):
        with guarded(search, "ask"):
            asked = traced_ask(search, state) if search.traceable else search.ask(state)
        query = checked_query(search, checked(search, asked), space)
        answer = answer_to(query, score, slopes)
        with guarded(search, "tell"):
            if search.traceable:
                state = traced_tell(search, state, jnp.asarray(query.candidates), jnp.asarray(answer))
            else:
                state = search.tell(state, query.candidates, answer)
        on_step(step + 1, checked_state(search, state), answer)
    with guarded(search, "best"):
        levels = np.asarray(search.best(state))
    check_candidates(search, levels[None], space, "best gives")
    return levels.astype(np.int32)


def checked_steps(search: Search, space: SearchSpace) -> int:
    """Steps of a round.

    Raises:
        UserError: the search gives something else; names it and what that is.
    """
    with guarded(search, "steps"):
        steps, stages = search.steps(space), search.stages(space)
    for name, count, least in (("steps", steps, 0), ("stages", stages, 1)):
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < least:
            raise broken(search, f"gives {count!r} for {name}: it must be a whole number of at least {least}")
    return steps


def answer_to(query: Query, score: Scorer, slopes: SlopesFunction) -> np.ndarray:
    """The answer to a query: the fitness `[C]`, or slopes `[C, P, S, L, E]`. None of it is NaN."""
    if query.purpose == "slopes":
        of_each = [slopes(levels, query.sequences) for levels in query.candidates]
        return told(query, np.asarray(np.stack(of_each), float))
    return told(query, np.asarray(score(query.candidates, query.sequences), float))


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
    """`query`, checked: candidates that exist, within the budget unless they only probe, and sequences that
    exist.

    Raises:
        UserError: it is something else; names the search and what is wrong.
    """
    candidates, sequences = np.asarray(query.candidates), np.asarray(query.sequences)
    check_candidates(search, candidates, space, "asks for", query.purpose == "compete")
    numbers = sequences.ndim == 1 and sequences.size and np.issubdtype(sequences.dtype, np.integer)
    if not numbers or sequences.min() < 0 or sequences.max() >= space.sequences:
        raise broken(
            search,
            f"asks for sequences {sequences.tolist()}: they must be numbers from 0 to {space.sequences - 1}, "
            "at least one",
        )
    return query.replace(candidates=candidates.astype(np.int32), sequences=sequences)


def checked_record(search: Search, record: Mapping[str, float]) -> dict[str, float]:
    """What a search records of a step, checked: numbers by name.

    Raises:
        UserError: it is something else; names the search and what that is.
    """
    if not isinstance(record, Mapping):
        raise broken(search, f"records a {type(record).__name__}: it must be a mapping, or None")
    for name, value in record.items():
        kinds, wanted = ("iu", "whole number of at least 0") if name == "generation" else ("iuf", "number")
        right = isinstance(name, str) and not np.ndim(value) and np.asarray(value).dtype.kind in kinds
        if not right or (name == "generation" and value < 0):
            raise broken(search, f"records a {type(value).__name__} as {name!r}: it must be a {wanted}")
    return {name: np.asarray(value).item() for name, value in record.items()}


def check_candidates(
    search: Search, candidates: Candidates, space: SearchSpace, verb: str, budgeted: bool = True
) -> None:
    """Check that candidates are levels that exist, and, if `budgeted`, that they meet the budget.

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
    if budgeted and len(wrong):
        raise broken(
            search,
            f"{verb} a candidate that costs {space.budget.spent(wrong[0]).tolist()}, but the budget is "
            f"{space.budget.limit.tolist()}: move levels between sites, as `sparsity_shift` does",
        )
