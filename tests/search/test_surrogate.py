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
    start = rng.integers(0, levels, depth)
    missing = rng.random(cost.shape) < 0.2
    missing[np.arange(depth), start] = False
    cost[missing] = np.inf
    totals = {
        choice: sum(cost[site, level] for site, level in enumerate(choice))
        for choice in itertools.product(range(levels), repeat=depth)
        if sum(choice) == start.sum() and np.abs(choice - start).max() <= limit
    }
    found = surrogate.cheapest_levels(cost, start, limit)
    assert found.sum() == start.sum()
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


def test_slopes_and_errors_of_a_quadratic_are_its_exact_change() -> None:
    """Sites that hurt by s·E alone: from the slopes that a projection has, the change is exact."""
    error = np.tile([0.9, 0.5, 0.3, 0.1, 0.0], (2, 3, 1)) * np.array([1.0, 2.0, 3.0])[:, None]
    sensitivity = np.array([[1.0, 4.0, 0.5], [2.0, 0.0, 3.0]])
    levels = np.array([[2, 1, 3], [2, 2, 1]])
    gain = error - np.take_along_axis(error, levels[..., None], axis=-1)
    slopes = np.where(gain < 0, 2 * gain, 0.0) * sensitivity[..., None]
    exists = np.ones(error.shape, bool)
    change = surrogate.expected_change(slopes, error, levels, exists)
    np.testing.assert_allclose(change, sensitivity[..., None] * gain, atol=1e-12)


def test_the_densest_level_has_its_slopes_alone_and_missing_levels_are_never_proposed() -> None:
    error = np.tile([0.5, 0.2, 0.0], (2, 2, 1))
    slopes = np.array([[[3.0, 1.0, 0.0], [0.0, 0.0, -5.0]], [[0.0, 0.0, -1.0], [0.0, 0.0, -9.0]]])
    exists = np.ones((2, 2, 3), bool)
    exists[1, 1, 2] = False
    levels = np.array([[2, 1], [1, 1]])
    change = surrogate.expected_change(slopes, error, levels, exists)
    assert change[0, 0].tolist() == [3.0, 1.0, 0.0]
    assert change[1, 1].tolist() == [0.0, 0.0, np.inf]
    found = surrogate.proposals(slopes, error, levels, exists)
    assert found.shape == (3, 2, 2)
    # One level costs 1 and gains 2.5; the other kind has nowhere to go but back and forth.
    assert found[0].tolist() == [[1, 2], [2, 0]]
    assert (found.sum(axis=-1) == levels.sum(axis=-1)).all()


def test_a_descent_takes_steps_that_help_and_no_others() -> None:
    error = np.tile([0.9, 0.5, 0.3, 0.1, 0.0], (2, 4, 1))
    sensitivity = np.array([[1.0, 9.0, 1.0, 9.0], [5.0, 1.0, 1.0, 5.0]])
    exists, start = np.ones(error.shape, bool), np.full((2, 4), 2)
    seen: list[np.ndarray] = []

    def total(levels: np.ndarray) -> float:
        return float(np.sum(sensitivity * np.take_along_axis(error, levels[..., None], axis=-1)[..., 0]))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        seen.append(sequences)
        gain = error - np.take_along_axis(error, levels[..., None], axis=-1)
        return np.where(gain < 0, 2 * gain, 0.0) * sensitivity[..., None]

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        seen.append(sequences)
        return np.array([total(candidate) for candidate in candidates])

    batches = [(np.array([i]), np.array([9 + i])) for i in range(3)]
    found, history = surrogate.descend(start, error, exists, slopes, score, batches)
    best = min(
        (np.stack(pair) for pair in itertools.product(*[list(balanced(4, 5, 8))] * 2)),
        key=total,
    )
    assert total(found) == pytest.approx(total(best))
    assert [int(s[0]) for s in seen] == [0, 9, 1, 10, 2, 11]
    assert history[0][0] == pytest.approx(total(start))
    assert history[-1][0] == pytest.approx(total(found))
    assert all(len(step) == 4 for step in history)

    def worse(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.array([1.0, *[2.0] * (len(candidates) - 2), np.nan])

    np.testing.assert_array_equal(surrogate.descend(start, error, exists, slopes, worse, batches)[0], start)

    def broken(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        values = slopes(levels, sequences)
        values[0, 1, 2] = np.nan
        return values

    found, history = surrogate.descend(start, error, exists, broken, score, batches)
    np.testing.assert_array_equal(found, start)
    assert history == []


def balanced(sites: int, levels: int, total: int) -> list[np.ndarray]:
    """All distributions of one kind that sum to `total`."""
    return [
        np.array(choice) for choice in itertools.product(range(levels), repeat=sites) if sum(choice) == total
    ]
