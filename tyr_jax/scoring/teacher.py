"""The search text with the dense model's predictions on it.

Axis letters: `B` sequences, `T` tokens, `D` hidden.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.prediction import predict
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BATCH_TOKENS, batches
from tyr_jax.scoring.objective import Objective, TeacherBatch


@functools.partial(jax.jit, static_argnames="config")
def teacher_answer(
    params: Params, state: ForwardState, tokens: jax.Array, config: ModelConfig
) -> TeacherBatch:
    """The dense model's predictions on `tokens [B, T]`, from its forward state after the last layer. `params`
    has the weights outside its blocks."""
    final = decoder.final_hidden(params, state.residual, config)
    answer = devices.divided(predict, whole=1)(decoder.head(params), final)
    return TeacherBatch(tokens, answer, state.outputs)


def teacher_targets(
    params: Params,
    tokens: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_batch: Callable[[int], None] = lambda sequences: None,
) -> TeacherBatch:
    """The dense model's predictions on a whole pool `tokens [B, T]`, computed a few sequences at a time."""
    rows = batches(tokens, BATCH_TOKENS)
    texts, parts = [jnp.asarray(tokens[part.indices]) for part in rows], []
    states = decoder.run_model(params, texts, config, objective.observed_layers(config.depth))
    for state, text, (_, real) in zip(states, texts, rows, strict=True):
        part = jax.block_until_ready(teacher_answer(decoder.outside(params), state, text, config))
        parts.append(jax.tree.map(lambda array, real=real: array[:real], part))
        on_batch(real)
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def take(pool: TeacherBatch, sequences: np.ndarray) -> TeacherBatch:
    """The part of a pool at `sequences [s]`."""
    return jax.tree.map(lambda array: array[sequences], pool)
