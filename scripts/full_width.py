"""Score candidates in the plain formulation: one `vmap` over distributions, at full width.

A candidate's projections are gathered from the supernet layer by layer inside the scan; embeddings, queries,
keys, values, gates and the teacher are shared. `tyr_jax.scoring.nested` computes the same, and pays only for
the units that are kept.

Axis letters: `C` candidates, `S` kinds of site, `L` layers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_candidates(
    params: Params,
    supernet: Supernet,
    candidates: jax.Array,
    batch: TeacherBatch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[C]` of `candidates [C, S, L]` on a batch, on one device."""

    def apply(layer: Any, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        block, stacks, levels, admitted = layer
        pruned = {kind.output: stacks[kind.name][levels[row]] for row, kind in enumerate(supernet.kinds)}
        return decoder.apply_block(block | pruned | admitted, x, rope, config)

    def alone(distribution: jax.Array) -> jax.Array:
        admitted = jax.vmap(supernet.admitted, in_axes=(0, 1))(jnp.arange(config.depth), distribution)
        layers = params["blocks"], supernet.weights, distribution.T, admitted
        state = ForwardState.of_residual(decoder.embed(params, batch.tokens))
        scoring = Scoring.of_model(config, objective)
        state = decoder.scan_layers(layers, apply, state, config, scoring.observed)
        return scoring.score(params, state, batch)

    return jax.vmap(alone)(candidates)
