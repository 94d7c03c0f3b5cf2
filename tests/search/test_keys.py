"""No random key is used for two things."""

from typing import Any

import jax
import numpy as np
import pytest

from tyr_jax import space
from tyr_jax.search.annealing import Annealing
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.evosax_adapter import Evosax, algorithm_of
from tyr_jax.space import Kind

KINDS = Kind("attention", 6, 1), Kind("ffn", 48, 8)
GRID = space.level_grid(KINDS, np.array([[3] * 4, [24] * 4]), 5, 1 / 6)
START = space.centre_distribution(GRID)
SPACE = SearchSpace.around(GRID, START, 8, 16)


def data(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.slow
def test_annealing_accepts_by_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Annealing(chains=4)
    state = search.init(jax.random.key(0), START, SPACE)
    query, seen, uniform = search.ask(state), [], jax.random.uniform

    def noted(key: jax.Array, *rest: Any, **options: Any) -> jax.Array:
        seen.append(data(key))
        return uniform(key, *rest, **options)

    monkeypatch.setattr(jax.random, "uniform", noted)
    search.tell(state, query.candidates, np.zeros(len(query.candidates)))
    assert len(seen) == 1
    assert seen[0] not in map(data, jax.random.split(state.draw, search.chains))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["CMA_ES", "DifferentialEvolution"])
def test_a_strategy_gets_a_new_key_for_every_call(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search, seen = Evosax(strategy=strategy, population=4), []
    algorithm = algorithm_of(strategy, 4, search.shape(SPACE))

    def noted(own: Any) -> Any:
        def call(key: jax.Array, *rest: Any) -> Any:
            seen.append(data(key))
            return own(key, *rest)

        return call

    for name in ("init", "ask", "tell"):
        monkeypatch.setattr(algorithm, name, noted(getattr(algorithm, name)))
    state = search.init(jax.random.key(0), START, SPACE)
    for _ in range(2):
        query = search.ask(state)
        state = search.tell(state, query.candidates, np.arange(len(query.candidates), dtype=float))
    assert len(seen) == len(set(seen)) == 6
