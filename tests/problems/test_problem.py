"""Tabulated problems, beside sums written out in float64."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.errors import UserError
from tyr_jax.problems import Problem, stack_problems, synthetic_problem
from tyr_jax.search.contract import Query
from tyr_jax.space import values_at

SMALL: dict[str, Any] = {"depth": 3, "levels": 5, "sequences": 4, "length": 8, "shifts": 6}


def by_hand(problem: Problem, levels: np.ndarray, sequence: int) -> float:
    """The objective of `levels [S, L]` on a sequence, site by site."""
    sites = [(kind, layer) for kind in (0, 1) for layer in range(levels.shape[1])]
    level = [int(levels[site]) for site in sites]
    total = sum(float(problem.alone[sequence][site][e]) for site, e in zip(sites, level, strict=True))
    for (i, one), (j, other) in itertools.combinations(list(enumerate(sites)), 2):
        features = float(problem.feature[one][level[i]]) * float(problem.feature[other][level[j]])
        total += float(problem.pairs[i, j]) * features
    return total


def test_the_fitness_is_the_mean_over_sequences_of_costs_and_interactions() -> None:
    problem = synthetic_problem(seed=1, noise=0.5, **SMALL)
    candidates = np.stack([problem.start, [[1, 3, 2], [2, 4, 0]]])
    sequences = np.array([2, 0])
    fitness = problem.answer(Query(candidates, sequences))
    expected = [np.mean([by_hand(problem, levels, s) for s in sequences]) for levels in candidates]
    np.testing.assert_allclose(fitness, expected, rtol=1e-4)


@pytest.mark.slow
def test_slopes_are_derivatives_towards_every_level() -> None:
    problem = synthetic_problem(seed=2, noise=0.5, **SMALL)
    levels, sequence, step = np.asarray(problem.start), 1, 1e-2
    slopes = problem.answer(Query(levels[None], np.array([sequence, 3]), "slopes"))
    assert slopes.shape == (1, 2, 2, 3, 5)
    shares = np.asarray(problem.chosen(levels[None])[0])
    for kind, layer, level in [(0, 1, 4), (1, 2, 0), (1, 0, 2)]:
        moved = shares.copy()
        moved[kind, layer] = (1 - step) * shares[kind, layer] + step * np.eye(5)[level]
        ahead, now = (float(problem.value(jnp.asarray(x), problem.alone[sequence])) for x in (moved, shares))
        np.testing.assert_allclose(
            slopes[0, 0, kind, layer, level], (ahead - now) / step, rtol=0.1, atol=1e-3
        )
    # Nothing changes on the way to where one is.
    np.testing.assert_allclose(values_at(np.asarray(slopes[0, 0]), levels), 0, atol=1e-6)


@pytest.mark.parametrize("ruggedness", [0.0, 4.0])
@pytest.mark.parametrize("interaction", [0.0, 0.9])
def test_the_optimum_of_a_synthetic_problem_is_zero_by_brute_force(
    ruggedness: float, interaction: float
) -> None:
    problem = synthetic_problem(seed=4, ruggedness=ruggedness, interaction=interaction, **SMALL)
    everything = np.array(list(itertools.product(range(5), repeat=6))).reshape(-1, 2, 3)
    within = everything[problem.space.budget.allows(everything)]
    values = np.asarray(problem.held_out(within))
    np.testing.assert_allclose(values.min(), float(problem.optimum), atol=1e-5)
    assert (values >= -1e-5).all()
    assert float(problem.held_out(problem.start)) > 0.01


@pytest.mark.parametrize(("ruggedness", "minima"), [(1.4, 0), (1.6, 1), (4.0, 2)])
def test_a_rugged_problem_has_local_minima(ruggedness: float, minima: int) -> None:
    """By hand: `d² + ruggedness·(1 − cos πd)` of a site alone, up to six steps from the optimum."""
    problem = synthetic_problem(seed=4, ruggedness=ruggedness, interaction=0.0, depth=6, levels=17)
    alone = np.asarray(problem.held_out_alone)
    kind, layer, best = min(np.argwhere(alone == 0).tolist(), key=lambda site: abs(site[2] - 3))
    on_way = alone[kind, layer, best : best + 7]
    assert len(on_way) == 7
    between = on_way[1:-1]
    assert ((between < on_way[:-2]) & (between < on_way[2:])).sum() == minima


def test_noise_differs_between_sequences_and_vanishes_over_all() -> None:
    problem = synthetic_problem(seed=6, noise=1.0, **SMALL)
    of_each = [float(problem.answer(Query(problem.start[None], np.array([s])))[0]) for s in range(4)]
    assert np.std(of_each) > 0.01
    whole = float(problem.answer(Query(problem.start[None], np.arange(4)))[0])
    np.testing.assert_allclose(whole, float(problem.held_out(problem.start)), rtol=1e-4)


def test_problems_of_different_shape_do_not_run_side_by_side() -> None:
    with pytest.raises(UserError, match="as many layers, levels and sequences"):
        stack_problems([synthetic_problem(**SMALL), synthetic_problem(**SMALL | {"depth": 4})])


@pytest.mark.parametrize(
    ("knob", "value"), [("levels", 4), ("depth", 0), ("interaction", 1.5), ("ruggedness", -1), ("noise", -1)]
)
def test_a_knob_out_of_range_is_refused(knob: str, value: float) -> None:
    with pytest.raises(UserError, match=knob):
        synthetic_problem(**SMALL | {knob: value})
