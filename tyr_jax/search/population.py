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
from tyr_jax.model.decoder import Seen
from tyr_jax.model.prediction import predict
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.search.objective import Batch, Objective, score_seen
from tyr_jax.search.space import ATTENTION, FFN


@functools.partial(jax.jit, static_argnames="config")
def dense_answer(params: Params, seen: Seen, tokens: jax.Array, config: ModelConfig) -> Batch:
    """The dense model's answer on `tokens [S, T]`, from what it has made of them behind its last layer;
    `params` has what lies outside its blocks."""
    final = decoder.final_hidden(params, seen.residual, config)
    answer = devices.divided(predict, whole=1)(decoder.head(params), final)
    return Batch(tokens, answer, seen.outputs)


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
        layers = params["blocks"], supernet.attn_out, supernet.mlp_down, distribution.T
        seen = Seen.begin(decoder.embed(params, batch.tokens))
        seen = decoder.scan_layers(layers, apply, seen, config, objective.observed_layers(config.depth))
        return score_seen(params, seen, batch, config, objective)

    return jax.vmap(alone)(candidates)


def teacher_targets(
    params: Params,
    tokens: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_batch: Callable[[int], None] = lambda sequences: None,
) -> Batch:
    """The dense model's answer on a whole pool `tokens [S, T]`, computed a few sequences at a time."""
    rows = batches(tokens, BATCH_TOKENS)
    texts, parts = [jnp.asarray(tokens[part.indices]) for part in rows], []
    states = decoder.run_model(params, texts, config, objective.observed_layers(config.depth))
    for seen, text, (_, real) in zip(states, texts, rows, strict=True):
        part = jax.block_until_ready(dense_answer(decoder.outside(params), seen, text, config))
        parts.append(jax.tree.map(lambda array, real=real: array[:real], part))
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


class Dealt(NamedTuple):
    """Candidates and sequences as they run: `sequences [P, n · rows]`, those of n devices one after the
    other; `chunks [M, n, width, 2, L]` of candidates, one for each device, which meet all of them; and how
    many of the candidates there are `real [M]`, not repeats."""

    deal: Deal
    sequences: np.ndarray
    chunks: np.ndarray
    real: list[int]

    @property
    def together(self) -> int:
        """Sequences that a candidate meets at a time."""
        return self.deal.beside * self.deal.rows

    def means(self, scores: np.ndarray) -> np.ndarray:
        """Mean `[C]` over all sequences of the candidates' `scores [P, M, n · width]`."""
        beside, groups, _, width = self.deal
        means = scores.reshape(*scores.shape[:2], groups, beside, width).mean(axis=(0, 3))
        return means.reshape(-1)[: sum(self.real)]


def dealt(candidates: np.ndarray, sequences: np.ndarray, length: int) -> Dealt:
    """`candidates [C, 2, L]` and `sequences [s]` of `length` tokens as they run: a chunk of candidates meets
    a part of the sequences on one device, and on n devices n such pairs run at a time."""
    count, sites = len(candidates), candidates.shape[1:]
    plan = deal(count, len(sequences), length)
    beside, groups, rows, width = plan
    # Chunks of one shape compile once: the last ones are filled up with repeats that are then ignored.
    together = groups * width
    padded = np.concatenate([candidates, np.repeat(candidates[-1:], -count % together, axis=0)])
    chunks = np.repeat(padded.reshape(-1, groups, width, *sites), beside, axis=1)
    tiled = np.tile(sequences.reshape(-1, beside * rows), (1, groups))
    return Dealt(plan, tiled, chunks, [min(together, count - start) for start in range(0, count, together)])


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
    device; `on_chunk` is told the candidate-tokens done."""
    work = dealt(candidates, sequences, pool.tokens.shape[1])
    scores = np.empty((len(work.sequences), len(work.chunks), work.deal.width))
    for index, part in enumerate(work.sequences):
        batch = take(pool, part)
        for number, (chunk, real) in enumerate(zip(work.chunks, work.real, strict=True)):
            scores[index, number] = score_chunk(
                params, supernet, jnp.asarray(chunk[0]), batch, config, objective
            )
            on_chunk(real * batch.tokens.size)
    return work.means(scores)
