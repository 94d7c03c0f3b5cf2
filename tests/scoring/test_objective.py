"""Losses and observed states against float64 numpy, with whole softmaxes."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from reference import VOCAB, head, kl64, logits, nll64, states

from tyr_jax.model import decoder
from tyr_jax.model.prediction import log_normaliser, predict
from tyr_jax.model.spec import ModelConfig
from tyr_jax.scoring import objective
from tyr_jax.scoring.objective import KL, HiddenKL, Objective, Perplexity, Student, TeacherBatch

Configs = Callable[..., ModelConfig]


def test_hidden_distance_is_relative_and_summed_over_layers() -> None:
    dense, sparse = (np.stack([states((2, 7), seed), 9 * states((2, 7), seed + 1)]) for seed in (0, 5))
    distances = [np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(dense, sparse, strict=True)]
    ours = float(objective.hidden_distance(*(jnp.asarray(x).swapaxes(0, 1) for x in (dense, sparse))))
    assert ours == pytest.approx(sum(distances), rel=1e-5)


def test_hidden_distance_of_states_in_bfloat16_is_float32() -> None:
    dense, sparse = (jnp.asarray(states((2, 1, 7), seed), jnp.bfloat16) for seed in (0, 1))
    ours = objective.hidden_distance(dense, sparse)
    exact = [np.asarray(array, np.float64) for array in (dense, sparse)]
    assert ours.dtype == jnp.float32
    assert float(ours) == pytest.approx(np.sum((exact[0] - exact[1]) ** 2) / np.sum(exact[0] ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(30, (0, 15, 29)), (32, (0, 16, 31)), (3, (0, 1, 2)), (2, (0, 1, 1)), (1, (0, 0, 0))],
)
def test_first_median_and_last_layer_are_observed(depth: int, layers: tuple[int, ...]) -> None:
    assert HiddenKL().observed_layers(depth) == layers
    assert KL().observed_layers(depth) == ()
    assert Perplexity().observed_layers(depth) == ()


@pytest.mark.parametrize(
    "chosen",
    [
        KL(),
        KL(beta=0.5),
        HiddenKL(),
        HiddenKL(alpha=0.25, beta=3.0),
        HiddenKL(alpha=1.0, beta=0.0),
        Perplexity(),
    ],
    ids=str,
)
def test_score_is_equation_6(chosen: Objective) -> None:
    params, shape = head(False), (3, 11)
    tokens = np.random.default_rng(3).integers(0, VOCAB, shape)
    dense, sparse = states(shape, 0), states(shape, 1)
    dense_layers, layers = (np.stack([states(shape, s), states(shape, s + 1)]) for s in (10, 20))
    if not isinstance(chosen, HiddenKL):
        dense_layers, layers = dense_layers[:0], layers[:0]
    batch = TeacherBatch(
        jnp.asarray(tokens),
        predict(decoder.head(params), jnp.asarray(dense)),
        jnp.asarray(dense_layers.swapaxes(0, 1)),
    )
    observed = jnp.asarray(layers.swapaxes(0, 1))
    rows, final = decoder.head(params), jnp.asarray(sparse)
    ours = chosen(batch, Student(rows, final, log_normaliser(rows, final), observed))
    kl = kl64(logits(params, dense), logits(params, sparse)).mean()
    hidden = sum(np.sum((a - b) ** 2) / np.sum(a**2) for a, b in zip(dense_layers, layers, strict=True))
    perplexity = isinstance(chosen, Perplexity)
    alpha, beta = getattr(chosen, "alpha", 0.0), getattr(chosen, "beta", 0.0)
    expected = nll64(logits(params, sparse), tokens).mean() if perplexity else alpha * hidden + beta * kl
    assert ours.shape == ()
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
