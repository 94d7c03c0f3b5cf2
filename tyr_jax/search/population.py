"""Score a population of candidates: one `vmap` over distributions, jitted with static shapes.

A candidate is scored at full width: its projections are gathered from the supernet layer by layer inside
the scan, while embeddings, queries, keys, values, gates and the teacher are shared by the candidates of a
chunk. The host walks chunks of candidates and sequences of one shape per stage, so each
stage compiles once. Axis letters: `C` candidates, `S` sequences, `T` tokens, `D` hidden, `L` layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.batches import BATCH_TOKENS, batches, candidate_tokens
from tyr_jax.model import decoder
from tyr_jax.model.prediction import predict
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.search.objective import Batch, Objective, observe, score
from tyr_jax.search.space import ATTENTION, FFN


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def teacher_batch(params: Params, tokens: jax.Array, config: ModelConfig, objective: Objective) -> Batch:
    """The dense model's answer on `tokens [S, T]`."""

    def apply(block: Block, x: jax.Array, rope: decoder.Rope) -> jax.Array:
        return decoder.apply_block(block, x, rope, config)

    final, hidden = observe(params, params["blocks"], apply, tokens, config, objective)
    return Batch(tokens, predict(params, final), hidden)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_chunk(
    params: Params,
    supernet: Supernet,
    candidates: jax.Array,
    batch: Batch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[C]` of `candidates [C, 2, L]` on one batch: a `vmap` over distributions."""

    def apply(layer: Any, x: jax.Array, rope: decoder.Rope) -> jax.Array:
        block, attn_out, mlp_down, levels = layer
        block = block | {"o": attn_out[levels[ATTENTION]], "down": mlp_down[levels[FFN]]}
        return decoder.apply_block(block, x, rope, config)

    def evaluate(distribution: jax.Array) -> jax.Array:
        layers: Any = (params["blocks"], supernet.attn_out, supernet.mlp_down, distribution.T)
        final, hidden = observe(params, layers, apply, batch.tokens, config, objective)
        return score(params, final, hidden, batch, objective)

    return jax.vmap(evaluate)(candidates)


def teacher_targets(
    params: Params,
    tokens: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_batch: Callable[[int], None] = lambda sequences: None,
) -> Batch:
    """The dense model's answer on a whole pool `tokens [S, T]`, computed a few sequences at a time."""
    parts = []
    for rows in batches(tokens, BATCH_TOKENS):
        part = teacher_batch(params, jnp.asarray(tokens[rows]), config, objective)
        parts.append(jax.block_until_ready(part))
        on_batch(len(part.tokens))
    read, dense, hidden = zip(*parts, strict=True)
    return Batch(
        jnp.concatenate(read),
        jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *dense),
        jnp.concatenate(hidden, axis=1),
    )


def take(pool: Batch, sequences: np.ndarray) -> Batch:
    """The part of a pool at `sequences [s]`."""
    dense = jax.tree.map(lambda array: array[sequences], pool.dense)
    return Batch(pool.tokens[sequences], dense, pool.hidden[:, sequences])


def over_chunks(
    prepare: Callable[[Batch], Callable[[np.ndarray], jax.Array]],
    candidates: np.ndarray,
    pool: Batch,
    sequences: np.ndarray,
    on_chunk: Callable[[int], None],
) -> np.ndarray:
    """Mean objective `[C]` of `candidates [C, 2, L]` over `sequences [s]` of the pool.

    `prepare(batch)` gives what scores a chunk of candidates on a batch. All candidates see the same tokens,
    so that their values compare. `on_chunk` is told the candidate-tokens done.
    """
    count, length = len(candidates), pool.tokens.shape[1]
    size = candidate_tokens()
    rows = min(len(sequences), max(1, size // length))
    width = min(count, max(1, size // (length * rows)))
    # Chunks of one shape compile once: the last ones are filled up with repeats that are then ignored.
    padded = np.concatenate([candidates, np.repeat(candidates[-1:], -count % width, axis=0)])
    weights, totals = [], []
    for start in range(0, len(sequences), rows):
        part = sequences[start : start + rows]
        weights.append(len(part))
        run = prepare(take(pool, part))
        values = []
        for first in range(0, len(padded), width):
            values.append(np.asarray(run(padded[first : first + width])))
            on_chunk(min(width, count - first) * len(part) * length)
        totals.append(np.concatenate(values)[:count])
    return np.average(totals, axis=0, weights=weights)


def score_population(
    params: Params,
    supernet: Supernet,
    candidates: np.ndarray,
    pool: Batch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda candidate_tokens: None,
) -> np.ndarray:
    """Mean objective `[C]` of `candidates [C, 2, L]` over `sequences [s]` of the pool, at full width."""

    def prepare(batch: Batch) -> Callable[[np.ndarray], jax.Array]:
        return lambda chunk: score_chunk(params, supernet, jnp.asarray(chunk), batch, config, objective)

    return over_chunks(prepare, candidates, pool, sequences, on_chunk)
