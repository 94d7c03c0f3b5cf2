"""Levels moved back onto a budget, beside the best of all by brute force."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from tyr_jax.space import Budget, Kind, allowed, level_grid, relaxed, repaired, values_at

DEPTH, LEVELS = 3, 4
KINDS = Kind("attention", 8, 1), Kind("ffn", 64, 8)
GRID = level_grid(KINDS, np.array([[4] * DEPTH, [32] * DEPTH]), LEVELS, 1 / 8)
START = np.full((2, DEPTH), LEVELS // 2)
UNITS = Budget.of_units(GRID.kept, values_at(GRID.kept, START).sum(axis=-1))
PRICES = GRID.kept * np.array([30, 4])[:, None, None]
PARAMETERS = Budget.of_prices(PRICES[None], [3 * (4 * 30 + 32 * 4)])
HEADS = np.where(np.arange(2)[:, None, None] == 0, GRID.kept, 0)
SEVERAL = Budget.of_prices(np.stack([PRICES, HEADS]), [3 * (4 * 30 + 32 * 4), 3 * 4 - 1])
EVERYTHING = np.array(list(itertools.product(range(LEVELS), repeat=2 * DEPTH))).reshape(-1, 2, DEPTH)

move = jax.jit(repaired)
relax = jax.jit(relaxed)
check = jax.jit(jax.vmap(allowed, in_axes=(0, None)))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), number=st.integers(0, 2))
def test_any_levels_are_moved_onto_the_budget(seed: int, number: int) -> None:
    rng, budget = np.random.default_rng(seed), (UNITS, PARAMETERS, SEVERAL)[number]
    fallback = START - (number == 2) * np.array([[1], [0]])
    levels, cost = rng.integers(-1, LEVELS + 1, (2, DEPTH)), rng.standard_normal((2, DEPTH, LEVELS))
    found = np.asarray(move(jnp.asarray(cost), levels, GRID.exists, budget, fallback))
    assert budget.allows(found)
    assert values_at(GRID.exists, found).all()
    within = np.clip(levels, 0, LEVELS - 1)
    if number == 0 and budget.allows(within):
        assert (found == within).all()


def test_the_cheapest_sites_give_way() -> None:
    """By hand: two heads too many; those of layer 1 cost least. The FFN meets the budget, so it stays."""
    cost = np.zeros((2, DEPTH, LEVELS))
    cost[0] = [[9.0, 6.0, 3.0, 0.0], [0.9, 0.6, 0.3, 0.0], [90.0, 60.0, 30.0, 0.0]]
    levels = np.array([[3, 3, 2], [1, 2, 3]])
    found = move(jnp.asarray(cost), levels, GRID.exists, UNITS, START)
    assert np.asarray(found).tolist() == [[3, 1, 2], [1, 2, 3]]


def test_levels_that_cannot_keep_the_budget_fall_back() -> None:
    exists = GRID.exists & (np.arange(LEVELS) != 1) & (np.arange(LEVELS) != 0)
    impossible = UNITS._replace(limit=UNITS.limit - 4)
    found = move(jnp.zeros((2, DEPTH, LEVELS)), np.full((2, DEPTH), 3), exists, impossible, START)
    assert (np.asarray(found) == START).all()


def test_relaxation_finds_the_optimum_of_convex_costs() -> None:
    """Marginal analysis: with convex costs and equal steps, the multiplier finds the best of all."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        wish = rng.uniform(0, LEVELS - 1, (2, DEPTH, 1))
        cost = rng.uniform(0.5, 2, (2, DEPTH, 1)) * (np.arange(LEVELS) - wish) ** 2
        found = np.asarray(relax(jnp.asarray(cost), GRID.exists, UNITS, START))
        totals = values_at(cost, EVERYTHING).sum(axis=(1, 2))
        least = totals[UNITS.allows(EVERYTHING)].min()
        np.testing.assert_allclose(values_at(cost, found).sum(), least, rtol=1e-5)


def test_relaxation_is_near_the_optimum_under_a_budget_of_parameters() -> None:
    for seed, budget in itertools.product(range(5), (PARAMETERS, SEVERAL)):
        rng = np.random.default_rng(seed)
        cost = np.sort(rng.uniform(0, 1, (2, DEPTH, LEVELS)))[..., ::-1].copy()
        found = np.asarray(relax(jnp.asarray(cost), GRID.exists, budget, START - np.array([[1], [0]])))
        assert budget.allows(found)
        totals = values_at(cost, EVERYTHING).sum(axis=(1, 2))[budget.allows(EVERYTHING)]
        # Among the best twentieth of all that meet the budget.
        assert values_at(cost, found).sum() <= np.quantile(totals, 0.05)


def test_allowed_is_that_of_the_budget() -> None:
    for budget in (UNITS, PARAMETERS, SEVERAL):
        assert (np.asarray(check(EVERYTHING, budget)) == budget.allows(EVERYTHING)).all()


def test_costs_that_are_no_numbers_end_within_the_budget() -> None:
    for value in (np.nan, np.inf, -np.inf):
        cost = np.zeros((2, DEPTH, LEVELS))
        cost[0, 1, 2:] = cost[1, 0] = value
        for budget in (UNITS, PARAMETERS):
            for levels in (np.full((2, DEPTH), LEVELS - 1), np.zeros((2, DEPTH), int)):
                found = np.asarray(move(jnp.asarray(cost), levels, GRID.exists, budget, START))
                assert budget.allows(found)
            assert budget.allows(np.asarray(relax(jnp.asarray(cost), GRID.exists, budget, START)))
