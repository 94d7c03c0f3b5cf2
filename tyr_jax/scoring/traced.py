"""Scores and slopes of candidates as JAX functions, for searches that run as one program.

`tyr_jax.scoring.scorer` plans on the host which candidates run together and what they share. Here, nothing
returns to the host: levels may be traced, and every candidate runs all layers by itself. On a CPU, candidates
run one after the other, each at the widths that fit it; elsewhere side by side, at full width. It runs on one
device, or on each device's own part of a `divided` function.

Axis letters: `C` candidates, `P` parts of a text, `B` sequences, `T` tokens, `S` kinds of site, `L` layers,
`E` levels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import Block
from tyr_jax.scoring.nested import Nested
from tyr_jax.scoring.objective import Scoring, TeacherBatch
from tyr_jax.scoring.scorer import CandidateLayer, apply_layer


def begin(nested: Nested, batch: TeacherBatch) -> ForwardState:
    """The state before the first layer."""
    return ForwardState.of_residual(nested.params["embed"][batch.tokens])


def fitting_buckets(nested: Nested, kept: jax.Array, scoring: Scoring) -> jax.Array:
    """For every site, the bucket `[S, L]` of the smallest width for the `kept [S, L]` units."""
    config = scoring.config
    rows = zip(nested.kinds, nested.widths, kept, strict=True)
    found = [jnp.searchsorted(jnp.asarray(widths), row * kind.span(config)) for kind, widths, row in rows]
    return jnp.minimum(jnp.stack(found), widest_buckets(nested, scoring))


def widest_buckets(nested: Nested, scoring: Scoring) -> jax.Array:
    """The bucket `[S, L]` of every site's full width."""
    config = scoring.config
    rows = zip(nested.kinds, nested.widths, strict=True)
    layers = range(config.depth)
    return jnp.array(
        [[len(widths) - 1 if kind.has(config, at) else 0 for at in layers] for kind, widths in rows]
    )


def score_at(
    nested: Nested, levels: jax.Array, batch: TeacherBatch, scoring: Scoring, *, fitting: bool
) -> jax.Array:
    """The objective of `levels [S, L]` on a batch; at the widths that fit them, or at full width."""
    config = scoring.config
    kept = jnp.take_along_axis(jnp.asarray(nested.kept), levels[..., None], axis=-1)[..., 0]
    buckets = fitting_buckets(nested, kept, scoring) if fitting else widest_buckets(nested, scoring)
    rope = decoder.rope_tables(config, batch.tokens.shape[-1])

    def step(layer: jax.Array, x: jax.Array) -> jax.Array:
        own = CandidateLayer(layer, levels[:, layer], kept[:, layer], buckets[:, layer])
        return apply_layer(nested, own, x, rope, config)

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        return jax.lax.fori_loop(start, stop, step, x)

    state = decoder.watch(begin(nested, batch), advance, config.depth, scoring.observed)
    return scoring.score(decoder.outside(nested.params), state, batch)


def scores(nested: Nested, candidates: jax.Array, batch: TeacherBatch, scoring: Scoring) -> jax.Array:
    """The objective `[C]` of `candidates [C, S, L]` on a batch."""

    def each(fitting: bool, nested: Nested, candidates: jax.Array, batch: TeacherBatch) -> jax.Array:
        one: Any = functools.partial(score_at, scoring=scoring, fitting=fitting)
        one = jax.custom_batching.sequential_vmap(one) if fitting else one
        return jax.vmap(one, in_axes=(None, 0, None))(nested, candidates, batch)

    in_turn, beside = functools.partial(each, True), functools.partial(each, False)
    return jax.lax.platform_dependent(nested, candidates, batch, cpu=in_turn, default=beside)


def slopes(nested: Nested, levels: jax.Array, batch: TeacherBatch, scoring: Scoring) -> jax.Array:
    """Slopes `[B, S, L, E]` of the objective on each sequence of a batch, from `levels [S, L]` towards every
    level, as `tyr_jax.scoring.slopes` defines them."""
    config = scoring.config
    shares = jax.nn.one_hot(levels, nested.kept.shape[-1])

    def objective(shares: jax.Array, batch: TeacherBatch) -> jax.Array:
        own = jax.tree.map(lambda array: array[None], batch)
        mixed = {
            kind.output: jnp.einsum("le,le...->l...", shares[row], nested.weights[kind.name])
            for row, kind in enumerate(nested.kinds)
        }

        def apply(block: Block, rope: decoder.Rope, x: jax.Array) -> jax.Array:
            return decoder.apply_block(block, x, rope, config)

        blocks = nested.params["blocks"] | mixed
        state = decoder.scan_layers(blocks, apply, begin(nested, own), config, scoring.observed)
        return scoring.score(decoder.outside(nested.params), state, own)

    found = jax.vmap(jax.grad(objective), in_axes=(None, 0))(shares, batch)
    now = jnp.take_along_axis(found, levels[None, ..., None], axis=-1)
    return found - now
