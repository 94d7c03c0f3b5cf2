"""If a search breaks its contract, the error names the search and what is wrong in one sentence."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.search import loop
from tyr_jax.search.contract import Query, Search, SearchSpace
from tyr_jax.space import Kind

DEPTH, LEVELS = 3, 5
GRID = space.level_grid(
    (Kind("attention", 6, 1), Kind("ffn", 48, 8)), np.array([[5, 3, 3], [24] * 3]), LEVELS, 1 / 6
)
START = space.centre_distribution(GRID)
SPACE = SearchSpace.around(GRID, START, 4, 8)


@dataclasses.dataclass(frozen=True)
class Shifting(Search):
    """Asks for two shifts of the best candidate so far."""

    generations: int = 4

    def init(self, key: jax.Array, start: np.ndarray, space: SearchSpace) -> Any:
        known = {"exists": space.exists, "budget": space.budget}
        return {"key": key, "step": jnp.int32(0), "best": start, "value": np.inf, **known}

    def ask(self, state: Any) -> Query:
        keys = jax.random.split(jax.random.fold_in(state["key"], state["step"]))
        best, exists = jnp.asarray(state["best"]), jnp.asarray(state["exists"])
        candidates = jax.vmap(lambda key: space.mutate(key, best, exists, state["budget"]))(keys)
        return Query(np.asarray(candidates), np.arange(2))

    def tell(self, state: Any, candidates: np.ndarray, fitness: np.ndarray) -> Any:
        state = state | {"step": state["step"] + 1}
        index = int(fitness.argmin())
        better = fitness[index] < state["value"]
        return state | ({"best": candidates[index], "value": fitness[index]} if better else {})

    def best(self, state: Any) -> np.ndarray:
        return np.asarray(state["best"])


def denser(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """A fitness that is better the denser the attention of layer 2 is."""
    return -candidates[:, 0, 2].astype(float)


def run(search: Search, score: loop.Scorer = denser) -> np.ndarray:
    return loop.run(search, loop.begin_search(search, jax.random.key(0), START, SPACE), SPACE, score)


@pytest.mark.slow
def test_a_search_of_a_few_lines_runs() -> None:
    found = run(Shifting(generations=12))
    assert found[0, 2] > START[0, 2]
    assert space.kept_units(GRID, found).sum(axis=1).tolist() == [11, 72]
    search = Shifting()
    assert search.queries(SPACE) == [(2, 2, 4, False)]
    assert search.candidate_tokens(SPACE) == 2 * 2 * 4 * 8


def test_fitness_that_is_not_finite_arrives_as_infinity() -> None:
    told = []

    class Listening(Shifting):
        def tell(self, state: Any, candidates: np.ndarray, fitness: np.ndarray) -> Any:
            told.append(fitness.tolist())
            return super().tell(state, candidates, fitness)

    run(Listening(generations=1), lambda candidates, _: np.array([np.nan, -np.inf]))
    assert told == [[np.inf, np.inf]]


def breaking(**methods: Callable[..., Any]) -> Search:
    """A search with some methods replaced by these."""
    return type("Mine", (Shifting,), {"name": "mine:Mine", **methods})()  # type: ignore[no-any-return]


def outside(state: Any) -> Any:
    raise ValueError("no idea\nat all")


SHAPE = r"asks for candidates of shape \(2, 3\) and type int32: they must be integers of shape \(C, 2, 3\)"


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ({"ask": lambda self, state: Query(START, np.arange(2))}, SHAPE),
        ({"ask": lambda self, state: Query(START[None] * 1.0, np.arange(2))}, "type float64"),
        ({"ask": lambda self, state: Query(START[None][:0], np.arange(2))}, r"shape \(0, 2, 3\)"),
        ({"ask": lambda self, state: START}, "asks for a ndarray: return a Query"),
        ({"ask": lambda self, state: Query(START[None] + 7, np.arange(2))}, "level 9 at site 0 of layer 0"),
        ({"ask": lambda self, state: Query(START[None] - 3, np.arange(2))}, "level -1 at site 0 of layer 0"),
        (
            {"ask": lambda self, state: Query(START[None] + [[[2, 0, 0]], [[0, 0, 0]]], np.arange(2))},
            "level 4 at site 0 of layer 0, which does not exist",
        ),
        (
            {"ask": lambda self, state: Query(START[None] + [[[0, 1, 0]], [[0, 0, 0]]], np.arange(2))},
            r"a candidate that costs \[12, 80\], but the budget is \[11, 72\]",
        ),
        ({"ask": lambda self, state: Query(START[None], np.arange(5))}, r"sequences \[0, 1, 2, 3, 4\]"),
        ({"ask": lambda self, state: Query(START[None], np.arange(0))}, "at least one"),
        ({"ask": lambda self, state: Query(START[None], np.ones(2))}, r"sequences \[1.0, 1.0\]"),
        ({"ask": lambda self, state: Query(START[None] > 0, np.arange(2))}, "type bool"),
        ({"ask": lambda self, state: Query(START[None] + 0j, np.arange(2))}, "type complex128"),
        ({"ask": lambda self, state: 0.5}, "asks for a float: return a Query"),
        ({"steps": lambda self, space: 1.5}, "gives 1.5 for steps: it must be a whole number of at least 0"),
        ({"stages": lambda self, space: True}, "gives True for stages: it must be a whole number"),
        ({"steps": lambda self, space: -1}, "gives -1 for steps"),
        ({"ask": lambda self, state: sys.exit(0)}, "failed in ask with SystemExit: 0, at line"),
        ({"ask": lambda self, state: Query(START[None], 1.0)}, "asks for sequences 1.0"),
        ({"best": lambda self, state: 1.0}, "best gives candidates of shape"),
        ({"ask": lambda self, state: outside(state)}, "failed in ask with ValueError: no idea, at line"),
        ({"tell": lambda self, *told: outside(told)}, "failed in tell with ValueError: no idea"),
        ({"init": lambda self, *begun: outside(begun)}, "failed in init with ValueError: no idea"),
        ({"init": lambda self, *begun: {"best": "nothing"}}, "has a state that holds a str"),
        ({"tell": lambda self, *told: object()}, "has a state that holds a object: it must be a pytree"),
        ({"best": lambda self, state: START + 1}, r"best gives a candidate that costs \[14, 96\]"),
        ({"best": lambda self, state: None}, "best gives candidates of shape"),
    ],
)
def test_a_broken_contract(methods: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        run(breaking(**methods))
    assert str(error.value).startswith("--search mine:Mine ")
    assert "\n" not in str(error.value)


def test_what_a_search_may_record() -> None:
    noted = {"generation": np.int32(3), "objective": jnp.float32(0.5), "parent": np.inf, "of its own": 2}
    found = loop.checked_record(Shifting(), noted)
    assert found == {"generation": 3, "objective": 0.5, "parent": np.inf, "of its own": 2}
    assert {type(value) for value in found.values()} == {int, float}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ([1], "records a list: it must be a mapping, or None"),
        ({"objective": "low"}, "records a str as 'objective': it must be a number"),
        ({"objective": None}, "records a NoneType as 'objective'"),
        ({"more": [1, 2]}, "records a list as 'more'"),
        ({3: 1.0}, "records a float as 3"),
        ({"generation": 0.5}, "records a float as 'generation': it must be a whole number"),
        ({"generation": -1}, "records a int as 'generation': it must be a whole number of at least 0"),
    ],
)
def test_what_a_search_may_not_record(record: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        loop.checked_record(Shifting(), record)


def test_an_error_of_a_search_of_the_package_keeps_its_trace() -> None:
    with pytest.raises(ValueError, match="no idea"):
        run(breaking(name="evolution", ask=lambda self, state: outside(state)))


def test_a_users_mistake_and_an_interruption_pass() -> None:
    def interrupt(self: Any, state: Any) -> Any:
        raise KeyboardInterrupt

    def refuse(self: Any, state: Any) -> Any:
        raise UserError("mend it")

    with pytest.raises(KeyboardInterrupt):
        run(breaking(ask=interrupt))
    with pytest.raises(UserError, match="mend it"):
        run(breaking(ask=refuse))
