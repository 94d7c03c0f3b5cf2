"""What a candidate is scored by (Eq. 6): how far it is from the dense model on a batch of tokens.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `L` layers, `O` observed layers.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.prediction import Prediction, kl_divergence, log_normaliser, negative_log_likelihood
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


class TeacherBatch(NamedTuple):
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
    head: jax.Array, final: jax.Array, hidden: jax.Array, batch: TeacherBatch, objective: Objective
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


def score_seen(
    params: Params, seen: ForwardState, batch: TeacherBatch, config: ModelConfig, objective: Objective
) -> jax.Array:
    """`score` of a model, on one device, from what it has made of the batch behind its last layer; `params`
    has what lies outside its blocks."""
    final = decoder.rms_norm(seen.residual, params["final_norm"], config.norm_eps)
    return score(decoder.head(params), final, seen.outputs, batch, objective)
