"""What recovery trains for: the next token, the dense model's predictions, and its hidden states.

Axis letters: `B` rows, `T` tokens, `D` hidden, `O` observed layers.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.prediction import kl_divergence, log_normaliser, negative_log_likelihood, predict
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime import devices
from tyr_jax.scoring.objective import TeacherBatch, first_median_last, hidden_distance

Goal = Literal["kd", "next-token", "kd+next-token"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is learnt, and with what weight."""

    goal: Goal = "kd"
    """`kd` learns the dense model's predictions (knowledge distillation by KL divergence), `next-token` the
    text itself, and `kd+next-token` both: the two losses are added."""
    hidden: float = 0.0
    """Weight of the hidden states after the first, the median and the last layer, each as the squared
    distance relative to the dense model's squared norm, in addition to `kd`."""

    @property
    def taught(self) -> bool:
        """Whether the dense model is needed."""
        return "kd" in self.goal

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        """Layers whose outputs are compared with the dense model's."""
        return first_median_last(depth) if self.taught and self.hidden else ()


class TrainingRows(NamedTuple):
    """`tokens [B, T]` to read, and which of them to `learn [B, T]`: all of a text, or the answers of a
    conversation. (A row's first token is never learnt, because nothing comes before it.)"""

    tokens: jax.Array
    learn: jax.Array


def teacher_batch(params: Params, tokens: jax.Array, config: ModelConfig, loss: Loss) -> TeacherBatch:
    """The dense model's predictions on `tokens [B, T]`."""
    state = decoder.run_blocks(
        params["blocks"],
        decoder.begin_forward(decoder.outside(params), tokens),
        config,
        loss.observed_layers(config.depth),
    )
    final = decoder.final_hidden(params, state.residual, config)
    return TeacherBatch(tokens, devices.divided(predict, whole=1)(decoder.head(params), final), state.outputs)


def sums(
    params: Params, rows: TrainingRows, dense: TeacherBatch | None, config: ModelConfig, loss: Loss
) -> jax.Array:
    """The loss of every row `[B]`, summed over the tokens that are learnt."""
    observed = loss.observed_layers(config.depth)
    outside = decoder.outside(params)
    state = decoder.run_blocks(
        params["blocks"], decoder.begin_forward(outside, rows.tokens), config, observed
    )

    def own(
        outside: Params, state: ForwardState, rows: TrainingRows, dense: TeacherBatch | None
    ) -> jax.Array:
        head, learn = decoder.head(outside), rows.learn[:, 1:]
        final = decoder.rms_norm(state.residual, outside["final_norm"], config.norm_eps)
        normaliser = log_normaliser(head, final)
        total = jnp.zeros(len(learn))
        if "next-token" in loss.goal:
            nll = negative_log_likelihood(head, final, normaliser, rows.tokens)
            total += jnp.sum(nll * learn, axis=1)
        if dense is not None:
            divergence = kl_divergence(head, dense.dense, final, normaliser)[:, :-1]
            total += jnp.sum(divergence * learn, axis=1)
            if observed:
                teacher, student = (array.astype(jnp.float32) for array in (dense.hidden, state.outputs))
                distance = hidden_distance(teacher, student, axes=(2, 3))
                total += loss.hidden * jnp.sum(learn, axis=1) * distance
        return total

    return devices.divided(own, whole=1)(outside, state, rows, dense)
