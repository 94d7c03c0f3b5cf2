"""Score a population of candidates: one `vmap` over distributions, jitted with static shapes.

A candidate is scored at full width. Its projections are gathered from the supernet layer by layer inside the
scan; embeddings, queries, keys, values, gates and the teacher are shared by the candidates of a chunk. The
host walks chunks of candidates and sequences of one shape per stage, so each stage compiles once.

Axis letters: `C` candidates, `B` sequences, `T` tokens, `D` hidden, `S` kinds of site, `L` layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring.chunking import chunk_population
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take
from tyr_jax.space import Candidates, Fitness


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_chunk(
    params: Params,
    supernet: Supernet,
    candidates: jax.Array,
    batch: TeacherBatch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[C]` of `candidates [C, S, L]` on a batch: a `vmap` over distributions."""

    def apply(layer: Any, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        block, stacks, levels, admitted = layer
        pruned = {kind.output: stacks[kind.name][levels[row]] for row, kind in enumerate(supernet.kinds)}
        return decoder.apply_block(block | pruned | admitted, x, rope, config)

    def alone(distribution: jax.Array) -> jax.Array:
        admitted = supernet.admitted(jnp.arange(config.depth), distribution)
        layers = params["blocks"], supernet.weights, distribution.T, admitted
        state = ForwardState.begin(decoder.embed(params, batch.tokens))
        scoring = Scoring.of_model(config, objective)
        state = decoder.scan_layers(layers, apply, state, config, scoring.observed)
        return scoring.score(params, state, batch)

    return jax.vmap(alone)(candidates)


def score_population(
    params: Params,
    supernet: Supernet,
    candidates: Candidates,
    pool: TeacherBatch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda candidate_tokens: None,
) -> Fitness:
    """Mean objective `[C]` of `candidates [C, S, L]` over `sequences [s]` of the pool, at full width, on one
    device; `on_chunk` is called with the candidate-tokens done."""
    work = chunk_population(candidates, sequences, pool.tokens.shape[1])
    scores = np.empty((len(work.sequences), len(work.chunks), work.shape.width))
    for index, part in enumerate(work.sequences):
        batch = take(pool, part)
        for number, (chunk, real) in enumerate(zip(work.chunks, work.real, strict=True)):
            scores[index, number] = score_chunk(
                params, supernet, jnp.asarray(chunk[0]), batch, config, objective
            )
            on_chunk(real * batch.tokens.size)
    return work.means(scores)
