import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tyr_jax.search import surrogate


@settings(max_examples=40, deadline=None)
@given(depth=st.integers(1, 5), half=st.integers(1, 2), limit=st.integers(1, 3), seed=st.integers(0, 999))
def test_the_answer_is_the_cheapest_of_all_that_keep_the_budget(
    depth: int, half: int, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    levels = 2 * half + 1
    cost = rng.random((depth, levels))
    missing = rng.random(cost.shape) < 0.2
    missing[:, half] = False
    cost[missing] = np.inf
    moves = np.arange(levels) - half
    totals = {
        choice: sum(cost[site, level] for site, level in enumerate(choice))
        for choice in itertools.product(range(levels), repeat=depth)
        if moves[list(choice)].sum() == 0 and np.abs(moves[list(choice)]).max() <= limit
    }
    found = surrogate.cheapest_levels(cost, limit)
    assert moves[found].sum() == 0
    assert totals[tuple(map(int, found))] == pytest.approx(min(totals.values()))


def test_a_site_that_matters_gains_what_one_that_does_not_gives() -> None:
    error = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 3, 1))
    share = np.array([[0.1, 5.0, 1.0], [1.0, 1.0, 1.0]])
    start = surrogate.estimated_start(error, share, np.ones((2, 3, 5), bool), limit=1)
    assert start[0].tolist() == [1, 3, 2]
    assert start.sum(axis=1).tolist() == [6, 6]


def test_levels_that_do_not_exist_are_never_chosen() -> None:
    error = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 2, 1))
    exists = np.ones((2, 2, 5), bool)
    exists[0, 0, 3:] = False
    start = surrogate.estimated_start(error, np.array([[9.0, 1.0], [9.0, 1.0]]), exists, limit=1)
    assert start[0].tolist() == [2, 2]
    assert start[1].tolist() == [3, 1]


@pytest.mark.parametrize(("by", "expected"), [(0, [1, 2, 3]), (1, [np.inf, 1, 2]), (-2, [3, np.inf, np.inf])])
def test_shifted(by: int, expected: list[float]) -> None:
    np.testing.assert_array_equal(surrogate.shifted(np.array([1.0, 2.0, 3.0]), by), expected)
