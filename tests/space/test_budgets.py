"""Budgets of units and of parameters: their sums, what shifts keep, and which levels are worthwhile."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from tyr_jax import space
from tyr_jax.space import Budget, LevelGrid


def test_units_of_each_kind_are_counted_apart_and_exactly() -> None:
    kept = np.stack([np.tile([1, 2, 3], (2, 1)), np.tile([8, 16, 24], (2, 1))])
    budget = Budget.of_units(kept, [4, 32])
    levels = np.array([[[1, 1], [1, 1]], [[0, 2], [2, 0]], [[0, 1], [1, 1]], [[2, 1], [1, 1]]])
    assert budget.spent(levels).tolist() == [[4, 32], [4, 32], [3, 32], [5, 32]]
    assert budget.allows(levels).tolist() == [True, True, False, False]
    assert budget.allows(levels[0])


def test_parameters_of_both_kinds_are_one_sum_from_below() -> None:
    parameters = np.stack([np.tile([0, 600, 900], (2, 1)), np.tile([300, 1200, 2400], (2, 1))])
    budget = Budget.of_prices(parameters[None], [3899])
    # 300 divides them all.
    assert budget.price[0, 0, 0].tolist() == [0, 2, 3]
    assert budget.limit.tolist() == [12]
    levels = np.array([[[1, 1], [1, 1]], [[2, 2], [1, 1]], [[0, 1], [0, 0]]])
    assert budget.spent(levels).tolist() == [[12], [14], [4]]
    assert budget.allows(levels).tolist() == [True, False, True]


def test_parameters_of_a_large_model_are_never_counted_short() -> None:
    rng = np.random.default_rng(0)
    parameters = np.sort(rng.integers(0, 2**40, (2, 80, 9)), axis=-1)
    budget = Budget.of_prices(parameters[None], [int(parameters[..., 4].sum())])
    assert budget.price.dtype == np.int32
    assert budget.price.max(axis=-1).sum(dtype=np.int64) < 2**31
    levels = rng.integers(0, 9, (500, 2, 80))
    true = space.values_at(parameters, levels).sum(axis=(1, 2))
    allowed = budget.allows(levels)
    assert 0 < allowed.sum() < 500
    assert (true[allowed] <= parameters[..., 4].sum()).all()


@jax.jit
def offspring(key: jax.Array, parent: jax.Array, exists: jax.Array, budget: Budget) -> jax.Array:
    return jax.vmap(lambda k: space.mutate(k, parent, exists, budget, 4))(jax.random.split(key, 32))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), slack=st.sampled_from([0, 30]))
def test_shifts_exchange_heads_and_neurons_within_the_budget(seed: int, slack: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.stack([rng.integers(0, 8, (4, 5)), rng.integers(5, 15, (4, 5))])
    parameters, exists = np.cumsum(steps, axis=-1), np.ones((2, 4, 5), bool)
    exists[0, :2, 4:] = exists[1, :2, :1] = False
    parent = np.full((2, 4), 2)
    limit = int(space.values_at(parameters, parent).sum()) + slack
    # One price is made 1, so that the budget does not rescale the prices.
    parameters[0, 0, 0] += 1 - parameters[0, 0, 0]
    budget = Budget.of_prices(parameters[None], [limit])
    children = np.asarray(offspring(jax.random.key(seed), jnp.asarray(parent), jnp.asarray(exists), budget))
    assert budget.allows(children).all()
    assert np.take_along_axis(exists[None], children[..., None], axis=-1).all()
    moved = (children != parent).any(axis=(1, 2))
    assert moved.mean() > 0.8
    # The budget is used up: a further step would hardly ever fit.
    left = budget.limit[0] - budget.spent(children)[:, 0]
    assert np.median(left) < 15


def test_levels_that_cost_as_much_as_denser_ones_are_left_out() -> None:
    kept = np.broadcast_to(np.arange(4), (2, 2, 4)).astype(np.int32)
    grid = LevelGrid(kept, np.ones((2, 2, 4), bool), np.array([1, 1]))
    price = np.array([[[0, 2, 2, 2], [0, 1, 2, 3]], [[0, 1, 2, 3], [0, 1, 1, 3]]])
    worthwhile = space.worthwhile_grid(grid, price[None])
    rows = [
        [int(units) for units, there in zip(site, exists, strict=True) if there]
        for site, exists in zip(worthwhile.kept.reshape(4, -1), worthwhile.exists.reshape(4, -1), strict=True)
    ]
    assert rows == [[0, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3]]
    assert space.worthwhile_grid(grid, np.broadcast_to(np.arange(4), (1, 2, 2, 4))) is grid
    # A level that saves another resource is worth having.
    other = np.broadcast_to(np.arange(4), (2, 2, 4))
    assert space.worthwhile_grid(grid, np.stack([price, other])) is grid
    # The existing levels are next to each other, as shifts require.
    for exists in worthwhile.exists.reshape(4, -1):
        assert set(np.diff(np.flatnonzero(exists))) <= {1}
    at = space.levels_of(worthwhile, np.full((2, 2), 1))
    assert space.kept_units(worthwhile, at).tolist() == [[3, 1], [1, 2]]
