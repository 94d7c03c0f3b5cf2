"""What holds for every search: the budget, its key, resume, no recompilation, and that it finds something."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.problems import Problem, stack_problems, synthetic_problem
from tyr_jax.run.resume import like_key, plain_key
from tyr_jax.search import contract, loop
from tyr_jax.search.contract import Query, Search
from tyr_jax.search.device import generation_tokens, search_many, search_on_device
from tyr_jax.search.evosax_adapter import Evosax, algorithm_of
from tyr_jax.search.registry import SEARCHES
from tyr_jax.space import Budget, values_at

SMALL: dict[str, dict[str, Any]] = {
    "evolution": {"offspring": 16, "survivors": (4, 1), "stage_tokens": (16, 64)},
    "blocks": {},
    "random": {"candidates": 16, "score_tokens": 32},
    "evopress": {"offspring": 16, "survivors": (4, 1), "stage_tokens": (16, 64), "max_shifts": 2},
    "genetic": {"parents": 4, "children": 12, "score_tokens": 32},
    "annealing": {"chains": 8, "score_tokens": 32},
    "exchange": {"swaps": 16, "score_tokens": 32},
    "distribution": {"samples": 16, "elite": 4, "score_tokens": 32},
    "halving": {"candidates": 16, "rungs": 3, "score_tokens": 16, "max_shifts": 3},
    "additive": {"probe_tokens": 16, "score_tokens": 32},
    "lagrangian": {"probe_tokens": 16, "score_tokens": 32},
    "relaxation": {"slope_tokens": 32, "score_tokens": 32},
    "descent": {"slope_tokens": 32, "score_tokens": 32, "estimate": False},
    "evosax": {"population": 16, "score_tokens": 32},
}
"""Options that make a generation small."""

WITHOUT_DRAWS = "blocks", "additive", "lagrangian", "descent", "relaxation"
"""Searches that draw nothing but their text."""

ALL = [pytest.param(cls(**{"generations": 4, **SMALL[name]}), id=name) for name, cls in SEARCHES.items()]  # type: ignore[arg-type]

PROBLEM = synthetic_problem(seed=3, depth=4, levels=5, noise=0.2, sequences=8, length=16, shifts=12)


def in_parameters(problem: Problem) -> Problem:
    """The problem with one budget of parameters for both kinds, in which a head costs 50 neurons."""
    prices = np.asarray(problem.space.kept) * np.array([50, 1])[:, None, None]
    limit = int(values_at(prices, np.asarray(problem.start)).sum())
    space = problem.space.replace(budget=Budget.of_prices(prices[None], [limit]))  # type: ignore[attr-defined]
    return problem.replace(space=space)  # type: ignore[attr-defined,no-any-return]


answered = jax.jit(lambda problem, query: problem.answer(query))


def steps_of(
    search: Search, problem: Problem = PROBLEM, seed: int = 0, answer: Any = answered
) -> tuple[np.ndarray, list[np.ndarray], list[Any]]:
    """(the levels found by the host's loop, all candidates that it scored, the state after each step)."""
    candidates, states = [], []

    def score(asked: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        candidates.append(asked)
        return np.asarray(answer(problem, Query(asked, sequences)))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answer(problem, Query(levels[None], sequences, "slopes")))[0]

    begun = loop.begin(search, jax.random.key(seed), np.asarray(problem.start), problem.space)
    found = loop.run(
        search, begun, problem.space, score, on_step=lambda _, state, __: states.append(state), slopes=slopes
    )
    return found, candidates, [begun, *states]


def test_every_search_is_in_the_suite() -> None:
    assert set(SMALL) == set(SEARCHES)


@pytest.mark.parametrize("search", ALL)
@pytest.mark.parametrize("budget", ["units", "parameters"])
def test_the_host_and_the_device_find_the_same_within_the_budget(search: Search, budget: str) -> None:
    problem = PROBLEM if budget == "units" else in_parameters(PROBLEM)
    search.check()
    found, candidates, _ = steps_of(search, problem)  # every candidate is checked by the loop
    assert problem.space.budget.allows(found)
    trace = jax.jit(search_on_device, static_argnums=0)(search, jax.random.key(0), problem)
    assert trace.levels.shape == (4, 2, 4)
    assert np.isfinite(trace.fitness).all()
    np.testing.assert_array_equal(trace.levels[-1], found)
    scored = sum(len(asked) for asked in candidates)
    assert scored <= sum(count * times for count, _, times in search.queries(problem.space))


@pytest.mark.parametrize("search", ALL)
def test_a_key_determines_the_search(search: Search) -> None:
    def asked(seed: int) -> list[Any]:
        return [array.tolist() for array in steps_of(search, seed=seed)[1]]

    assert asked(1) == asked(1)
    if search.name not in WITHOUT_DRAWS:
        assert asked(1) != asked(2)


@pytest.mark.parametrize("search", ALL)
def test_a_search_continues_from_a_saved_state_without_compiling_again(search: Search) -> None:
    whole, _, states = steps_of(search)
    stages = search.stages(PROBLEM.space)
    saved = states[2 * stages]
    assert search.record(saved) is not None
    structure = jax.tree.structure(states[0])
    assert jax.tree.structure(saved) == structure  # so that a saved state is loaded into a new one
    leaves = [like_key(np.array(plain_key(leaf)), leaf) for leaf in jax.tree.leaves(saved)]
    before = contract.traced_ask._cache_size(), contract.traced_tell._cache_size()

    def score(asked: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answered(PROBLEM, Query(asked, sequences)))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answered(PROBLEM, Query(levels[None], sequences, "slopes")))[0]

    resumed = jax.tree.unflatten(structure, leaves)
    again = loop.run(search, resumed, PROBLEM.space, score, done=2 * stages, slopes=slopes)
    np.testing.assert_array_equal(again, whole)
    assert (contract.traced_ask._cache_size(), contract.traced_tell._cache_size()) == before


@pytest.mark.parametrize("search", ALL)
def test_it_beats_random_search(search: Search) -> None:
    """At equal candidate-tokens, on landscapes without noise whose optimum is known to be zero."""
    small: dict[str, Any] = {"depth": 4, "levels": 5, "sequences": 8, "length": 16, "shifts": 12}
    problems = stack_problems([synthetic_problem(seed, **small) for seed in range(5, 9)])
    keys, tokens, values = jax.random.split(jax.random.key(1), 4), 40_000, {}
    for each in (search, SEARCHES["random"](**SMALL["random"])):
        generations = max(1, tokens // generation_tokens(each, PROBLEM.space))
        longer = dataclasses.replace(each, generations=generations)  # type: ignore[type-var]
        found = search_many(longer, keys, problems).levels[:, -1]
        ends = np.asarray(jax.vmap(lambda problem, levels: problem.held_out(levels))(problems, found))
        assert (ends >= -1e-5).all()
        values[each.name] = ends.mean()
    start = jax.vmap(lambda problem: problem.held_out(problem.start))(problems)
    if search.name not in ("random", "blocks"):  # which knows nothing of this landscape
        assert values[search.name] < values["random"]
        assert values[search.name] < 0.2 * np.mean(start)


@pytest.mark.parametrize("search", ALL)
def test_what_is_not_a_number_never_wins(search: Search) -> None:
    """Where the first layer's attention leaves its level, the objective is NaN: it never does."""

    def answer(problem: Problem, query: Query) -> jax.Array:
        answer = np.asarray(answered(problem, query))
        if query.purpose == "slopes":
            return np.full_like(answer, np.nan)  # type: ignore[return-value]
        moved = np.asarray(query.candidates)[:, 0, 0] != np.asarray(problem.start)[0, 0]
        return np.where(moved, np.nan, answer)  # type: ignore[return-value]

    found, _, _ = steps_of(search, answer=answer)
    assert found[0, 0] == PROBLEM.start[0, 0] or search.name == "blocks"  # it looks at no fitness


def test_an_algorithm_of_evosax_can_be_made_in_a_trace() -> None:
    algorithm_of.cache_clear()
    search = Evosax(generations=1, population=4, score_tokens=16)
    for seed in range(2):
        again = jax.jit(search_on_device, static_argnums=0)
        again(dataclasses.replace(search, scale=1.0 + seed), jax.random.key(0), PROBLEM)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e38])
def test_a_strategy_may_go_off_to_infinity(value: float) -> None:
    search = Evosax(generations=1, population=4, score_tokens=16)
    state = search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space)
    levels = search.rounded(jnp.full((2, 4), value).at[0, 1].set(-value), state)
    assert PROBLEM.space.budget.allows(np.asarray(levels))


@pytest.mark.parametrize("search", ALL)
def test_its_options_are_checked(search: Search) -> None:
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(search))  # type: ignore[arg-type]
    assert search.candidate_tokens(PROBLEM.space) > 0
    assert jnp.shape(search.best(search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space))) == (2, 4)
