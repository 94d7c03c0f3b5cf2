"""What a candidate is scored by (Eq. 6): how far it is from the dense model on a batch of tokens.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `L` layers, `O` observed layers.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.prediction import (
    Prediction,
    kl_divergence,
    log_normaliser,
    negative_log_likelihood,
)
from tyr_jax.model.spec import ModelConfig, Params

ObjectiveName = Literal["kl", "hidden+kl", "perplexity"]


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

    `tokens [B, T]`, its predictions `dense`, its observed layers' outputs `hidden [B, O, T, D]` (O = 0
    unless the objective compares them).
    """

    tokens: jax.Array
    dense: Prediction
    hidden: jax.Array


def hidden_distance(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """‖h_dense − h_sparse‖² / ‖h_dense‖² summed over the observed layers; arrays `[B, O, T, D]`."""
    axes = (0, 2, 3)
    return jnp.sum(jnp.sum((teacher - student) ** 2, axes) / jnp.sum(teacher**2, axes))


def score(
    head: jax.Array, final: jax.Array, hidden: jax.Array, batch: Batch, objective: Objective
) -> jax.Array:
    """The objective, a float32 scalar (lower is better), of a model with output embedding `head [V, D]`,
    normed last hidden states `final [B, T, D]` and observed layers' outputs `hidden [B, O, T, D]`."""
    normaliser = log_normaliser(head, final)
    if objective.objective == "perplexity":
        return jnp.mean(negative_log_likelihood(head, final, normaliser, batch.tokens))
    value = objective.beta * jnp.mean(kl_divergence(batch.dense, final, normaliser))
    if objective.objective == "hidden+kl":
        value += objective.alpha * hidden_distance(batch.hidden, hidden)
    return value


def observe(
    params: Params,
    layers: Any,
    apply: Callable[[Any, decoder.Rope, jax.Array], jax.Array],
    tokens: jax.Array,
    config: ModelConfig,
    objective: Objective,
) -> tuple[jax.Array, jax.Array]:
    """Run a model and keep what the objective compares.

    Args:
        params: embeddings and head.
        layers: a pytree stacked on `L`.
        apply: `(slice of layers, rope, x) -> x`, one layer on the residual `x [B, T, D]`.
        tokens: `[B, T]`.
        config: the dense model's configuration.
        objective: names the observed layers.

    Returns:
        Normed last hidden states `[B, T, D]`, and the observed layers' outputs `[B, O, T, D]`.
    """
    rope = decoder.rope_tables(config, tokens.shape[1])

    # A backward pass recomputes a layer's insides instead of keeping those of all layers.
    @jax.checkpoint
    def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return apply(layer, rope, x), None

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        return jax.lax.scan(step, x, jax.tree.map(lambda array: array[start:stop], layers))[0]

    return watch(params, decoder.embed(params, tokens), advance, config, objective)


def watch(
    params: Params,
    x: jax.Array,
    advance: Callable[[jax.Array, int, int], jax.Array],
    config: ModelConfig,
    objective: Objective,
) -> tuple[jax.Array, jax.Array]:
    """What `observe` returns, where `advance(x, start, stop)` runs the layers `start` to `stop` (itself not
    one of them) on the residual `x [..., T, D]`; then the hidden states are `[..., O, T, D]`."""
    observed_layers = objective.observed_layers(config.depth)
    edges = sorted({layer + 1 for layer in observed_layers} | {config.depth})
    outputs = {}
    for start, stop in itertools.pairwise([0, *edges]):
        x = advance(x, start, stop)
        outputs[stop - 1] = x
    hidden = [outputs[layer] for layer in observed_layers]
    stacked = jnp.stack(hidden, axis=-3) if hidden else jnp.zeros((*x.shape[:-2], 0, *x.shape[-2:]), x.dtype)
    return decoder.final_hidden(params, x, config), stacked
