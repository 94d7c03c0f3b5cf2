"""What a candidate is scored by (Eq. 6): how far it is from the dense model on a batch of tokens.

The head is applied to a part of the vocabulary at a time, with a running softmax (Milakov & Gimelshein
2018), so that neither the logits of a candidate nor those of the teacher are ever stored whole. The
teacher is kept as its normed last hidden states, `D` numbers a token in place of `V`. Axis letters: `B`
sequences, `T` tokens, `D` hidden, `V` vocabulary, `L` layers, `C` candidates.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.spec import ModelConfig, Params

State = TypeVar("State")
ObjectiveName = Literal["kl", "hidden+kl", "perplexity"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)

VOCABULARY_CHUNK = 2048
"""Entries of the vocabulary whose logits exist at one time: their rows of the head stay in cache while all
positions are multiplied with them."""

ABSENT = -1e30
"""Logit of an entry that does not count; finite, so that differences of two are not NaN."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Eq. 6 with weights `alpha` (hidden states) and `beta` (KL); `perplexity` is next-token NLL instead.

    Hidden states are compared after the first, the median and the last layer, each as the squared
    distance relative to the dense model's squared norm, so that `alpha` means the same at any depth.
    """

    objective: ObjectiveName = "kl"
    """`kl` to the dense model's predictions, `hidden+kl` adds hidden states of the first, median and last
    layer, `perplexity` is that of the search text itself."""
    alpha: float = 1.0
    """Weight of the hidden states."""
    beta: float = 1.0
    """Weight of the KL divergence."""

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        """Layers whose output is compared."""
        return (0, depth // 2, depth - 1) if self.objective == "hidden+kl" else ()


class Batch(NamedTuple):
    """A minibatch with the dense model's answer.

    `tokens [B, T]`, normed last hidden states `final [B, T, D]`, observed layer outputs
    `hidden [O, B, T, D]` (O = 0 unless the objective compares them).
    """

    tokens: jax.Array
    final: jax.Array
    hidden: jax.Array


def over_vocabulary(params: Params, step: Callable[..., State], start: State, *hidden: jax.Array) -> State:
    """Fold `state = step(state, *logits)` over the vocabulary, `VOCABULARY_CHUNK` entries at a time.

    `logits [rows, chunk]` float32 belong to the normed hidden states `hidden [rows, D]`, one for one. The
    last chunk ends with the vocabulary: entries that an earlier chunk had are `ABSENT` from it.
    """
    head = decoder.head(params)
    vocab = head.shape[0]
    size = min(VOCABULARY_CHUNK, vocab)

    def fold(state: State, first: jax.Array) -> tuple[State, None]:
        offset = jnp.minimum(first, vocab - size)
        rows = jax.lax.dynamic_slice_in_dim(head, offset, size)
        fresh = offset + jnp.arange(size) >= first
        logits = (jnp.where(fresh, decoder.logits(rows, states), ABSENT) for states in hidden)
        return step(state, *logits), None

    return jax.lax.scan(jax.checkpoint(fold), start, jnp.arange(0, vocab, size))[0]


class SoftmaxSum(NamedTuple):
    """A running softmax: the largest logit so far `[rows]`, and Σ exp(logit − it) `[rows]`."""

    peak: jax.Array
    total: jax.Array

    @classmethod
    def empty(cls, rows: int) -> Self:
        """Of no logits."""
        return cls(jnp.full(rows, ABSENT), jnp.zeros(rows))

    def add(self, logits: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """(the sum with `logits [rows, chunk]`, their exponentials, the factor on earlier exponentials)."""
        peak = jnp.maximum(self.peak, jnp.max(logits, axis=-1))
        rescale, terms = jnp.exp(self.peak - peak), jnp.exp(logits - peak[:, None])
        return type(self)(peak, self.total * rescale + jnp.sum(terms, axis=-1)), terms, rescale

    def log(self) -> jax.Array:
        """log Σ exp(logits) `[rows]`."""
        return self.peak + jnp.log(self.total)


def kl_and_normaliser(params: Params, teacher: jax.Array, student: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(KL(z_dense ‖ z_sparse), log Σ exp z_sparse), each `[B, T]` in nats, from hidden states `[B, T, D]`.

    Over whole softmaxes. The KL is written as `Σ p (y − z) − log Σ exp y + log Σ exp z`, with `p` the dense
    model's probabilities, `y` its logits and `z` the sparse model's: what depends on the dense model alone
    is shared by all candidates of a `vmap`.
    """

    def step(
        state: tuple[SoftmaxSum, SoftmaxSum, jax.Array], dense: jax.Array, sparse: jax.Array
    ) -> tuple[SoftmaxSum, SoftmaxSum, jax.Array]:
        dense_sum, terms, rescale = state[0].add(dense)
        gap = state[2] * rescale + jnp.sum(terms * (dense - sparse), axis=-1)
        return dense_sum, state[1].add(sparse)[0], gap

    rows, width = teacher.size // teacher.shape[-1], teacher.shape[-1]
    start = (SoftmaxSum.empty(rows), SoftmaxSum.empty(rows), jnp.zeros(rows))
    dense, sparse, gap = over_vocabulary(
        params, step, start, teacher.reshape(rows, width), student.reshape(rows, width)
    )
    kl = gap / dense.total - dense.log() + sparse.log()
    return kl.reshape(teacher.shape[:-1]), sparse.log().reshape(teacher.shape[:-1])


def log_normaliser(params: Params, hidden: jax.Array) -> jax.Array:
    """log Σ exp z `[B, T]` over the whole vocabulary, from normed hidden states `[B, T, D]`."""
    states = hidden.reshape(-1, hidden.shape[-1])
    start = SoftmaxSum.empty(len(states))
    total = over_vocabulary(params, lambda state, logits: state.add(logits)[0], start, states)
    return total.log().reshape(hidden.shape[:-1])


def negative_log_likelihood(
    params: Params, hidden: jax.Array, normaliser: jax.Array, tokens: jax.Array
) -> jax.Array:
    """Next-token NLL in nats `[B, T-1]` of `tokens [B, T]`, from normed hidden states `[B, T, D]` and the
    logits' `normaliser [B, T]`."""
    rows = decoder.head(params)[tokens[:, 1:]]
    label_logits = jnp.einsum("btd,btd->bt", hidden[:, :-1], rows, preferred_element_type=jnp.float32)
    return normaliser[:, :-1] - label_logits


def hidden_distance(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """‖h_dense − h_sparse‖² / ‖h_dense‖² summed over the observed layers; arrays `[O, B, T, D]`."""
    axes = (1, 2, 3)
    return jnp.sum(jnp.sum((teacher - student) ** 2, axes) / jnp.sum(teacher**2, axes))


def score(
    params: Params, final: jax.Array, hidden: jax.Array, batch: Batch, objective: Objective
) -> jax.Array:
    """The objective, a float32 scalar (lower is better), of a model with hidden states as in `Batch`."""
    if objective.objective == "perplexity":
        normaliser = log_normaliser(params, final)
        return jnp.mean(negative_log_likelihood(params, final, normaliser, batch.tokens))
    value = objective.beta * jnp.mean(kl_and_normaliser(params, batch.final, final)[0])
    if objective.objective == "hidden+kl":
        value += objective.alpha * hidden_distance(batch.hidden, hidden)
    return value


def observe(
    params: Params,
    layers: Any,
    apply: Callable[[Any, jax.Array, decoder.Rope], jax.Array],
    tokens: jax.Array,
    config: ModelConfig,
    objective: Objective,
) -> tuple[jax.Array, jax.Array]:
    """Run a model and keep what the objective compares.

    Args:
        params: embeddings and head.
        layers: a pytree stacked on `L`.
        apply: `(slice of layers, x, rope) -> x`, one layer on the residual `x [B, T, D]`.
        tokens: `[B, T]`.
        config: the dense model's configuration.
        objective: names the observed layers.

    Returns:
        Normed last hidden states `[B, T, D]`, and the observed layers' outputs `[O, B, T, D]`.
    """
    rope = decoder.rope_tables(config, tokens.shape[1])
    x = decoder.embed(params, tokens)

    # A backward pass recomputes a layer's insides instead of keeping those of all layers.
    @jax.checkpoint
    def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return apply(layer, x, rope), None

    observed_layers = objective.observed_layers(config.depth)
    edges = sorted({layer + 1 for layer in observed_layers} | {config.depth})
    outputs = {}
    for start, stop in itertools.pairwise([0, *edges]):
        x, _ = jax.lax.scan(step, x, jax.tree.map(lambda a, s=start, e=stop: a[s:e], layers))
        outputs[stop - 1] = x
    hidden = [outputs[layer] for layer in observed_layers]
    stacked = jnp.stack(hidden) if hidden else jnp.zeros((0, *x.shape), x.dtype)
    return decoder.final_hidden(params, x, config), stacked
