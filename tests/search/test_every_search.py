"""What holds for every search: the budget, its key, resume, no recompilation, and that it finds something."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare_searches import generation_tokens
from speeds import only_quick

from tyr_jax.errors import UserError
from tyr_jax.problems import Problem, stack_problems, synthetic_problem
from tyr_jax.search import contract, loop
from tyr_jax.search.contract import Query, Search
from tyr_jax.search.device import search_many, search_on_device
from tyr_jax.search.evosax_adapter import Evosax, algorithm_of, known_algorithms
from tyr_jax.search.exchange import Exchange
from tyr_jax.search.lagrangian import connected
from tyr_jax.search.registry import SEARCHES
from tyr_jax.space import Budget, values_at
from tyr_jax.workspace import pytrees

pytestmark = pytest.mark.usefixtures("forget_often")

SMALL: dict[str, dict[str, Any]] = {
    "evolution": {"offspring": 16, "survivors": (4, 1), "stage_tokens": (16, 64)},
    "blocks": {},
    "estimate": {"score_tokens": 32},
    "random": {"candidates": 16, "score_tokens": 32},
    "evopress": {"offspring": 16, "survivors": (4, 1), "stage_tokens": (16, 64), "max_shifts": 2},
    "genetic": {"parents": 4, "children": 12, "score_tokens": 32},
    "annealing": {"chains": 8, "score_tokens": 32},
    "exchange": {"swaps": 16, "score_tokens": 32},
    "distribution": {"samples": 16, "elite": 4, "score_tokens": 32},
    "halving": {"candidates": 16, "rungs": 3, "score_tokens": 16, "max_shifts": 3},
    "additive": {"probe_tokens": 16, "score_tokens": 32},
    "puzzle": {"probe_tokens": 16, "score_tokens": 32},
    "lagrangian": {"probe_tokens": 16, "score_tokens": 32},
    "relaxation": {"slope_tokens": 32, "score_tokens": 32, "rate": 1.0},
    "descent": {"tokens": 32},
    "evosax": {"population": 16, "score_tokens": 32},
}
"""Options that make a generation small."""

WITHOUT_DRAWS = "blocks", "estimate", "additive", "puzzle", "lagrangian", "descent", "relaxation"
"""Searches that draw nothing but their text."""

MEASURED = "blocks", "estimate"
"""Searches that go by what the fold has measured."""

ALL = [pytest.param(cls(**{"generations": 4, **SMALL[name]}), id=name) for name, cls in SEARCHES.items()]  # type: ignore[arg-type]
LOGITS = Evosax(generations=4, population=16, scale=3.0, logits=True, score_tokens=32)
ALL.append(pytest.param(LOGITS, id="evosax --logits"))
ALL = only_quick(ALL, "evolution", "descent")

PROBLEM = synthetic_problem(seed=3, depth=4, levels=5, noise=0.2, sequences=8, length=16, shifts=12)


def in_parameters(problem: Problem) -> Problem:
    """The problem with one budget of parameters for both kinds, in which a head costs 50 neurons."""
    prices = np.asarray(problem.space.kept) * np.array([50, 1])[:, None, None]
    limit = int(values_at(prices, np.asarray(problem.start)).sum())
    space = problem.space.replace(budget=Budget.of_prices(prices[None], [limit]))
    return problem.replace(space=space)  # type: ignore[attr-defined,no-any-return]


def in_several(problem: Problem) -> Problem:
    """The problem with a budget of parameters and one of heads, of which each binds somewhere."""
    priced = in_parameters(problem).space
    heads = np.asarray(problem.space.kept) * np.array([1, 0])[:, None, None]
    prices = np.stack([np.asarray(priced.budget.price)[0], heads])
    limits = [int(np.asarray(priced.budget.limit)[0]), int(values_at(heads, np.asarray(problem.start)).sum())]
    space = priced.replace(budget=Budget.of_prices(prices, limits))
    return problem.replace(space=space)  # type: ignore[attr-defined,no-any-return]


BUDGETS = {"units": lambda problem: problem, "parameters": in_parameters, "several": in_several}


answered = jax.jit(lambda problem, query: problem.answer(query))


def steps_of(
    search: Search,
    problem: Problem = PROBLEM,
    seed: int = 0,
    answer: Any = answered,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, list[np.ndarray], list[Any]]:
    """(the levels found by the host's loop, all candidates that it scored, the state after each step)."""
    candidates, states = [], []

    def score(asked: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        candidates.append(asked)
        return np.asarray(answer(problem, Query(asked, sequences)))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answer(problem, Query(levels[None], sequences, "slopes")))[0]

    def keep(_: int, state: Any, __: np.ndarray) -> None:
        states.append(state)
        on_step()

    begun = loop.begin_search(search, jax.random.key(seed), np.asarray(problem.start), problem.space)
    found = loop.run(search, begun, problem.space, score, on_step=keep, slopes=slopes)
    return found, candidates, [begun, *states]


def test_every_search_is_in_the_suite() -> None:
    assert set(SMALL) == set(SEARCHES)


@pytest.mark.parametrize("search", ALL)
@pytest.mark.parametrize(
    "budget",
    [
        pytest.param("units", marks=pytest.mark.long),
        "several",
        pytest.param("parameters", marks=pytest.mark.long),
    ],
)
def test_the_host_and_the_device_find_the_same_within_the_budget(search: Search, budget: str) -> None:
    problem = BUDGETS[budget](PROBLEM)
    search.check()
    found, candidates, _ = steps_of(search, problem)  # every candidate is checked by the loop
    assert problem.space.budget.allows(found)
    trace = jax.jit(search_on_device, static_argnums=0)(search, jax.random.key(0), problem)
    assert trace.levels.shape == (4, 2, 4)
    assert np.isfinite(trace.fitness).all()
    np.testing.assert_array_equal(trace.levels[-1], found)
    scored = sum(len(asked) for asked in candidates)
    assert scored <= sum(asked.candidates * asked.times for asked in search.queries(problem.space))


@pytest.mark.parametrize("search", ALL)
def test_a_key_determines_the_search(search: Search) -> None:
    def asked(seed: int) -> list[Any]:
        return [array.tolist() for array in steps_of(search, seed=seed)[1]]

    assert asked(1) == asked(1)
    if search.name not in WITHOUT_DRAWS:
        assert asked(1) != asked(2)


COMPILED: list[str] = []
"""A name for every time that `ask` or `tell` was compiled. (JAX's own count of cached programs also has those
that differ only in where their arguments come from.)"""


def note_compilation(event: str, _: float, **about: str | int) -> None:
    name = str(about.get("fun_name"))
    if event.endswith("backend_compile_duration") and "traced_" in name:
        COMPILED.append(name)


jax.monitoring.register_event_duration_secs_listener(note_compilation)


@pytest.mark.parametrize("search", ALL)
def test_a_search_continues_from_a_saved_state_without_compiling_again(search: Search) -> None:
    programs: list[int] = []
    contract.traced_ask.clear_cache()
    contract.traced_tell.clear_cache()
    whole, _, states = steps_of(search, on_step=lambda: programs.append(len(COMPILED)))
    stages = search.stages(PROBLEM.space)
    assert programs[-1] == programs[stages - 1]  # nothing is compiled after the first generation
    saved = states[2 * stages]
    assert search.record(saved) is not None
    # A saved state is loaded into a new one.
    assert jax.tree.structure(saved) == jax.tree.structure(states[0])

    def score(asked: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answered(PROBLEM, Query(asked, sequences)))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answered(PROBLEM, Query(levels[None], sequences, "slopes")))[0]

    resumed = pytrees.decode(*pytrees.encode(saved), like=states[0])
    again = loop.run(search, resumed, PROBLEM.space, score, done=2 * stages, slopes=slopes)
    np.testing.assert_array_equal(again, whole)
    assert len(COMPILED) == programs[-1] > 0


@pytest.mark.long
@pytest.mark.parametrize("search", ALL)
def test_it_beats_random_search(search: Search) -> None:
    """At equal candidate-tokens, on landscapes without noise whose optimum is known to be zero. By medians:
    machines round differently, and a search that ends far from an optimum on one would decide a mean."""
    small: dict[str, Any] = {"depth": 4, "levels": 5, "sequences": 8, "length": 16, "shifts": 12}
    problems = stack_problems([synthetic_problem(seed, **small) for seed in range(5, 13)])
    keys, tokens, values = jax.random.split(jax.random.key(1), 8), 40_000, {}
    for each in (search, SEARCHES["random"](**SMALL["random"])):
        generations = max(1, tokens // generation_tokens(each, PROBLEM.space))
        longer = dataclasses.replace(each, generations=generations)  # type: ignore[type-var]
        found = search_many(longer, keys, problems).levels[:, -1]
        ends = np.asarray(jax.vmap(lambda problem, levels: problem.held_out(levels))(problems, found))
        assert (ends >= -1e-5).all()
        values[each.name] = np.median(ends)
    start = jax.vmap(lambda problem: problem.held_out(problem.start))(problems)
    if search.name not in ("random", *MEASURED):  # which know nothing of these landscapes
        assert values[search.name] < values["random"]
        assert values[search.name] < 0.2 * np.median(start)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_what_pruning_has_measured_leads_to_the_optimum(name: str) -> None:
    """On a landscape that the fold has measured exactly: every unit of a layer costs as much as any other.
    Brute force finds its optimum, which random search does not."""
    space, start = PROBLEM.space, np.asarray(PROBLEM.start)
    influence = np.array([3.0, 1.0, 4.0, 2.0])
    removed = 1 - np.asarray(space.kept) / np.max(space.kept, axis=(1, 2), keepdims=True)
    costs = (influence[:, None] * removed).astype(np.float32)
    sites = space.sites._replace(error=removed, share=np.tile(influence, (2, 1)))
    problem = PROBLEM.replace(
        space=space.replace(sites=sites),
        alone=jnp.broadcast_to(costs, PROBLEM.alone.shape),
        pairs=jnp.zeros_like(PROBLEM.pairs),
    )
    every = np.array(list(itertools.product(range(5), repeat=4)))
    optimum = 0.0
    for kind, of_kind in enumerate(costs):
        levels = np.tile(start, (len(every), 1, 1))
        levels[:, kind] = every
        optimum += values_at(of_kind, every)[space.budget.allows(levels)].sum(axis=-1).min()

    def end(search: Search) -> float:
        return float(values_at(costs, steps_of(search, problem)[0]).sum())

    assert end(SEARCHES[name](**SMALL[name])) == pytest.approx(optimum)
    assert end(SEARCHES["random"](generations=4, **SMALL["random"])) > optimum + 0.1


@pytest.mark.parametrize("search", ALL)
def test_what_is_not_a_number_never_wins(search: Search) -> None:
    """Where the first layer's attention leaves its level, the objective is NaN. Every search tries that, as
    slopes and level errors speak for it, and none ends there."""
    start = np.asarray(PROBLEM.start)
    share = np.ones(start.shape)
    share[0, 0] = 0.0
    tempting = PROBLEM.space.replace(sites=PROBLEM.space.sites._replace(share=share))

    def answer(problem: Problem, query: Query) -> jax.Array:
        answer = np.array(answered(problem, query))
        if query.purpose == "slopes":
            answer[..., 0, 0, :] = 10.0 * (np.arange(5) - start[0, 0])
            return answer  # type: ignore[return-value]
        moved = np.asarray(query.candidates)[:, 0, 0] != start[0, 0]
        return np.where(moved, np.nan, answer)  # type: ignore[return-value]

    problem = PROBLEM.replace(space=tempting)
    found, candidates, _ = steps_of(search, problem, answer=answer)
    assert any((asked[:, 0, 0] != start[0, 0]).any() for asked in candidates)
    assert found[0, 0] == start[0, 0]


@pytest.mark.slow
def test_an_algorithm_of_evosax_can_be_made_in_a_trace() -> None:
    algorithm_of.cache_clear()
    search = Evosax(generations=1, population=4, score_tokens=16)
    for seed in range(2):
        again = jax.jit(search_on_device, static_argnums=0)
        again(dataclasses.replace(search, scale=1.0 + seed), jax.random.key(0), PROBLEM)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted({name for kind in known_algorithms() for name in kind}))
def test_every_algorithm_of_evosax_that_is_named_fits(strategy: str) -> None:
    """A generation of it can be traced: its state keeps its shapes and types."""
    search = Evosax(generations=1, population=16, score_tokens=16, strategy=strategy)
    search.check()

    def first(key: jax.Array) -> tuple[Any, Any]:
        begun = search.init(key, np.asarray(PROBLEM.start), PROBLEM.space)
        return begun, search.tell(begun, search.ask(begun).candidates, jnp.zeros(17))

    begun, after = jax.eval_shape(first, jax.random.key(0))
    same = jax.tree.map(lambda one, other: (one.shape, one.dtype) == (other.shape, other.dtype), begun, after)
    assert jax.tree.all(same)


@pytest.mark.slow
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e38])
def test_a_strategy_may_go_off_to_infinity(value: float, logits: bool) -> None:
    search = Evosax(generations=1, population=4, score_tokens=16, logits=logits)
    state = search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space)
    levels = search.rounded(jnp.full(search.shape(PROBLEM.space), value).at[0, 1].set(-value), state)
    assert PROBLEM.space.budget.allows(np.asarray(levels))


@pytest.mark.slow
def test_logits_say_which_level_a_site_takes() -> None:
    """A vector of zeros is the start. A logit takes effect where it outweighs the distance in levels."""
    search = Evosax(generations=1, population=4, score_tokens=16, logits=True, scale=2.0)
    state = search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space)
    start = np.asarray(PROBLEM.start)
    nothing = jnp.zeros(PROBLEM.space.exists.shape)
    np.testing.assert_array_equal(search.rounded(nothing, state), start)
    moved = start.copy()
    moved[1, :2] += np.array([1, -1])
    for logit, expected in ((0.4, start), (0.6, moved)):
        wanted = nothing.at[1, 0, moved[1, 0]].set(logit).at[1, 1, moved[1, 1]].set(logit)
        np.testing.assert_array_equal(search.rounded(wanted, state), expected)


@pytest.mark.parametrize("search", ALL)
def test_a_round_needs_generations(search: Search) -> None:
    search.check()
    for generations in (0, -3):
        with pytest.raises(UserError, match=f"--generations is {generations}, but must be at least 1"):
            dataclasses.replace(search, generations=generations).check()  # type: ignore[type-var]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("evolution", {"max_shifts": 0}, "--max-shifts is 0"),
    ("random", {"candidates": 0}, "--candidates is 0"),
    ("evopress", {"survivors": (4, 2)}, "--survivors is"),
    ("genetic", {"crossed": 1.5}, "--crossed is 1.5"),
    ("annealing", {"cooled": 0.0}, "--cooled is 0.0"),
    ("exchange", {"swaps": 0}, "--swaps is 0"),
    ("distribution", {"elite": 100}, "--elite is 100"),
    ("halving", {"rungs": 20}, "--rungs is 20"),
    ("additive", {"reach": 0}, "--reach is 0"),
    ("relaxation", {"rate": 0.0}, "--rate is 0.0"),
    ("descent", {"reach": 0}, "--reach is 0"),
    ("descent", {"tokens": 0}, "--tokens is 0"),
    ("evosax", {"strategy": "CMA"}, "--strategy is CMA, but must be an algorithm of evosax"),
    ("evosax", {"strategy": "SV_CMA_ES"}, "--strategy is SV_CMA_ES, but must be an algorithm of evosax"),
    ("evosax", {"strategy": "Open_ES", "population": 5}, "--population is 5, but Open_ES does not allow it"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSED, ids=lambda x: str(x)[:30])
def test_options_out_of_range(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SEARCHES[name](**options).check()


def test_blocks_go_whole_in_the_order_of_their_influence() -> None:
    """Where FFNs cost four times as much as attention, both sites of a layer still go together."""
    problem = synthetic_problem(seed=0, depth=4, levels=5, sequences=2, length=16)
    exists = np.ones((2, 4, 5), bool)
    price = np.arange(5) * np.array([100, 400])[:, None, None] * np.ones((2, 4, 1), int)
    share = np.array([[3.0, 1.0, 2.0, 4.0], [0.3, 0.1, 0.2, 0.4]])
    space = problem.space.replace(
        exists=exists,
        budget=Budget.of_prices(price[None], [price[..., -1].sum() // 2]),
        sites=problem.space.sites._replace(share=share, exists=exists),
    )
    search = SEARCHES["blocks"]()
    levels = search.best(search.init(jax.random.key(0), problem.start, space))
    np.testing.assert_array_equal(levels, [[4, 0, 0, 4], [4, 0, 0, 4]])


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["units", "parameters"])
def test_exchange_tries_only_what_may_be_done(budget: str) -> None:
    problem = PROBLEM if budget == "units" else in_parameters(PROBLEM)
    search = Exchange(generations=1, swaps=10**4, score_tokens=16)
    start = np.asarray(problem.start)
    found = {
        candidate.tobytes()
        for candidate in np.asarray(
            search.ask(search.init(jax.random.key(0), start, problem.space)).candidates
        )
    }
    allowed = {start.astype(np.int32).tobytes()}
    for up in np.ndindex(start.shape):
        for down in np.ndindex(start.shape):
            moved = start.astype(np.int32)
            moved[up] += 1
            moved[down] -= 1
            inside = np.clip(moved, 0, PROBLEM.space.exists.shape[-1] - 1)
            there = np.take_along_axis(np.asarray(PROBLEM.space.exists), inside[..., None], -1)
            if (inside == moved).all() and there.all() and problem.space.budget.allows(moved):
                allowed.add(moved.tobytes())
    assert found == allowed
    assert len(found) > 8


@pytest.mark.slow
def test_a_bracket_never_loses_the_best_so_far() -> None:
    """On the first text, it looks worst of all; on the whole text, it is best."""
    search = SEARCHES["halving"](generations=1, candidates=8, rungs=4, score_tokens=16, max_shifts=3)
    state = search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space)
    for stage in range(search.stages(PROBLEM.space)):
        asked = search.ask(state)
        np.testing.assert_array_equal(asked.candidates[0], PROBLEM.start)
        fitness = np.arange(1.0, 1 + len(asked.candidates))
        fitness[0] = 100.0 if stage == 0 else -100.0
        state = search.tell(state, asked.candidates, fitness)
    np.testing.assert_array_equal(search.best(state), PROBLEM.start)


def test_what_cannot_be_probed_bars_what_lies_behind_it() -> None:
    known = jnp.array([[True, False, True, True, True, False, True]])[None]
    for level, expected in ((3, [0, 0, 1, 1, 1, 0, 0]), (0, [1, 0, 0, 0, 0, 0, 0]), (6, [0] * 6 + [1])):
        found = connected(known, jnp.array([[level]]))
        assert found[0, 0].astype(int).tolist() == expected


@pytest.mark.parametrize("search", ALL)
def test_defaults_and_shapes(search: Search) -> None:
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(search))  # type: ignore[arg-type]
    assert search.candidate_tokens(PROBLEM.space) > 0
    assert jnp.shape(search.best(search.init(jax.random.key(0), PROBLEM.start, PROBLEM.space))) == (2, 4)
