"""Scores and slopes within a program, beside those that the host plans."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_supernet

from tyr_jax import space
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import random_params
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.scoring import nested, scorer, slopes, traced
from tyr_jax.scoring.objective import KL, HiddenKL, Objective, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take, teacher_targets

World = tuple[ModelConfig, nested.Nested, np.ndarray, TeacherBatch]


def world_of(config: ModelConfig, objective: Objective) -> World:
    """(the configuration, a nested supernet, candidates `[C, S, L]`, a pool)."""
    kinds, heads = PruningSettings().kinds(config), config.dense_shape.heads
    grid = space.level_grid(kinds, np.array([[2, 2, 2], [24, 24, 24]]), 5, 1 / 6)
    params = random_params(config, jax.random.key(0), scale=0.2)
    net = nested.nest(params, random_supernet(config, grid, heads), config)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (4, 16))
    pool = teacher_targets(params, tokens, config, objective)
    return config, net, rng.integers(0, 5, (6, 2, 3)), pool


@pytest.mark.parametrize("objective", [KL(), HiddenKL()])
def test_scores_are_those_of_the_scorer(
    tiny_config: Callable[..., ModelConfig], objective: Objective
) -> None:
    config, net, candidates, pool = world_of(tiny_config(), objective)
    sequences, scoring = np.array([2, 0, 3]), Scoring.of_model(config, objective)
    program = jax.jit(traced.scores, static_argnames="scoring")
    found = program(net, jnp.asarray(candidates), take(pool, sequences), scoring)
    expected = scorer.score_population(net, candidates, pool, sequences, config, objective)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_every_run_beside_others_scores_on_its_own_text(tiny_config: Callable[..., ModelConfig]) -> None:
    config, net, candidates, pool = world_of(tiny_config(), KL())
    scoring, sequences = Scoring.of_model(config, KL()), np.array([[0, 1], [3, 2]])

    @jax.jit
    @jax.vmap
    def runs(candidates: jax.Array, sequences: jax.Array) -> jax.Array:
        return traced.scores(net, candidates, take(pool, sequences), scoring)  # type: ignore[arg-type]

    found = runs(jnp.asarray(candidates.reshape(2, 3, 2, 3)), jnp.asarray(sequences))
    for own, text, ours in zip(candidates.reshape(2, 3, 2, 3), sequences, found, strict=True):
        expected = scorer.score_population(net, own, pool, text, config, KL())
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_full_width_gives_the_scores_of_fitting_widths(tiny_config: Callable[..., ModelConfig]) -> None:
    config, net, candidates, pool = world_of(tiny_config(), KL())
    given: Any = net, jnp.asarray(candidates[0]), pool, Scoring.of_model(config, KL())
    fitting, full = (traced.score_at(*given, fitting=fitting) for fitting in (True, False))
    np.testing.assert_allclose(fitting, full, rtol=1e-4)


def test_slopes_are_those_of_the_host(tiny_config: Callable[..., ModelConfig]) -> None:
    config, net, candidates, pool = world_of(tiny_config(), KL())
    scoring = Scoring.of_model(config, KL())
    found = traced.slopes(net, jnp.asarray(candidates[0]), pool, scoring)
    assert found.shape == (4, *net.kept.shape)
    expected = slopes.pool_slopes(net, candidates[0], pool, np.arange(4), config, KL())
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), rtol=1e-3, atol=1e-5)
