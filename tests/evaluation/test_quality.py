"""Perplexity and divergence against a float64 model in numpy."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from reference import kl64, logits64, nll64

from tyr_jax.evaluation import quality
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import random_params
from tyr_jax.runtime.batches import batches

WINDOWS, LENGTH = 5, 16


class World(NamedTuple):
    config: ModelConfig
    dense: Params
    sparse: Params
    windows: np.ndarray


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config()
    dense, sparse = (random_params(config, jax.random.key(seed), scale=0.2) for seed in (0, 1))
    # Pruning leaves embeddings, head and norms alone.
    sparse = dense | {"blocks": sparse["blocks"]}
    windows = np.random.default_rng(0).integers(0, config.vocab, (WINDOWS, LENGTH))
    return World(config, dense, sparse, windows)


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "batches", functools.partial(batches, tokens=2 * LENGTH + 3))


def test_quality_is_that_of_whole_softmaxes(world: World, two_at_a_time: None) -> None:
    states, own = quality.measure_dense(world.dense, world.windows, world.config)
    dense = logits64(world.dense, world.windows, world.config)
    sparse = logits64(world.sparse, world.windows, world.config)
    assert states.hidden.shape == (WINDOWS, LENGTH, world.config.hidden)
    assert all(isinstance(array, np.ndarray) for array in states)
    head = np.asarray(world.dense["unembed"], np.float64)
    np.testing.assert_allclose(states.hidden @ head.T, dense, rtol=1e-4, atol=1e-4)
    assert own.perplexity == pytest.approx(math.exp(nll64(dense, world.windows).mean()), rel=1e-5)
    assert own.kl == 0.0
    done: list[int] = []
    measured = quality.measure(world.sparse, world.windows, world.config, states, done.append)
    assert done == [2, 2, 1]
    assert measured.perplexity == pytest.approx(math.exp(nll64(sparse, world.windows).mean()), rel=1e-5)
    assert measured.kl == pytest.approx(kl64(dense, sparse).mean(), rel=1e-4)
    assert abs(math.log(measured.perplexity / own.perplexity)) > 0.01


def test_batches_do_not_change_the_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[float]:
        states, own = quality.measure_dense(world.dense, world.windows, world.config)
        return [own.perplexity, *quality.measure(world.sparse, world.windows, world.config, states)]

    whole = both()
    monkeypatch.setattr(quality, "batches", functools.partial(batches, tokens=2 * LENGTH))
    assert both() == pytest.approx(whole, rel=1e-5)


def test_the_dense_model_does_not_diverge_from_itself(world: World) -> None:
    states, own = quality.measure_dense(world.dense, world.windows, world.config)
    measured = quality.measure(world.dense, world.windows, world.config, states)
    assert abs(measured.kl) < 1e-6
    assert measured.perplexity == pytest.approx(own.perplexity, rel=1e-6)


def test_without_a_teacher_there_is_no_divergence(world: World) -> None:
    measured = quality.measure(world.sparse, world.windows, world.config)
    assert math.isnan(measured.kl)
    assert measured.perplexity > 1


def test_a_head_that_predicts_nothing_has_the_perplexity_of_its_vocabulary(world: World) -> None:
    params = world.dense | {"unembed": 0 * world.dense["unembed"]}
    measured = quality.measure(params, world.windows, world.config)
    assert measured.perplexity == pytest.approx(world.config.vocab, rel=1e-5)


def test_a_hopeless_model_has_a_finite_perplexity(world: World) -> None:
    params = world.dense | {"unembed": 1e4 * world.dense["unembed"]}
    measured = quality.measure(params, world.windows, world.config)
    assert measured.perplexity == pytest.approx(math.exp(700.0))


def test_a_broken_model_has_no_perplexity(world: World) -> None:
    params = world.dense | {"final_norm": world.dense["final_norm"] * np.nan}
    assert math.isnan(quality.measure(params, world.windows, world.config).perplexity)
