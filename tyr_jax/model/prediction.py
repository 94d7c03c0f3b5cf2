"""What a model predicts, from its hidden states: likelihood and KL divergence over the whole softmax.

The head is applied to a part of the vocabulary at a time, with a running softmax (Milakov & Gimelshein 2018),
so logits are never stored whole. A teacher's predictions are kept exactly, in 2·D + 1 numbers per token
instead of V. With p and y the dense model's probabilities and logits, and q and z the sparse model's,

    KL(p ‖ q) = Σ_v p_v (y_v − z_v) − log Σ exp y + log Σ exp z.

Both logits are linear in the hidden states, y = W h and z = W h', so the first sum is (h − h') · Wᵀp. Of a
sparse model, only the normaliser is left to compute.

Soft-capped logits (Gemma 2) are not linear. There, y is computed from h again whenever a sparse model is
compared, next to z: the head's products take twice the time, and of the 2·D + 1 numbers D + 1 count.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `V` vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.attention import cap_slope, soft_cap
from tyr_jax.model.decoder import ABSENT, Capped, Head

State = TypeVar("State")

VOCABULARY_CHUNK = 1024
"""Entries of the vocabulary whose logits exist at a time. Their rows of the head stay in cache while all
positions are multiplied with them."""


class Prediction(NamedTuple):
    """A model's predictions: normed last hidden states `hidden [B, T, D]`; the expected row of the head, Wᵀp,
    `expected [B, T, D]`; and `normaliser [B, T]`, log Σ exp y. The last two are float32.

    The expected row is the gradient of the normaliser with respect to the hidden states. So where logits are
    soft-capped, each row counts times the slope of its cap.
    """

    hidden: jax.Array
    expected: jax.Array
    normaliser: jax.Array


class Entries(NamedTuple):
    """Consecutive entries of the vocabulary: the `first` one, their `rows [chunk, D]` of the head, and
    `logits [n, chunk]` in float32."""

    first: jax.Array
    rows: jax.Array
    logits: jax.Array


def over_vocabulary(
    head: Head, step: Callable[[State, Entries], State], start: State, hidden: jax.Array
) -> State:
    """Fold `state = step(state, entries)` over the vocabulary of `head [V, D]`, `VOCABULARY_CHUNK` entries at
    a time, with the logits of normed states `hidden [n, D]`.

    The last chunk ends where the vocabulary ends. Entries in it that an earlier chunk had are `ABSENT`.
    """
    every, cap = decoder.rows_of(head), decoder.cap_of(head)
    vocab = len(every)
    size = min(VOCABULARY_CHUNK, vocab)

    def fold(state: State, first: jax.Array) -> tuple[State, None]:
        offset = jnp.minimum(first, vocab - size)
        rows = jax.lax.dynamic_slice_in_dim(every, offset, size)
        fresh = offset + jnp.arange(size) >= first
        logits = jnp.where(fresh, soft_cap(decoder.logits(rows, hidden), cap), ABSENT)
        return step(state, Entries(offset, rows, logits)), None

    return jax.lax.scan(jax.checkpoint(fold), start, jnp.arange(0, vocab, size))[0]


class SoftmaxSum(NamedTuple):
    """A running softmax: the largest logit so far, `peak [n]`, and Σ exp(logit − peak), `total [n]`."""

    peak: jax.Array
    total: jax.Array

    @classmethod
    def empty(cls, count: int) -> Self:
        """The sum of no logits."""
        return cls(jnp.full(count, ABSENT), jnp.zeros(count))

    def add(self, logits: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """(the sum with `logits [n, chunk]`, their exponentials, the factor on earlier exponentials)."""
        peak = jnp.maximum(self.peak, jnp.max(logits, axis=-1))
        rescale, terms = jnp.exp(self.peak - peak), jnp.exp(logits - peak[:, None])
        return type(self)(peak, self.total * rescale + jnp.sum(terms, axis=-1)), terms, rescale

    def log(self) -> jax.Array:
        """log Σ exp(logits) `[n]`."""
        return self.peak + jnp.log(self.total)


def weighted_rows(head: Head, entries: Entries, terms: jax.Array) -> jax.Array:
    """The sum `[n, D]` of the rows of `entries`, each times its `terms [n, chunk]` and its cap's slope."""
    terms = (terms * cap_slope(entries.logits, decoder.cap_of(head))).astype(entries.rows.dtype)
    return jnp.einsum("nv,vd->nd", terms, entries.rows, preferred_element_type=jnp.float32)


def predict(head: Head, hidden: jax.Array) -> Prediction:
    """The predictions, through `head [V, D]`, of normed hidden states `[B, T, D]`."""
    states = hidden.reshape(-1, hidden.shape[-1])

    def step(state: tuple[SoftmaxSum, jax.Array], entries: Entries) -> tuple[SoftmaxSum, jax.Array]:
        total, terms, rescale = state[0].add(entries.logits)
        return total, state[1] * rescale[:, None] + weighted_rows(head, entries, terms)

    start = SoftmaxSum.empty(len(states)), jnp.zeros(states.shape)
    softmax, weighted = over_vocabulary(head, step, start, states)
    expected = (weighted / softmax.total[:, None]).reshape(hidden.shape)
    return Prediction(hidden, expected, softmax.log().reshape(hidden.shape[:-1]))


class Draw(NamedTuple):
    """A token drawn from a running softmax: the `softmax` so far, and the `token [n]` drawn from it."""

    softmax: SoftmaxSum
    token: jax.Array

    @classmethod
    def empty(cls, count: int) -> Self:
        """The draw from no logits."""
        return cls(SoftmaxSum.empty(count), jnp.zeros(count, jnp.int32))

    def add(self, entries: Entries, uniform: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """(the draw with further entries, their exponentials, the factor on earlier ones), by `uniform [n]`
        numbers between 0 and 1.

        An entry is drawn with its probability among all entries so far. The same number decides first whether
        it is one of the new entries, and then which.
        """
        softmax, terms, rescale = self.softmax.add(entries.logits)
        sums = jnp.cumsum(terms, axis=-1)
        target = uniform * softmax.total
        inside = jnp.sum(sums <= target[:, None], axis=-1)
        size = terms.shape[-1]
        token = jnp.where(inside < size, entries.first + inside, self.token)
        return type(self)(softmax, token.astype(jnp.int32)), terms, rescale


def sequence_keys(seed: int, count: int) -> np.ndarray:
    """The data `[B, 2]` of one random key for each of `count` sequences. Unlike keys, it can be divided among
    hosts."""
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), count)))


def uniform_numbers(keys: jax.Array, length: int, first: jax.Array) -> jax.Array:
    """Numbers between 0 and 1, `[B·T]`, one for every position of B sequences of `length`, for the chunk of
    the vocabulary that begins at entry `first`. Each sequence has its own key in `keys [B]`."""

    def of_sequence(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, first), (length,))

    return jax.vmap(of_sequence)(keys).reshape(-1)


def draw(head: Head, hidden: jax.Array, keys: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Draw tokens `[B]` from the predictions of normed hidden states `hidden [B, D]` through `head [V, D]`.

    Each has its own key in `keys [B]`. Logits are divided by `temperature`.
    """

    def step(state: Draw, entries: Entries) -> Draw:
        cooled = entries._replace(logits=entries.logits / temperature)
        return state.add(cooled, uniform_numbers(keys, 1, entries.first))[0]

    return over_vocabulary(head, step, Draw.empty(len(hidden)), hidden).token


def sampled_score(head: Head, hidden: jax.Array, keys: jax.Array) -> jax.Array:
    """Gradient `[B, T, D]`, with respect to normed hidden states `hidden [B, T, D]`, of the log-likelihood of
    tokens drawn from the predictions through `head [V, D]`: the drawn token's row minus the expected row,
    each times the slope of its soft-cap, if there is one.

    Each sequence has its own key in `keys [B]`.
    """
    states, cap = hidden.reshape(-1, hidden.shape[-1]), decoder.cap_of(head)

    def step(state: tuple[Draw, jax.Array], entries: Entries) -> tuple[Draw, jax.Array]:
        uniform = uniform_numbers(keys, hidden.shape[1], entries.first)
        draw, terms, rescale = state[0].add(entries, uniform)
        return draw, state[1] * rescale[:, None] + weighted_rows(head, entries, terms)

    start = Draw.empty(len(states)), jnp.zeros(states.shape)
    draw, weighted = over_vocabulary(head, step, start, states)
    expected = weighted / draw.softmax.total[:, None]
    drawn = decoder.rows_of(head)[draw.token]
    if cap is not None:
        logits = jnp.einsum("nd,nd->n", states, drawn, preferred_element_type=jnp.float32)
        drawn = drawn * cap_slope(soft_cap(logits, cap), cap)[:, None]
    return (drawn - expected).reshape(hidden.shape)


@jax.custom_vjp
def log_normaliser(head: Head, hidden: jax.Array) -> jax.Array:
    """log Σ exp z `[B, T]` over the whole vocabulary, from `head [V, D]` and normed hidden states
    `[B, T, D]`. It has a gradient with respect to the hidden states only: no head is trained."""
    states = hidden.reshape(-1, hidden.shape[-1])
    start = SoftmaxSum.empty(len(states))
    softmax = over_vocabulary(head, lambda state, entries: state.add(entries.logits)[0], start, states)
    return softmax.log().reshape(hidden.shape[:-1])


def _normaliser_forward(head: Head, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    # With the gradient from the forward pass, the head is applied twice in all. A backward pass of its own
    # would compute the logits once more.
    prediction = predict(head, hidden)
    return prediction.normaliser, prediction.expected.astype(hidden.dtype)


def _normaliser_backward(expected: jax.Array, cotangent: jax.Array) -> tuple[None, jax.Array]:
    return None, (cotangent[..., None] * expected).astype(expected.dtype)


log_normaliser.defvjp(_normaliser_forward, _normaliser_backward)


def answers(head: Head, hidden: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log-likelihood in nats `[n]` of `tokens [n]`, whether each is the likeliest one `[n]`), from
    `head [V, D]` and the normed hidden states `[n, D]` that predict them."""

    def step(state: tuple[SoftmaxSum, jax.Array], entries: Entries) -> tuple[SoftmaxSum, jax.Array]:
        softmax, best = state
        ahead = jnp.max(entries.logits, axis=-1) > softmax.peak
        best = jnp.where(ahead, entries.first + jnp.argmax(entries.logits, axis=-1), best)
        return softmax.add(entries.logits)[0], best

    count = len(hidden)
    softmax, best = over_vocabulary(head, step, (SoftmaxSum.empty(count), jnp.zeros(count, int)), hidden)
    rows = decoder.rows_of(head)[tokens]
    logits = jnp.einsum("nd,nd->n", hidden, rows, preferred_element_type=jnp.float32)
    return soft_cap(logits, decoder.cap_of(head)) - softmax.log(), best == tokens


def kl_divergence(head: Head, dense: Prediction, hidden: jax.Array, normaliser: jax.Array) -> jax.Array:
    """KL(dense ‖ sparse) `[B, T]` in nats, from the sparse model's normed hidden states `[B, T, D]` and
    `normaliser [B, T]`. Both models have the same `head [V, D]`."""
    if isinstance(head, Capped):
        return _expected_change(head, dense, hidden) - dense.normaliser + normaliser
    change = dense.hidden.astype(jnp.float32) - hidden.astype(jnp.float32)
    return jnp.einsum("btd,btd->bt", change, dense.expected) - dense.normaliser + normaliser


def _expected_change(head: Capped, dense: Prediction, hidden: jax.Array) -> jax.Array:
    """How far the sparse model's logits lie below the dense one's `[B, T]`, on average over the dense model's
    predictions."""
    before, states = (x.reshape(-1, x.shape[-1]) for x in (dense.hidden, hidden))
    normaliser = dense.normaliser.reshape(-1, 1)

    def step(total: jax.Array, entries: Entries) -> jax.Array:
        logits = soft_cap(decoder.logits(entries.rows, before), head.cap)
        change = jnp.exp(logits - normaliser) * (logits - entries.logits)
        return total + jnp.sum(jnp.where(entries.logits > ABSENT, change, 0), axis=-1)

    total = over_vocabulary(head, step, jnp.zeros(len(states)), states)
    return total.reshape(hidden.shape[:-1])


def negative_log_likelihood(
    head: Head, hidden: jax.Array, normaliser: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Next-token NLL in nats `[B, T-1]` of `tokens [B, T]`, from `head [V, D]`, normed hidden states
    `[B, T, D]` and the logits' `normaliser [B, T]`."""
    rows = decoder.rows_of(head)[tokens[:, 1:]]
    label_logits = jnp.einsum("btd,btd->bt", hidden[:, :-1], rows, preferred_element_type=jnp.float32)
    return normaliser[:, :-1] - soft_cap(label_logits, decoder.cap_of(head))
