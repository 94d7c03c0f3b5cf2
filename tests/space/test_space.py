"""Levels and budgets in whole units against tables worked by hand, and the invariants of sparsity shifts."""

import dataclasses
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import ATTENTION, FFN

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.space import Budget, Kind, LevelGrid

SMOLLM2 = (Kind("attention", 9, 1), Kind("ffn", 1536, 8))
LLAMA = (Kind("attention", 32, 1), Kind("ffn", 14336, 8))
LLAMA_TPU = (Kind("attention", 32, 1), Kind("ffn", 14336, 128))
ROUNDS = (0.125, 0.0625, 0.03125, 0.015625)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (SMOLLM2[ATTENTION], [1, 1, 1, 1]),  # 1.125, 0.56, 0.28, 0.14 heads
        (SMOLLM2[FFN], [192, 96, 48, 24]),
        (Kind("ffn", 1536, 128), [256, 128, 128, 128]),  # 1.5, 0.75, … multiples; ties go to even
        (LLAMA[ATTENTION], [4, 2, 1, 1]),  # 0.5 heads is below the floor
        (LLAMA[FFN], [1792, 896, 448, 224]),
        (LLAMA_TPU[FFN], [1792, 896, 512, 256]),  # 3.5 and 1.75 multiples
        (Kind("attention", 3, 1), [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_a_step_halves_until_it_reaches_the_floor(kind: Kind, steps: list[int]) -> None:
    assert [space.step_units(kind, interval) for interval in ROUNDS] == steps


@pytest.mark.parametrize(
    ("kind", "depth", "sparsity", "budget"),
    [
        (SMOLLM2[ATTENTION], 30, 0.25, 202),  # of 270 heads 202.5 are asked
        (SMOLLM2[ATTENTION], 30, 0.5, 135),
        (SMOLLM2[ATTENTION], 30, 0.125, 236),  # 236.25
        (SMOLLM2[FFN], 30, 0.25, 34560),
        (SMOLLM2[FFN], 30, 0.3, 32256),
        (SMOLLM2[FFN], 30, 0.1, 41472),
        (SMOLLM2[FFN], 30, 0.33, 30872),  # 30873.6 is not a multiple of 8
        (Kind("ffn", 1536, 128), 30, 0.3, 32256),
        (Kind("ffn", 1536, 128), 30, 0.33, 30848),
        (LLAMA[ATTENTION], 32, 0.5, 512),
        (LLAMA[FFN], 32, 0.5, 229376),
        (LLAMA[FFN], 32, 0.375, 286720),
        (LLAMA_TPU[FFN], 32, 0.1, 412928),  # 412876.8
    ],
    ids=str,
)
def test_budget_in_whole_units(kind: Kind, depth: int, sparsity: float, budget: int) -> None:
    assert space.unit_budget(kind, depth, sparsity) == budget


@pytest.mark.parametrize(
    ("kind", "depth", "sparsity", "message"),
    [
        (SMOLLM2[ATTENTION], 30, 0.001, r"leave attention intact.*270 units 270.*between 0\.0037"),
        (SMOLLM2[ATTENTION], 30, 0.999, r"leave attention without a single unit.*0\.9963"),
        (SMOLLM2[FFN], 30, 1e-5, r"leave ffn intact.*in multiples of 8"),
        (Kind("ffn", 1536, 128), 2, 0.98, r"leave ffn without a single unit.*in multiples of 128"),
        (Kind("ffn", 48, 128), 3, 0.5, r"48 ffn units, but must keep a multiple of 128.*--neuron-multiple"),
    ],
    ids=str,
)
def test_impossible_targets_name_the_kind(kind: Kind, depth: int, sparsity: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space.unit_budget(kind, depth, sparsity)


@settings(max_examples=200)
@given(
    pieces=st.integers(1, 40),
    extra=st.integers(0, 127),
    multiple=st.sampled_from([1, 8, 128]),
    depth=st.integers(1, 40),
    sparsity=st.floats(0, 1),
)
def test_a_uniform_split_spends_the_budget_as_evenly_as_it_can(
    pieces: int, extra: int, multiple: int, depth: int, sparsity: float
) -> None:
    kind = Kind("ffn", pieces * multiple + extra % multiple, multiple)
    try:
        budget = space.unit_budget(kind, depth, sparsity)
    except UserError:
        return
    assert abs(budget - (1 - sparsity) * depth * kind.units) <= multiple / 2 + 1e-6
    split = space.uniform_split(kind, depth, budget)
    assert split.sum() == budget
    assert len(split) == depth
    assert (split % multiple == 0).all()
    assert np.ptp(split) <= multiple
    assert split.min() >= 0
    assert split.max() <= kind.units


def test_the_remainder_is_spread_over_the_depth() -> None:
    heads = space.uniform_split(SMOLLM2[ATTENTION], 30, 202)
    assert set(heads) == {6, 7}
    assert (heads == 7).sum() == 22
    # The 8 sites with one head less are spread out, to every third or fourth layer.
    assert set(np.diff(np.flatnonzero(heads == 6))) <= {3, 4}
    assert space.uniform_split(Kind("ffn", 1536, 8), 4, 3080).tolist() == [768, 768, 768, 776]


@pytest.mark.slow
def test_sites_that_stay_whole_have_one_level_and_the_others_make_up_for_them() -> None:
    kinds = Kind("attention", 4, 1), Kind("ffn", 50, 8)
    whole = np.array([[True, False, False, False], [False, False, True, False]])
    budgets = tuple(space.unit_budget(kind, 4, 0.5, 1) for kind in kinds)
    # 100 of 200 neurons should stay: 50 in the whole layer, and 48 in the others, in multiples of 8.
    assert budgets == (8, 98)
    centres = space.uniform_centres(kinds, budgets, whole)
    assert centres.tolist() == [[4, 1, 1, 2], [16, 16, 50, 16]]
    grid = space.level_grid(kinds, centres, 3, 0.25, whole)
    assert grid.exists[0, 0].tolist() == grid.exists[1, 2].tolist() == [False, True, False]
    assert grid.exists[0, 1].tolist() == [True, True, True]
    parent = jnp.asarray(space.centre_distribution(grid))
    for seed in range(20):
        child = space.mutate(jax.random.key(seed), parent, jnp.asarray(grid.exists), in_units(grid, parent))
        assert np.asarray(child)[whole].tolist() == [1, 1]
    message = (
        r"would keep only 2 of 16 attention units, but the layers that stay whole have 4; list fewer layers"
    )
    with pytest.raises(UserError, match=message):
        space.unit_budget(kinds[0], 4, 0.875, 1)


def in_units(grid: LevelGrid, parent: np.ndarray | jax.Array) -> Budget:
    """A budget of as many units of each kind as `parent` has."""
    return Budget.of_units(grid.kept, space.kept_units(grid, np.asarray(parent)).sum(axis=-1))


def grid_rows(grid: LevelGrid, kind: int, layer: int) -> list[int | None]:
    """Units of a site's levels, None where the level does not exist."""
    pairs = zip(grid.kept[kind, layer], grid.exists[kind, layer], strict=True)
    return [int(kept) if exists else None for kept, exists in pairs]


def test_levels_of_smollm2_at_a_quarter() -> None:
    centres = np.stack([np.full(30, 7), np.full(30, 1152)])
    centres[ATTENTION, 0], centres[FFN, 0] = 6, 384
    grid = space.level_grid(SMOLLM2, centres, 9, 0.125)
    assert grid.step.tolist() == [1, 192]
    assert grid.centre == 4
    assert grid_rows(grid, ATTENTION, 0) == [2, 3, 4, 5, 6, 7, 8, 9, None]
    assert grid_rows(grid, ATTENTION, 1) == [3, 4, 5, 6, 7, 8, 9, None, None]
    assert grid_rows(grid, FFN, 1) == [384, 576, 768, 960, 1152, 1344, 1536, None, None]
    assert grid_rows(grid, FFN, 0) == [None, None, 0, 192, 384, 576, 768, 960, 1152]


def test_a_joint_grid_has_the_levels_of_each() -> None:
    quarter, half = (space.uniform_grid(SMOLLM2, 30, sparsity, 9, 0.125) for sparsity in (0.25, 0.5))
    joint = space.joint_grid([quarter, half])
    for kind in (ATTENTION, FFN):
        for layer in range(30):
            rows = (grid_rows(grid, kind, layer) for grid in (quarter, half))
            units = sorted({row for levels in rows for row in levels if row is not None})
            assert [row for row in grid_rows(joint, kind, layer) if row is not None] == units
            # Half of the existing levels are below the centre, so the centre is a level.
            assert grid_rows(joint, kind, layer)[joint.centre] == units[len(units) // 2]
    assert grid_rows(joint, FFN, 0) == [None, *range(0, 1537, 192)][-joint.kept.shape[-1] :]
    assert joint.step.tolist() == [1, 192]
    assert space.joint_grid([half]) is half


def test_levels_of_llama_at_a_half_span_dense_to_removed() -> None:
    centres = np.stack([np.full(32, 16), np.full(32, 7168)])
    grid = space.level_grid(LLAMA, centres, 9, 0.125)
    assert grid.exists.all()
    assert grid_rows(grid, ATTENTION, 5) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    expected = [0, 1792, 3584, 5376, 7168, 8960, 10752, 12544, 14336]
    assert grid_rows(grid, FFN, 31) == expected
    refined = space.level_grid(LLAMA, centres, 9, 0.015625)
    assert grid_rows(refined, ATTENTION, 0) == [12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert grid_rows(refined, FFN, 0)[4:6] == [7168, 7392]


def test_levels_that_do_not_exist_are_clipped_and_masked() -> None:
    grid = space.level_grid(SMOLLM2, np.array([[0], [1528]]), 9, 0.125)
    assert grid.kept[ATTENTION, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert grid.exists[ATTENTION, 0].tolist() == [False] * 4 + [True] * 5
    # 1528 + 192 passes 1536: dense is not on this grid, so it is no level.
    assert grid_rows(grid, FFN, 0) == [760, 952, 1144, 1336, 1528, None, None, None, None]


def test_levels_that_no_site_can_have_are_left_out() -> None:
    kinds = Kind(ATTENTION, 9, 1), Kind(FFN, 64, 8)
    grids = [space.level_grid(kinds, np.array([[7, 9], [48, 8]]), levels, 0.125) for levels in (21, 99_999)]
    assert grids[1].kept.shape[-1] == 21
    jax.tree.map(np.testing.assert_array_equal, *(dataclasses.astuple(grid) for grid in grids))


def test_kept_units_of_many_distributions() -> None:
    grid = space.level_grid(SMOLLM2, np.array([[6, 7], [1152, 768]]), 3, 0.125)
    centre = space.centre_distribution(grid)
    assert centre.tolist() == [[1, 1], [1, 1]]
    assert space.kept_units(grid, centre).tolist() == [[6, 7], [1152, 768]]
    both = np.array([[[0, 2], [2, 0]], [[1, 1], [0, 2]]])
    expected = [[[5, 8], [1344, 576]], [[6, 7], [960, 960]]]
    assert space.kept_units(grid, both).tolist() == expected


class Case(NamedTuple):
    """A grid and a distribution over levels that exist."""

    kinds: tuple[Kind, Kind]
    grid: LevelGrid
    parent: np.ndarray
    key: jax.Array


# Few shapes, so that few compilations serve all examples.
SHAPES = ((2, 3), (5, 9))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    depth, levels = draw(st.sampled_from(SHAPES))
    kinds, centres = [], []
    for name in ("attention", "ffn"):
        multiple = draw(st.sampled_from([1, 8]))
        kind = Kind(name, draw(st.integers(1, 40)) * multiple + draw(st.integers(0, multiple - 1)), multiple)
        pieces = st.integers(0, kind.units // multiple)
        kinds.append(kind)
        centres.append([multiple * draw(pieces) for _ in range(depth)])
    both = (kinds[0], kinds[1])
    grid = space.level_grid(both, np.array(centres), levels, draw(st.sampled_from(ROUNDS)))
    present = [[np.flatnonzero(site).tolist() for site in kind] for kind in grid.exists]
    parent = np.array([[draw(st.sampled_from(site)) for site in kind] for kind in present])
    return Case(both, grid, parent, jax.random.key(draw(st.integers(0, 2**31 - 1))))


def can_shift(case: Case) -> bool:
    """Brute force: can one site of a kind become denser by a level and another one sparser?"""
    levels = case.grid.kept.shape[-1]

    def exists(kind: int, site: int, level: int) -> bool:
        return 0 <= level < levels and bool(case.grid.exists[kind, site, level])

    depth = case.parent.shape[1]
    return any(
        up != down
        and exists(kind, up, case.parent[kind, up] + 1)
        and exists(kind, down, case.parent[kind, down] - 1)
        for kind in (ATTENTION, FFN)
        for up in range(depth)
        for down in range(depth)
    )


@jax.jit
def shifts(key: jax.Array, parent: jax.Array, exists: jax.Array, budget: Budget) -> jax.Array:
    keys = jax.random.split(key, 16)
    return jax.vmap(lambda k: space.sparsity_shift(k, parent, exists, budget))(keys)


@settings(max_examples=60)
@given(case=cases())
def test_a_shift_moves_one_step_between_two_sites_of_a_kind(case: Case) -> None:
    budget = in_units(case.grid, case.parent)
    moved = np.asarray(shifts(case.key, jnp.asarray(case.parent), jnp.asarray(case.grid.exists), budget))
    before = space.kept_units(case.grid, case.parent)
    for distribution in moved:
        change = distribution - case.parent
        if not can_shift(case):
            assert not change.any()
            continue
        kinds, _ = np.nonzero(change)
        assert len(kinds) == 2
        assert kinds[0] == kinds[1]
        assert sorted(change[change != 0]) == [-1, 1]
        assert np.take_along_axis(case.grid.exists, distribution[..., None], axis=-1).all()
        units = space.kept_units(case.grid, distribution) - before
        step = case.grid.step[kinds[0]]
        assert sorted(units[units != 0]) == [-step, step]


@jax.jit
def offspring(key: jax.Array, parent: jax.Array, exists: jax.Array, budget: Budget) -> jax.Array:
    return jax.vmap(lambda k: space.mutate(k, parent, exists, budget, 4))(jax.random.split(key, 16))


@settings(max_examples=60)
@given(case=cases())
def test_a_mutation_keeps_the_units_of_each_kind_and_stays_on_levels(case: Case) -> None:
    budget = in_units(case.grid, case.parent)
    children = np.asarray(
        offspring(case.key, jnp.asarray(case.parent), jnp.asarray(case.grid.exists), budget)
    )
    units = space.kept_units(case.grid, children)
    total = space.kept_units(case.grid, case.parent).sum(axis=-1)
    assert (units.sum(axis=-1) == total).all()
    assert np.take_along_axis(case.grid.exists[None], children[..., None], axis=-1).all()
    highest = np.array([kind.units for kind in case.kinds])[:, None]
    assert ((units >= 0) & (units <= highest)).all()
    assert (np.abs(children - case.parent).sum(axis=(1, 2)) <= 2 * 4).all()


@settings(max_examples=30)
@given(
    kinds=st.sampled_from([SMOLLM2, LLAMA, LLAMA_TPU, (Kind("attention", 3, 1), Kind("ffn", 48, 8))]),
    sparsity=st.floats(0.05, 0.9),
    seed=st.integers(0, 999),
)
def test_the_budget_is_exact_for_every_candidate_of_every_round(
    kinds: tuple[Kind, Kind], sparsity: float, seed: int
) -> None:
    depth, key = 5, jax.random.key(seed)
    budgets = [space.unit_budget(kind, depth, sparsity) for kind in kinds]
    pairs = zip(kinds, budgets, strict=True)
    kept = np.stack([space.uniform_split(kind, depth, budget) for kind, budget in pairs])
    for interval in ROUNDS:
        grid = space.level_grid(kinds, kept, 9, interval)
        parent = space.centre_distribution(grid)
        assert (space.kept_units(grid, parent) == kept).all()
        for generation in range(3):
            key = jax.random.fold_in(key, generation)
            budget = in_units(grid, parent)
            children = np.asarray(offspring(key, jnp.asarray(parent), jnp.asarray(grid.exists), budget))
            units = space.kept_units(grid, children)
            assert (units.sum(axis=-1) == budgets).all()
            assert (units % np.array([kind.multiple for kind in kinds])[:, None] == 0).all()
            parent = children[seed % len(children)]
        kept = space.kept_units(grid, parent)


def test_a_distribution_without_a_pair_comes_back_unchanged() -> None:
    # The only site that could become denser is the only one that could become sparser.
    exists = np.zeros((2, 2, 3), bool)
    exists[:, :, 1] = True
    exists[ATTENTION, 0] = True
    centre = np.ones((2, 2), np.int32)
    budget = Budget.of_units(np.broadcast_to(np.arange(3), (2, 2, 3)), [2, 2])
    assert (np.asarray(shifts(jax.random.key(1), centre, exists, budget)) == centre).all()
    assert (np.asarray(offspring(jax.random.key(1), centre, exists, budget)) == centre).all()


def test_a_kind_that_cannot_move_leaves_all_shifts_to_the_other() -> None:
    exists = np.zeros((2, 5, 9), bool)
    exists[ATTENTION, :, 4] = True
    exists[FFN] = True
    budget = Budget.of_units(np.broadcast_to(np.arange(9), (2, 5, 9)), [20, 20])
    change = np.asarray(shifts(jax.random.key(2), np.full((2, 5), 4), exists, budget)) - 4
    assert not change[:, ATTENTION].any()
    assert (np.abs(change[:, FFN]).sum(axis=-1) == 2).all()


def test_every_movable_site_is_drawn_equally_often() -> None:
    draws, depth = 4000, 4
    parent, exists = jnp.full((2, depth), 2), jnp.ones((2, depth, 5), bool)
    budget = Budget.of_units(np.broadcast_to(np.arange(5), (2, depth, 5)), [2 * depth] * 2)
    shift = jax.jit(jax.vmap(lambda k: space.sparsity_shift(k, parent, exists, budget)))
    change = np.asarray(shift(jax.random.split(jax.random.key(0), draws))) - 2
    gains = (change == 1).sum(axis=0) / draws
    loses = (change == -1).sum(axis=0) / draws
    # Eight sites alike: 1/8 each, within five standard deviations.
    deviation = 5 * np.sqrt(1 / 8 * 7 / 8 / draws)
    assert np.abs(gains - 1 / 8).max() < deviation
    assert np.abs(loses - 1 / 8).max() < deviation
    pairs = np.stack([np.argmax(change.reshape(draws, -1), 1), np.argmin(change.reshape(draws, -1), 1)])
    counts = np.unique(pairs, axis=1, return_counts=True)[1] / draws
    assert len(counts) == 2 * depth * (depth - 1)
    assert np.abs(counts - 1 / len(counts)).max() < 5 * np.sqrt(1 / 24 / draws)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "odds"), [(4, [7, 5, 3, 1]), (1, [1])])
def test_the_number_of_shifts_is_the_smaller_of_two_draws(most: int, odds: list[int]) -> None:
    # With this many sites two shifts hardly ever cancel, so the net change counts them.
    draws, depth = 1000, 100
    parent, exists = jnp.full((2, depth), 2), jnp.ones((2, depth, 5), bool)
    budget = Budget.of_units(np.broadcast_to(np.arange(5), (2, depth, 5)), [2 * depth] * 2)
    children = jax.vmap(lambda k: space.mutate(k, parent, exists, budget, most))
    moved = np.abs(np.asarray(children(jax.random.split(jax.random.key(3), draws))) - 2).sum(axis=(1, 2)) // 2
    assert moved.min() >= 1
    assert moved.max() <= most
    frequency = np.bincount(moved, minlength=most + 1)[1:] / draws
    np.testing.assert_allclose(frequency, np.array(odds) / sum(odds), atol=0.06)


def test_levels_of_kept_units() -> None:
    kinds = (Kind("attention", 4, 1), Kind("ffn", 48, 8))
    grid = space.level_grid(kinds, np.array([[1, 3], [8, 40]]), 5, 1 / 6)
    levels = np.array([[3, 1], [1, 3]])
    np.testing.assert_array_equal(space.levels_of(grid, space.kept_units(grid, levels)), levels)
