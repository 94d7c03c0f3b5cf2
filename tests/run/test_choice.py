"""Which of a run's models is written."""

import math
from typing import Any

import numpy as np
import pytest

from tyr_jax.run import pipeline
from tyr_jax.run.choice import choose, doubt


def test_the_doubt_is_that_of_a_paired_t_test() -> None:
    """By hand: differences -1, -2, -3, -2 have mean -2 and standard error 0.408, so t is -4.899. With three
    degrees of freedom, a table of the t distribution has p = 0.0081."""
    ours, simpler = np.array([5.0, 7.0, 1.0, 3.0]), np.array([6.0, 9.0, 4.0, 5.0])
    assert doubt(ours, simpler) == pytest.approx(0.0081, abs=5e-5)
    assert doubt(simpler, ours) == pytest.approx(1 - 0.0081, abs=5e-5)


@pytest.mark.parametrize(
    ("ours", "simpler", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1),
        ([1.0, 2.0], [2.0, 3.0], 0),
        ([2.0, 3.0], [1.0, 2.0], 1),
        ([math.nan, 0.0], [1.0, 2.0], 1),
        ([1.0, 2.0], [math.inf, 2.0], 0),
        ([math.inf, 2.0], [math.inf, 2.0], 1),
    ],
)
def test_equal_differences_and_overflow(ours: list[float], simpler: list[float], expected: float) -> None:
    assert doubt(np.array(ours), np.array(simpler)) == expected


SPREAD = np.array([0.1, -0.1, 0.2, -0.2, 0.05, -0.05])


@pytest.mark.parametrize(
    ("means", "written"),
    [
        ({"uniform": 1.0, "searched": 0.5}, "searched"),
        # As different, but not the same on every sequence, it may be chance.
        ({"uniform": 1.0, "searched": 0.95}, "uniform"),
        ({"uniform": 1.0, "searched": 1.5}, "uniform"),
        ({"uniform": 1.0, "searched": 0.5, "reconstructed": 0.3}, "reconstructed"),
        ({"uniform": 1.0, "searched": 0.5, "reconstructed": 0.49}, "searched"),
        ({"uniform": 1.0, "searched": 1.5, "reconstructed": 0.5}, "reconstructed"),
        ({"uniform": 1.0, "reconstructed": 1.5}, "uniform"),
        ({"uniform": math.nan, "searched": 9.0}, "searched"),
        ({"uniform": 1.0, "searched": math.nan, "reconstructed": math.nan}, "uniform"),
    ],
)
def test_a_model_is_written_only_if_it_is_surely_better(means: dict[str, float], written: str) -> None:
    shifts = {"uniform": 0, "searched": 1, "reconstructed": 3}
    divergences = {name: mean + np.roll(SPREAD, shifts[name]) for name, mean in means.items()}
    name, choice = choose(divergences)
    assert name == written
    assert choice.sequences == len(SPREAD)
    assert [each.model for each in choice.compared] == [*means][1:]
    for model, kl in choice.kl.items():
        assert kl is None if math.isnan(means[model]) else kl == pytest.approx(means[model])

    def pruned(divergence: np.ndarray | None) -> Any:
        nothing: Any = None
        return pipeline.Pruned({}, nothing, np.zeros((2, 1)), 1, {}, divergence)

    models: Any = {model: pruned(divergences[model]) if model in means else None for model in shifts}
    nothing: Any = None
    outcome = pipeline.Outcome(nothing, nothing, nothing, rounds=[], **models)
    assert outcome.written == written
    assert outcome.final is models[written]


def test_rounding_can_make_the_divergence_of_a_model_like_the_dense_one_negative() -> None:
    name, choice = choose({"uniform": np.array([0.0, -1e-9]), "searched": np.array([-1e-9, 0.0])})
    assert name == "uniform"
    assert choice.kl["searched"] == pytest.approx(-5e-10)


def test_a_single_model_is_not_compared() -> None:
    nothing: Any = None
    only = pipeline.Pruned({}, nothing, np.zeros((2, 1)), 1, {})
    assert pipeline.Outcome(nothing, nothing, nothing, only, None, []).chosen == ("uniform", None)
