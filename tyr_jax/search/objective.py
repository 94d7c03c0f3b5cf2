"""What a candidate is scored by (Eq. 6): how far it is from the dense model on a batch of tokens.

The head is applied to a few positions at a time, so that neither the logits of a candidate nor those of
the teacher are ever stored whole. The teacher is kept as its normed last hidden states, `D` numbers a
token in place of `V`. Axis letters: `B` sequences, `T` tokens, `D` hidden, `V` vocabulary, `L` layers,
`C` candidates.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params

ObjectiveName = Literal["kl", "hidden+kl", "perplexity"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)

HEAD_CHUNK = 32
"""Positions whose logits exist at one time, per candidate: measured best on CPUs, where the logits of a
chunk should stay in cache (32 × 49,152 float32 are 6 MB)."""


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


def over_positions(loss: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`loss(*chunks) -> [chunk]` over the leading axis of `arrays`, `HEAD_CHUNK` rows at a time: `[rows]`."""
    rows = arrays[0].shape[0]
    padding = -rows % HEAD_CHUNK

    def chunks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1)))
        return padded.reshape(-1, HEAD_CHUNK, *array.shape[1:])

    losses = jax.lax.map(lambda parts: loss(*parts), tuple(chunks(array) for array in arrays))
    return losses.reshape(-1)[:rows]


def kl_divergence(params: Params, teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(z_dense ‖ z_sparse) `[B, T]` in nats, over whole softmaxes, from hidden states `[B, T, D]`.

    Written as `Σ p log p + log Σ exp z − Σ p z`, with `p` the dense model's probabilities and `z` the sparse
    model's logits: the first term is shared by all candidates of a `vmap`, the others read `z` once.
    """

    def loss(dense: jax.Array, sparse: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(decoder.unembed(params, dense))
        p = jnp.exp(log_p)
        logits = decoder.unembed(params, sparse)
        return jnp.sum(p * log_p, axis=-1) + jax.nn.logsumexp(logits, axis=-1) - jnp.sum(p * logits, axis=-1)

    width = teacher.shape[-1]
    losses = over_positions(loss, teacher.reshape(-1, width), student.reshape(-1, width))
    return losses.reshape(teacher.shape[:-1])


def negative_log_likelihood(params: Params, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """Next-token NLL in nats `[B, T-1]` from normed hidden states `[B, T, D]` of `tokens [B, T]`."""

    def loss(states: jax.Array, labels: jax.Array) -> jax.Array:
        logits = decoder.unembed(params, states)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    batch, length = tokens.shape
    states, labels = hidden[:, :-1].reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)
    return over_positions(loss, states, labels).reshape(batch, length - 1)


def hidden_distance(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """‖h_dense − h_sparse‖² / ‖h_dense‖² summed over the observed layers; arrays `[O, B, T, D]`."""
    axes = (1, 2, 3)
    return jnp.sum(jnp.sum((teacher - student) ** 2, axes) / jnp.sum(teacher**2, axes))


def score(
    params: Params, final: jax.Array, hidden: jax.Array, batch: Batch, objective: Objective
) -> jax.Array:
    """The objective, a float32 scalar (lower is better), of a model with hidden states as in `Batch`."""
    if objective.objective == "perplexity":
        return jnp.mean(negative_log_likelihood(params, final, batch.tokens))
    value = objective.beta * jnp.mean(kl_divergence(params, batch.final, final))
    if objective.objective == "hidden+kl":
        value += objective.alpha * hidden_distance(batch.hidden, hidden)
    return value


def observe(
    params: Params,
    layers: Any,
    block_of: Callable[[Any], Block],
    tokens: jax.Array,
    config: ModelConfig,
    objective: Objective,
) -> tuple[jax.Array, jax.Array]:
    """Run a model and keep what the objective compares.

    Args:
        params: embeddings and head.
        layers: a pytree stacked on `L`.
        block_of: the block of one slice of `layers`.
        tokens: `[B, T]`.
        config: the dense model's configuration.
        objective: names the observed layers.

    Returns:
        Normed last hidden states `[B, T, D]`, and the observed layers' outputs `[O, B, T, D]`.
    """
    rope = decoder.rope_tables(config, tokens.shape[1])
    x = decoder.embed(params, tokens)

    def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return decoder.apply_block(block_of(layer), x, rope, config), None

    observed_layers = objective.observed_layers(config.depth)
    edges = sorted({layer + 1 for layer in observed_layers} | {config.depth})
    outputs = {}
    for start, stop in itertools.pairwise([0, *edges]):
        x, _ = jax.lax.scan(step, x, jax.tree.map(lambda a, s=start, e=stop: a[s:e], layers))
        outputs[stop - 1] = x
    hidden = [outputs[layer] for layer in observed_layers]
    stacked = jnp.stack(hidden) if hidden else jnp.zeros((0, *x.shape), x.dtype)
    return decoder.final_hidden(params, x, config), stacked
