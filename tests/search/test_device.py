"""Searches side by side on the device: each as it would be alone, and divided among devices."""

from typing import Any

import jax
import numpy as np
import pytest
from compare_searches import generation_tokens

from tyr_jax.errors import UserError
from tyr_jax.problems import stack_problems, synthetic_problem
from tyr_jax.search.contract import Search
from tyr_jax.search.device import search_many, search_on_device
from tyr_jax.search.evolution import Evolution

SEARCH = Evolution(generations=6, offspring=16, survivors=(4, 1), stage_tokens=(16, 64))
SMALL: dict[str, Any] = {"depth": 4, "levels": 5, "sequences": 8, "length": 16}
PROBLEMS = [synthetic_problem(seed, noise=0.1, **SMALL) for seed in range(4)]
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.mark.slow
def test_searches_side_by_side_find_what_each_finds_alone() -> None:
    many = search_many(SEARCH, KEYS, stack_problems(PROBLEMS))
    assert many.levels.shape == (4, 6, 2, 4)
    for run, (key, problem) in enumerate(zip(KEYS, PROBLEMS, strict=True)):
        alone = search_on_device(SEARCH, key, problem)
        np.testing.assert_array_equal(many.levels[run], alone.levels)
        np.testing.assert_allclose(many.fitness[run], alone.fitness, rtol=1e-5)
    before = search_many._cache_size()
    search_many(SEARCH, jax.random.split(jax.random.key(9), 4), stack_problems(PROBLEMS[::-1]))
    assert search_many._cache_size() == before


@pytest.mark.slow
def test_a_generation_never_ends_worse_than_its_parent_on_the_same_text() -> None:
    plain = synthetic_problem(seed=1, **SMALL)
    trace = search_on_device(SEARCH, KEYS[0], plain)
    assert (np.diff(np.asarray(trace.fitness)) <= 1e-6).all()


def test_the_cost_of_a_generation() -> None:
    # All 17 on one sequence of 16 tokens, then 5 on three more.
    assert generation_tokens(SEARCH, PROBLEMS[0].space) == 17 * 16 + 5 * 48


def test_a_search_that_is_not_traceable_is_refused() -> None:
    with pytest.raises(UserError, match="does not say `traceable = True`"):
        search_on_device(Search(), KEYS[0], PROBLEMS[0])
