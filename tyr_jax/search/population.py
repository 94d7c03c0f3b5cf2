"""Score a population of candidates: one `vmap` over distributions, jitted with static shapes.

A candidate is scored at full width: its projections are gathered from the supernet layer by layer inside
the scan, while embeddings, queries, keys, values, gates and the teacher are shared by the candidates of a
chunk. The host walks chunks of candidates and sequences of one shape per stage, so each
stage compiles once. Axis letters: `C` candidates, `S` sequences, `T` tokens, `D` hidden, `L` layers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax import devices
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

    def apply(block: Block, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        return decoder.apply_block(block, x, rope, config)

    own = devices.divided(apply, whole=2)
    final, hidden = observe(params, params["blocks"], own, tokens, config, objective)
    return Batch(tokens, devices.divided(predict, whole=1)(decoder.head(params), final), hidden)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_chunk(
    params: Params,
    supernet: Supernet,
    candidates: jax.Array,
    batch: Batch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[C]` of `candidates [C, 2, L]` on a batch: a `vmap` over distributions."""

    def apply(layer: Any, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        block, attn_out, mlp_down, levels = layer
        block = block | {"o": attn_out[levels[ATTENTION]], "down": mlp_down[levels[FFN]]}
        return decoder.apply_block(block, x, rope, config)

    def alone(distribution: jax.Array) -> jax.Array:
        layers: Any = (params["blocks"], supernet.attn_out, supernet.mlp_down, distribution.T)
        final, hidden = observe(params, layers, apply, batch.tokens, config, objective)
        return score(decoder.head(params), final, hidden, batch, objective)

    return jax.vmap(alone)(candidates)


def teacher_targets(
    params: Params,
    tokens: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_batch: Callable[[int], None] = lambda sequences: None,
) -> Batch:
    """The dense model's answer on a whole pool `tokens [S, T]`, computed a few sequences at a time."""
    parts = []
    for rows, real in batches(tokens, BATCH_TOKENS):
        part = teacher_batch(params, jnp.asarray(tokens[rows]), config, objective)
        parts.append(jax.tree.map(lambda array, real=real: array[:real], jax.block_until_ready(part)))
        on_batch(real)
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def take(pool: Batch, sequences: np.ndarray) -> Batch:
    """The part of a pool at `sequences [s]`."""
    return jax.tree.map(lambda array: array[sequences], pool)


def part_rows(count: int, most: int) -> int:
    """Sequences of each of the fewest parts of one size, at most `most`, that `count` sequences make."""
    return max(size for size in range(1, max(1, most) + 1) if count % size == 0)


class Deal(NamedTuple):
    """How (chunk of candidates, part of sequences) pairs are dealt to devices: `beside` parts and `groups`
    chunks run at a time, of `rows` sequences and `width` candidates."""

    beside: int
    groups: int
    rows: int
    width: int


def deal(candidates: int, sequences: int, length: int) -> Deal:
    """How so many candidates and sequences of `length` tokens are dealt: as many parts beside each other as
    divide the number of devices, and only then several chunks."""
    size = candidate_tokens()
    rows = part_rows(sequences, size // length)
    beside = math.gcd(sequences // rows, devices.count())
    groups = devices.count() // beside
    width = min(-(-candidates // groups), size // (length * rows))
    return Deal(beside, groups, rows, max(1, width))


def over_chunks(
    prepare: Callable[[Batch], Callable[[np.ndarray], jax.Array]],
    candidates: np.ndarray,
    pool: Batch,
    sequences: np.ndarray,
    on_chunk: Callable[[int], None],
) -> np.ndarray:
    """Mean objective `[C]` of `candidates [C, 2, L]` over `sequences [s]` of the pool.

    A chunk of candidates meets a part of the sequences on one device. On n devices, n such pairs run at a
    time.

    Args:
        prepare: given the parts of all devices, one after the other, gives what scores a chunk on each of
            them: `[n, width, 2, L]` → `[n · width]`.
        candidates: all see the same tokens, so that their values compare.
        pool: the search text.
        sequences: of it.
        on_chunk: told the candidate-tokens done.
    """
    count, length = len(candidates), pool.tokens.shape[1]
    beside, groups, rows, width = deal(count, len(sequences), length)
    # Chunks of one shape compile once: the last ones are filled up with repeats that are then ignored.
    numbers = -(-count // (groups * width))
    padded = np.concatenate([candidates, np.repeat(candidates[-1:], -count % (groups * width), axis=0)])
    chunks = padded.reshape(numbers, groups, width, *candidates.shape[1:])
    means = []
    for together in sequences.reshape(-1, beside, rows):
        run = prepare(take(pool, np.tile(together.ravel(), groups)))
        values = [np.empty((0, width))]
        for number, chunk in enumerate(chunks):
            scores = devices.fetch(run(np.repeat(chunk, beside, axis=0)))
            values.append(scores.reshape(groups, beside, width).mean(axis=1))
            new = min(groups * width, count - number * groups * width)
            on_chunk(new * together.size * length)
        means.append(np.concatenate(values).reshape(-1)[:count])
    return np.mean(means, axis=0)


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
    """Mean objective `[C]` of `candidates [C, 2, L]` over `sequences [s]` of the pool, at full width, on one
    device."""

    def prepare(batch: Batch) -> Callable[[np.ndarray], jax.Array]:
        def run(chunks: np.ndarray) -> jax.Array:
            joined = jnp.asarray(np.concatenate(chunks))
            return score_chunk(params, supernet, joined, batch, config, objective)

        return run

    return over_chunks(prepare, candidates, pool, sequences, on_chunk)
