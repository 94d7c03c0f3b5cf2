"""The fit of a tabulated problem: what a problem of the same form has produced, it predicts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_fit import Columns, Scores, errors_of, fit_problem, fitted, predicted, ridge

from tyr_jax.problems import Problem, synthetic_problem
from tyr_jax.search.contract import Query
from tyr_jax.search.draws import scattered


@pytest.fixture(scope="module")
def truth() -> Problem:
    """A problem whose objective is the exponential of a tenth of a synthetic one's tables."""
    small: dict[str, Any] = {"depth": 3, "levels": 5, "sequences": 4, "length": 8, "shifts": 6}
    plain = synthetic_problem(seed=2, noise=0.3, interaction=0.8, **small)
    less = {
        "alone": 0.1 * plain.alone,
        "pairs": 0.1 * plain.pairs,
        "held_out_alone": 0.1 * plain.held_out_alone,
    }
    return plain.replace(link="exp", base=plain.base - 1.0, **less)  # type: ignore[attr-defined,no-any-return]


def scores_of(problem: Problem, count: int, seed: int) -> Scores:
    start = jnp.asarray(problem.start)
    levels = scattered(jax.random.key(seed), problem.space, count, start)
    levels = np.asarray(jnp.concatenate([start[None], levels]))
    each = [problem.answer(Query(levels, np.array([s]))) for s in range(problem.space.sequences)]
    return Scores(levels, np.column_stack(each), np.asarray(problem.held_out(levels)))


def test_ridge_by_hand() -> None:
    """One column of ones and a penalty of one: the sum over one more than the count."""
    found = ridge(np.ones((3, 1)), np.array([[2.0], [4.0], [6.0]]), np.array([1.0]))
    assert found.item() == pytest.approx(12 / 4)


@pytest.mark.slow
def test_candidates_that_were_left_out_are_predicted(truth: Problem) -> None:
    problem = fit_problem(truth.space, np.asarray(truth.start), scores_of(truth, 600, 0))
    errors = errors_of(problem, scores_of(truth, 200, 1))
    assert errors["search R²"] > 0.97
    assert errors["held-out R²"] > 0.97
    assert errors["search rank correlation"] > 0.97
    # Sequences differ, and the fit tells them apart.
    levels = scores_of(truth, 50, 2).levels
    for sequence in range(4):
        query = Query(levels, np.array([sequence]))
        told, meant = np.asarray(problem.answer(query)), np.asarray(truth.answer(query))
        assert np.corrcoef(told, meant)[0, 1] > 0.95


@pytest.mark.slow
def test_a_fit_and_its_problem_say_the_same(truth: Problem) -> None:
    scores = scores_of(truth, 100, 3)
    columns = Columns.around(truth.space, np.asarray(truth.start))
    logs = np.log(np.column_stack([scores.search, scores.held_out]))
    fit = fitted(columns, scores.levels, logs)
    assert (fit.pairs == fit.pairs.T).all()
    assert (np.diagonal(fit.pairs) == 0).all()
    assert predicted(columns, fit, scores.levels[:1])[0] == pytest.approx(fit.base)
    # A feature is 0 at the start, and at most 1 away from it.
    assert np.abs(columns.feature).max() == pytest.approx(1)
    levels = scores.levels[5]
    sites = [(kind, layer) for kind in (0, 1) for layer in range(3)]
    total = fit.base.copy()
    for i, one in enumerate(sites):
        total += fit.alone[(slice(None), *one, levels[one])]
        for j in range(i):
            other = sites[j]
            features = columns.feature[(*one, levels[one])] * columns.feature[(*other, levels[other])]
            total += fit.pairs[i, j] * features
    np.testing.assert_allclose(predicted(columns, fit, levels[None])[0], total, rtol=1e-9)
