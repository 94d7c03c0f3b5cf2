"""Log-likelihoods of continuations, against whole softmaxes in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tiny_config

from tyr_jax.errors import UserError
from tyr_jax.evaluation import likelihood
from tyr_jax.evaluation.likelihood import Request, filled_length, log_likelihoods
from tyr_jax.model.decoder import forward
from tyr_jax.model.prediction import answers
from tyr_jax.model.spec import Params
from tyr_jax.model.tensors import random_params

CONFIG = make_tiny_config()


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(CONFIG, jax.random.key(0), scale=0.2)


def by_softmax(params: Params, request: Request) -> tuple[float, bool]:
    """Answer one request from all logits of its row."""
    logits = np.asarray(forward(params, jnp.asarray([request.row]), CONFIG)[0], np.float64)
    logits = logits[-len(request.continuation) :]
    nats = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    found = nats[np.arange(len(nats)), request.continuation]
    return float(found.sum()), bool((logits.argmax(axis=-1) == request.continuation).all())


def test_a_model_that_overflows_has_no_answers(params: Params) -> None:
    """Without the check it would have answers, and a score."""
    for bad in (np.nan, np.inf):
        broken = params | {"embed": params["embed"].at[3].set(bad)}
        with pytest.raises(UserError, match="the model overflows there"):
            log_likelihoods(broken, [Request((1, 2), (4,)), Request((1, 3), (4, 5))], CONFIG)


@pytest.mark.slow
def test_every_request_is_answered_as_if_alone(params: Params) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab, (20, 90))
    lengths = [(int(rng.integers(1, 60)), int(rng.integers(1, 30))) for _ in tokens]
    requests = [
        Request(tuple(map(int, row[:a])), tuple(map(int, row[a : a + b])))
        for row, (a, b) in zip(tokens, lengths, strict=True)
    ]
    # Choices that share a row, and one that is the model's own likeliest token.
    context = requests[0].context
    requests += [Request(context, (choice,)) for choice in range(4)]
    own = int(forward(params, jnp.asarray([context]), CONFIG)[0, -1].argmax())
    requests.append(Request(context, (own,)))
    found = log_likelihoods(params, requests, CONFIG)
    for ours, request in zip(found, requests, strict=True):
        nats, greedy = by_softmax(params, request)
        assert ours.nats == pytest.approx(nats, rel=1e-5, abs=1e-5)
        assert ours.greedy == greedy
    assert found[-1].greedy


def test_what_differs_in_the_last_token_shares_a_row() -> None:
    context = tuple(range(7))
    requests = [Request(context, (choice,)) for choice in range(4)]
    requests += [Request(context, (5, choice)) for choice in range(2)]
    (batch,) = likelihood.batches(requests)
    assert len({tuple(batch.tokens[row]) for row in batch.rows[: batch.asked]}) == 2
    assert batch.asked == 4 + 2 * 2


@pytest.mark.slow
def test_requests_of_many_lengths_make_few_programs(params: Params) -> None:
    rng = np.random.default_rng(1)
    requests = [
        Request(tuple(map(int, rng.integers(0, CONFIG.vocab, length))), (1,)) for length in range(1, 97)
    ]
    parts = likelihood.batches(requests)
    assert [part.tokens.shape for part in parts] == [(21, 96), (21, 96), (32, 64), (32, 32)]
    # All padding together must add less than 60% to the tokens of the rows.
    assert sum(part.tokens.size for part in parts) < 1.6 * sum(len(request.row) for request in requests)
    log_likelihoods(params, requests, CONFIG)
    before = likelihood.answer._cache_size()
    log_likelihoods(params, requests[::-1], CONFIG)
    assert likelihood.answer._cache_size() == before


@given(st.integers(1, 100_000))
def test_rows_are_filled_up_by_less_than_half(count: int) -> None:
    length = filled_length(count)
    assert length >= count
    assert length == likelihood.SHORTEST or 2 * length < 3 * count + 2


def test_the_likeliest_token_may_be_in_any_part_of_the_vocabulary() -> None:
    rng = np.random.default_rng(2)
    head = jnp.asarray(rng.standard_normal((2500, 8)), jnp.float32)
    hidden = jnp.asarray(rng.standard_normal((64, 8)), jnp.float32)
    best = np.asarray(hidden @ head.T).argmax(axis=1)
    assert set(best // 1024) == {0, 1, 2}
    nats, greedy = answers(head, hidden, jnp.asarray(best))
    assert bool(greedy.all())
    assert not bool(answers(head, hidden, jnp.asarray((best + 1) % 2500))[1].any())
    expected = jax.nn.log_softmax(hidden @ head.T)[jnp.arange(64), best]
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
