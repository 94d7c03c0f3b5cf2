import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tyr_jax.search import loop, surrogate
from tyr_jax.search.contract import SearchSpace, Sites
from tyr_jax.search.descent import Descent
from tyr_jax.search.loop import Scorer, SlopesFunction
from tyr_jax.space import Budget, values_at


def level_units(start: np.ndarray, levels: int) -> Budget:
    """A budget in which a level costs its number, and each kind may spend as much as `start [S, L]` does."""
    return Budget.of_units(np.broadcast_to(np.arange(levels), (*start.shape, levels)), start.sum(axis=-1))


@settings(max_examples=80)
@given(
    sites=st.integers(1, 5),
    levels=st.integers(1, 4),
    exact=st.booleans(),
    quantum=st.sampled_from([1, 7]),
    seed=st.integers(0, 999),
)
def test_the_answer_is_the_cheapest_of_all_that_keep_the_budget(
    sites: int, levels: int, exact: bool, quantum: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cost, price = rng.normal(size=(sites, levels)), quantum * rng.integers(0, 6, (sites, levels))
    start = rng.integers(0, levels, sites)
    missing = rng.random(cost.shape) < 0.2
    missing[np.arange(sites), start] = False
    cost[missing] = np.inf
    row = np.arange(sites)
    limit = int(price[row, start].sum()) if exact else int(rng.integers(0, 5 * quantum * sites))
    totals = {
        choice: float(cost[row, choice].sum())
        for choice in itertools.product(range(levels), repeat=sites)
        if np.isfinite(cost[row, choice]).all()
        and (price[row, choice].sum() == limit if exact else price[row, choice].sum() <= limit)
    }
    found = surrogate.cheapest_levels(cost, price, limit, exact)
    if not totals:
        assert found is None
    else:
        assert totals[tuple(map(int, found))] == pytest.approx(min(totals.values()))


def test_a_budget_of_many_parts_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "BINS", 50)
    rng = np.random.default_rng(0)
    price = np.sort(rng.integers(10**6, 10**9, (20, 5)), axis=1)
    found = surrogate.cheapest_levels(-price.astype(float), price, int(price[:, 2].sum()))
    spent = price[np.arange(20), found].sum()
    assert 0.8 * price[:, 2].sum() < spent <= price[:, 2].sum()


def test_a_site_that_matters_gains_what_one_that_does_not_gives() -> None:
    error = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 3, 1))
    share = np.array([[0.1, 5.0, 1.0], [1.0, 1.0, 1.0]])
    sites, centre = Sites(error, share, np.ones((2, 3, 5), bool)), np.full((2, 3), 2)
    start = surrogate.estimated_start(sites, level_units(centre, 5), centre, reach=1)
    assert start[0].tolist() == [1, 3, 2]
    assert start.sum(axis=1).tolist() == [6, 6]


def test_kinds_compete_for_parameters() -> None:
    error = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 2, 1))
    sites, centre = (
        Sites(error, np.array([[9.0, 9.0], [1.0, 1.0]]), np.ones((2, 2, 5), bool)),
        np.full((2, 2), 2),
    )
    parameters = np.broadcast_to(1000 * np.arange(5), (2, 2, 5))
    start = surrogate.estimated_start(sites, Budget.of_prices(parameters[None], [8300]), centre, reach=2)
    assert start.tolist() == [[4, 4], [0, 0]]
    again = surrogate.nearest(Budget.of_prices(parameters[None], [6999]), sites.exists, start)
    assert again.sum() == 6
    assert np.abs(again - start).sum() == 2
    assert surrogate.nearest(Budget.of_prices(parameters[None] + 1000, [3999]), sites.exists, start) is None


def test_what_is_left_of_a_budget_becomes_neurons_where_they_are_worth_most() -> None:
    units = np.tile(np.array([0, 16, 32, 48]), (2, 3, 1))
    levels, kept = np.full((2, 3), 1), np.full((2, 3), 16)
    error = np.tile([1.0, 0.5, 0.2, 0.0], (2, 3, 1))
    sites = Sites(error[1], np.array([1.0, 3.0, 2.0]), np.ones((3, 4), bool))
    assert surrogate.widened(kept[1], levels[1], sites, units[1], 3, 8).tolist() == [16, 32, 24]
    sites.exists[1, 2] = False
    assert surrogate.widened(kept[1], levels[1], sites, units[1], 9, 8).tolist() == [32, 16, 32]


def test_levels_that_do_not_exist_are_never_chosen() -> None:
    error = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 2, 1))
    exists = np.ones((2, 2, 5), bool)
    exists[0, 0, 3:] = False
    sites, centre = Sites(error, np.array([[9.0, 1.0], [9.0, 1.0]]), exists), np.full((2, 2), 2)
    start = surrogate.estimated_start(sites, level_units(centre, 5), centre, reach=1)
    assert start[0].tolist() == [2, 2]
    assert start[1].tolist() == [3, 1]


@pytest.mark.parametrize(("by", "expected"), [(0, [1, 2, 3]), (1, [np.inf, 1, 2]), (4, [np.inf] * 3)])
def test_shifted(by: int, expected: list[float]) -> None:
    np.testing.assert_array_equal(surrogate.shifted(np.array([1.0, 2.0, 3.0]), by), expected)


def quadratic(sensitivity: np.ndarray, sites: Sites, levels: np.ndarray) -> np.ndarray:
    """Slopes `[S, L, E]` at `levels` if each site contributes only `sensitivity [S, L]` × its error."""
    gain = sites.error - values_at(sites.error, levels)[..., None]
    return np.where(gain < 0, 2 * gain, 0.0) * sensitivity[..., None]


def test_slopes_and_errors_of_a_quadratic_are_its_exact_change() -> None:
    error = np.tile([0.9, 0.5, 0.3, 0.1, 0.0], (2, 3, 1)) * np.array([1.0, 2.0, 3.0])[:, None]
    sensitivity = np.array([[1.0, 4.0, 0.5], [2.0, 0.3, 3.0]])
    levels = np.array([[2, 1, 3], [2, 2, 1]])
    sites = Sites(error, np.ones((2, 3)), np.ones(error.shape, bool))
    slopes = quadratic(sensitivity, sites, levels)
    np.testing.assert_allclose(surrogate.sensitivity(slopes[None], sites, levels), sensitivity)
    change = surrogate.expected_change(slopes[None], sites, levels)
    gain = error - values_at(error, levels)[..., None]
    np.testing.assert_allclose(change, sensitivity[..., None] * gain, atol=1e-12)


def test_a_sensitivity_on_which_parts_of_a_text_disagree_is_drawn_towards_the_share() -> None:
    error, levels = np.tile([1.0, 0.5, 0.25, 0.0], (2, 5, 1)), np.full((2, 5), 1)
    share = np.array([[1.0, 2.0, 1.0, 1.0, 1.0]] * 2)
    sites = Sites(error, share, np.ones(error.shape, bool))
    # Sites 0 to 2 are as expected. Site 3 has a quarter of that in all parts, site 4 only on average.
    steady = np.array([3.0, 6.0, 1.5, 0.75, 0.75])
    doubtful = np.array([0.0, 0.0, 3.0, 0.0])
    parts = [np.stack([np.append(steady[:4], last)] * 2) for last in doubtful]
    found = surrogate.sensitivity(np.stack([quadratic(part, sites, levels) for part in parts]), sites, levels)
    factor = np.median(steady / share[0])
    np.testing.assert_allclose(found[:, :4], np.tile(steady[:4], (2, 1)))
    assert (found[:, 4] > 0.75).all()
    assert (found[:, 4] < factor).all()


def test_where_slopes_tell_nothing_the_share_does() -> None:
    error, levels = np.tile([0.9, 0.4, 0.0], (2, 3, 1)), np.array([[1, 1, 2], [1, 1, 2]])
    sites = Sites(error, np.array([[1.0, 1.0, 5.0]] * 2), np.ones(error.shape, bool))
    slopes = quadratic(np.full((2, 3), 3.0), sites, levels)[None]
    np.testing.assert_allclose(surrogate.sensitivity(slopes, sites, levels), [[3.0, 3.0, 15.0]] * 2)
    assert not surrogate.sensitivity(np.zeros_like(slopes), sites, levels).any()


def test_fewer_units_are_never_better_and_missing_levels_are_never_proposed() -> None:
    error = np.tile([0.5, 0.2, 0.0], (2, 2, 1))
    slopes = np.array([[[3.0, 1.0, 0.0], [0.0, 0.0, -5.0]], [[0.0, 0.0, -1.0], [-2.0, 0.0, -9.0]]])
    exists = np.ones((2, 2, 3), bool)
    exists[1, 1, 2] = False
    levels, sites = np.array([[2, 1], [1, 1]]), Sites(error, np.zeros((2, 2)), exists)
    change = surrogate.expected_change(slopes[None], sites, levels)
    assert change[0, 0].tolist() == [3.0, 1.0, 0.0]
    assert change[1, 1].tolist() == [0.0, 0.0, np.inf]
    found = surrogate.proposals(slopes[None], sites, level_units(levels, 3), levels)
    assert found.shape == (len(surrogate.CAUTIONS), 2, 2)
    # The shift costs 1 and gains 5. The other kind can only shift in one way.
    assert found[0].tolist() == [[1, 2], [2, 0]]
    assert (found.sum(axis=-1) == levels.sum(axis=-1)).all()


def test_steps_lead_down_to_the_best_and_stay_there() -> None:
    error = np.tile([0.9, 0.5, 0.3, 0.1, 0.0], (2, 4, 1))
    sensitivity = np.array([[1.0, 9.0, 1.0, 9.0], [5.0, 1.0, 1.0, 5.0]])
    exists, start = np.ones(error.shape, bool), np.full((2, 4), 2)
    sites, kept = Sites(error, np.ones((2, 4)), exists), np.broadcast_to(np.arange(5), error.shape)
    space = SearchSpace(kept, exists, level_units(start, 5), sites, sequences=6, length=8)
    seen: list[list[int]] = []

    def total(levels: np.ndarray) -> float:
        return float(np.sum(sensitivity * values_at(error, levels)))

    def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        seen.append(sequences.tolist())
        return quadratic(sensitivity, sites, levels)[None]

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        seen.append(sequences.tolist())
        assert len(candidates) == 1 + len(surrogate.CAUTIONS)
        values.append([total(candidate) for candidate in candidates])
        return np.array(values[-1])

    def found(
        start: np.ndarray, score: Scorer = score, slopes: SlopesFunction = slopes, steps: int = 1
    ) -> np.ndarray:
        search, key = Descent(generations=steps, tokens=16), jax.random.key(0)
        return loop.run(search, loop.begin_search(search, key, start, space), space, score, slopes=slopes)

    values: list[list[float]] = []
    best = min(
        (np.stack(pair) for pair in itertools.product(*[list(balanced(4, 5, 8))] * 2)),
        key=total,
    )
    one = found(start)
    assert np.abs(one - start).max() == 1
    assert values[0][0] == pytest.approx(total(start))
    order = np.random.default_rng((0, 0)).permutation(6).tolist()
    assert seen == [order[:2], order[2:4]]
    two = found(one)
    assert total(two) == pytest.approx(total(best))
    np.testing.assert_array_equal(found(two), two)
    assert values[-1][0] == pytest.approx(total(two))
    np.testing.assert_array_equal(found(start, steps=2), two)

    def scored(own: float, *others: float) -> bool:
        """Whether a proposal is accepted with these scores."""
        return bool((found(start, lambda *_: np.array([own, *others])) != start).any())

    assert scored(1.0, 2.0, 0.9)
    assert scored(1.0, 0.99, np.nan)
    assert scored(np.nan, np.nan, 3.0)
    assert not scored(1.0, 1.01, np.nan)
    assert not scored(np.nan, np.nan, np.inf)

    def broken(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.full_like(slopes(levels, sequences), np.nan)

    np.testing.assert_array_equal(found(two, slopes=broken), two)
    assert total(found(start, slopes=broken)) <= total(start)


def balanced(sites: int, levels: int, total: int) -> list[np.ndarray]:
    """All distributions of one kind that sum to `total`."""
    return [
        np.array(choice) for choice in itertools.product(range(levels), repeat=sites) if sum(choice) == total
    ]


def test_several_resources_are_kept_at_little_cost_by_brute_force() -> None:
    """Among the best fiftieth of all that keep both limits, and never beyond a limit."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        cost = np.sort(rng.exponential(size=(2, 3, 4)))[..., ::-1]
        prices = np.cumsum(rng.integers(1, 20, (2, 2, 3, 4)), axis=-1)
        everything = np.array(list(itertools.product(range(4), repeat=6))).reshape(-1, 2, 3)
        limits = [int(values_at(price, np.full((2, 3), 2)).sum() * 0.8) for price in prices]
        budget = Budget.of_prices(prices, limits)
        found = surrogate.cheapest(cost, budget, np.full((2, 3), 1), 4)
        assert found is not None
        assert budget.allows(found)
        allowed = everything[budget.allows(everything)]
        totals = values_at(cost, allowed).sum(axis=(1, 2))
        assert values_at(cost, found).sum() <= np.quantile(totals, 0.02)


def test_limits_that_cannot_be_kept_together() -> None:
    prices = np.ones((2, 2, 3, 4), int) * np.arange(1, 5)
    budget = Budget.of_prices(prices, [100, 5])
    assert surrogate.cheapest(np.zeros((2, 3, 4)), budget, np.full((2, 3), 1), 4) is None
