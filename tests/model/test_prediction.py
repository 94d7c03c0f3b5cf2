"""Predictions from hidden states against float64 numpy, with whole softmaxes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import HIDDEN, VOCAB, head, kl64, logits, nll64, states
from speeds import only_quick

from tyr_jax.model import decoder, prediction
from tyr_jax.model.attention import soft_cap
from tyr_jax.model.spec import Params

SHAPES = [(1, 3), (4, 16), (3, 43)]


@pytest.fixture(params=only_quick([16, 25, 2048], 25))
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Several chunks of the vocabulary with and without a remainder, and a single chunk."""
    monkeypatch.setattr(prediction, "VOCABULARY_CHUNK", request.param)
    return request.param


def kl(params: Params, dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """KL between the predictions of two arrays of hidden states."""
    head, student = decoder.head(params), jnp.asarray(sparse)
    answers, normaliser = (
        prediction.predict(head, jnp.asarray(dense)),
        prediction.log_normaliser(head, student),
    )
    return np.asarray(prediction.kl_divergence(head, answers, student, normaliser))


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", only_quick(SHAPES, (3, 43)))
@pytest.mark.usefixtures("chunk")
def test_kl_is_that_of_the_whole_softmax(shape: tuple[int, int], tied: bool, cap: float | None) -> None:
    params, dense, sparse = head(tied, cap=cap), states(shape, 0), states(shape, 1)
    ours = kl(params, dense, sparse)
    assert ours.shape == shape
    expected = kl64(logits(params, dense), logits(params, sparse))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("chunk")
def test_a_prediction_in_compact_form() -> None:
    params, hidden = head(False), states((3, 7), 0)
    ours = prediction.predict(decoder.head(params), jnp.asarray(hidden))
    exponentials = np.exp(logits(params, hidden))
    total = exponentials.sum(axis=-1)
    assert (np.asarray(ours.hidden) == hidden).all()
    np.testing.assert_allclose(ours.normaliser, np.log(total), rtol=1e-5)
    expected = exponentials / total[..., None] @ np.asarray(params["unembed"], float)
    np.testing.assert_allclose(ours.expected, expected, rtol=1e-4, atol=1e-5)
    alone = prediction.log_normaliser(decoder.head(params), jnp.asarray(hidden))
    np.testing.assert_allclose(alone, np.log(total), rtol=1e-5)


def test_kl_has_a_direction_and_vanishes_for_equals() -> None:
    params, dense, sparse = head(True), states((2, 5), 0), states((2, 5), 1)
    assert np.abs(kl(params, dense, sparse) - kl(params, sparse, dense)).max() > 0.1
    assert np.abs(kl(params, dense, dense)).max() < 1e-5


@pytest.mark.usefixtures("chunk")
def test_extreme_logits_stay_finite() -> None:
    # The predictions are so certain that most probabilities underflow.
    params, dense, sparse = head(True, scale=300.0), states((2, 5), 0), states((2, 5), 1)
    expected = kl64(logits(params, dense), logits(params, sparse))
    np.testing.assert_allclose(kl(params, dense, sparse), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("shape", only_quick(SHAPES, (3, 43)))
@pytest.mark.usefixtures("chunk")
def test_negative_log_likelihood_of_the_next_token(shape: tuple[int, int], cap: float | None) -> None:
    params, hidden = head(False, cap=cap), states(shape, 2)
    tokens = np.random.default_rng(3).integers(0, VOCAB, shape)
    normaliser = prediction.log_normaliser(decoder.head(params), jnp.asarray(hidden))
    ours = prediction.negative_log_likelihood(
        decoder.head(params), jnp.asarray(hidden), normaliser, jnp.asarray(tokens)
    )
    assert ours.shape == (shape[0], shape[1] - 1)
    np.testing.assert_allclose(np.asarray(ours), nll64(logits(params, hidden), tokens), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("run", [prediction.predict, prediction.log_normaliser])
def test_logits_of_a_part_of_the_vocabulary_exist_at_a_time(run: Callable[..., object]) -> None:
    shape, vocab = (1, 256), 64 * 1024
    head = jnp.zeros((vocab, HIDDEN))
    memory = jax.jit(run).lower(head, jnp.zeros((*shape, HIDDEN))).compile().memory_analysis()
    whole = 4 * vocab * shape[0] * shape[1]
    assert memory.temp_size_in_bytes < whole / 4


@pytest.mark.usefixtures("chunk")
def test_tokens_are_drawn_as_predicted() -> None:
    params, hidden, draws = head(False), states((1, 2), 0), 4000
    many = jnp.asarray(np.repeat(hidden, draws, axis=0))
    keys = jax.random.split(jax.random.key(0), draws)
    gradients = np.asarray(prediction.sampled_score(decoder.head(params), many, keys), float)
    rows = np.asarray(params["unembed"], float)
    chances = np.exp(logits(params, hidden))[0]
    chances /= chances.sum(axis=-1, keepdims=True)
    for position in range(2):
        drawn = gradients[:, position] + chances[position] @ rows
        tokens = np.argmin(np.linalg.norm(drawn[:, None] - rows, axis=-1), axis=1)
        np.testing.assert_allclose(drawn, rows[tokens], atol=1e-4)
        counts, wanted = np.bincount(tokens, minlength=len(rows)), draws * chances[position]
        often = wanted >= 5
        counts, wanted = (np.append(n[often], n[~often].sum()) for n in (counts, wanted))
        # Pearson's statistic has about as many degrees of freedom as entries: its mean, and its deviation.
        statistic = np.sum((counts - wanted) ** 2 / wanted)
        assert abs(statistic - len(counts)) < 5 * np.sqrt(2 * len(counts))


@pytest.mark.usefixtures("chunk")
def test_soft_capped_predictions() -> None:
    """A sampled score is the gradient of some token's log-likelihood. Capped, tokens are less certain."""
    params, hidden = head(True, cap=2.0), states((3, 5), 4)
    keys = jax.random.split(jax.random.key(1), 3)
    found = np.asarray(prediction.sampled_score(decoder.head(params), jnp.asarray(hidden), keys), float)
    capped = logits(params, hidden)
    chances = np.exp(capped) / np.exp(capped).sum(axis=-1, keepdims=True)
    slopes = (1 - (capped / 2) ** 2)[..., None] * np.asarray(params["embed"], float)
    every = slopes - np.einsum("btv,btvd->btd", chances, slopes)[..., None, :]
    off = np.abs(every - found[..., None, :]).max(axis=-1)
    assert off.min(axis=-1).max() < 1e-4
    best = jnp.argmax(jnp.asarray(capped), axis=-1).reshape(-1)
    nats, likeliest = prediction.answers(decoder.head(params), jnp.asarray(hidden.reshape(15, -1)), best)
    np.testing.assert_allclose(nats, np.log(chances.max(axis=-1)).reshape(-1), rtol=1e-4)
    assert likeliest.all()


@pytest.mark.parametrize("cap", only_quick([None, 3.0], 3.0))
@pytest.mark.usefixtures("chunk")
def test_kl_is_differentiable(cap: float | None) -> None:
    params, dense = head(False, cap=cap), states((2, 4), 0)
    own = decoder.head(params)
    answers = prediction.predict(own, jnp.asarray(dense))

    def loss(hidden: jax.Array) -> jax.Array:
        return jnp.sum(prediction.kl_divergence(own, answers, hidden, prediction.log_normaliser(own, hidden)))

    def exact(hidden: jax.Array) -> jax.Array:
        p, q = (jax.nn.log_softmax(soft_cap(state @ params["unembed"].T, cap)) for state in (dense, hidden))
        return jnp.sum(jnp.exp(p) * (p - q))

    sparse = jnp.asarray(states((2, 4), 1))
    np.testing.assert_allclose(jax.grad(loss)(sparse), jax.grad(exact)(sparse), rtol=1e-3, atol=1e-4)
