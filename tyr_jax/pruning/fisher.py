"""How much a change of a site's output changes what the model predicts.

H_out = E[g gᵀ], where g is the gradient, with respect to a site's output, of the log-likelihood of tokens
drawn from the model's own predictions: the Fisher information of the output (K-FAC, Martens & Grosse 2015).
With Hs = XᵀX of the site's inputs over T tokens, a change Δ of its weight then moves the predictions by about
½ tr(Δᵀ Hs Δ H_out) / T nats per token, for every site alike.

One forward and one backward pass of the dense model give H_out, one layer at a time. Only the residuals
before the layers are kept. If the layers are on disk, only one is in memory at a time.

Axis letters: `S` kinds of site, `L` layers, `B` sequences, `T` tokens, `D` hidden.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.prediction import sampled_score, sequence_keys
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning import hessian
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.runtime import devices, offload
from tyr_jax.runtime.batches import BatchRows, batches
from tyr_jax.runtime.offload import Scratch, Segment

BATCH_TOKENS = 2048
"""Tokens that a device runs at a time: the residuals before all layers are in memory together."""

SHRINKAGE = 0.05
"""How far H_out is shrunk towards a multiple of the identity, because it is estimated from few tokens."""


@functools.partial(jax.jit, static_argnames="config")
def forward(blocks: Block, x: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """(residual `[B, T, D]` after the l stacked layers `blocks`, residuals before each of them
    `[l, B, T, D]`)."""
    rope = decoder.rope_tables(config, x.shape[1])
    run = devices.divided(lambda block, rope, x: decoder.apply_block(block, x, rope, config), whole=2)

    def step(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
        return run(block, rope, x), x

    return jax.lax.scan(step, x, blocks)


@functools.partial(jax.jit, static_argnames="config")
def answer_gradient(
    params: Params, x: jax.Array, keys: jax.Array, real: jax.Array, config: ModelConfig
) -> jax.Array:
    """Gradient `[B, T, D]`, with respect to the residuals `x` after the last layer, of the log-likelihood of
    tokens drawn from the model's predictions.

    The data of the random keys are `keys [B, 2]`. The gradient is zero for sequences that are not `real [B]`.
    """

    def own(params: Params, x: jax.Array, keys: jax.Array, real: jax.Array) -> jax.Array:
        hidden, back = jax.vjp(lambda x: decoder.rms_norm(x, params["final_norm"], config.norm_eps), x)
        typed = jax.random.wrap_key_data(keys)
        gradient = sampled_score(decoder.head(params), hidden, typed) * real[:, None, None]
        return back(gradient.astype(hidden.dtype))[0]

    return devices.divided(own, whole=1)(params, x, keys, real)


@functools.partial(jax.jit, static_argnames=("config", "kinds"), donate_argnames="total")
def backward(
    blocks: Block,
    before: jax.Array,
    gradient: jax.Array,
    total: jax.Array,
    config: ModelConfig,
    kinds: tuple[SiteKind, ...],
) -> tuple[jax.Array, jax.Array]:
    """(gradient `[B, T, D]` with respect to the residual before layers `blocks`, `total [l, S, D, D]` with
    the sums of g gᵀ of their sites added in place).

    `gradient` is that after the layers, and `before [l, B, T, D]` are the residuals before each. Only the
    upper block triangle of the sums is meaningful.
    """
    rope = decoder.rope_tables(config, gradient.shape[1])

    def own(block: Block, rope: decoder.Rope, x: jax.Array, behind: jax.Array) -> tuple[jax.Array, jax.Array]:
        backs, sums = [], []
        for kind in kinds:
            x, back = jax.vjp(lambda x, kind=kind: kind.add(block, x, rope, config), x)
            backs.append(back)
        for back in reversed(backs):
            sums.append(hessian.update(hessian.init(config.hidden), behind))
            behind = back(behind)[0]
        return behind, jnp.stack(sums[::-1])[None]

    def step(state: tuple[jax.Array, jax.Array], layer: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (gradient, total), (index, block, x) = state, layer
        gradient, sums = devices.divided(own, whole=2)(block, rope, x, gradient)
        # Each device sums over its own tokens; of the sum over all devices it keeps only its columns.
        return (gradient, total.at[index].add(devices.total(sums, 2))), None

    layers = jnp.arange(len(total)), blocks, before
    return jax.lax.scan(step, (gradient, total), layers, reverse=True)[0]


@functools.partial(jax.jit, donate_argnames="total")
def finish(total: jax.Array, tokens: jax.Array) -> jax.Array:
    """H_out `[l, S, D, D]`, the mean of g gᵀ shrunk towards a multiple of the identity (`SHRINKAGE`), from
    the upper block triangles of the sums over this many `tokens`. Devices have its columns."""
    size = total.shape[-1]
    mean = (jnp.triu(total) + jnp.triu(total, 1).swapaxes(-1, -2)) / tokens
    level = jnp.trace(mean, axis1=-2, axis2=-1)[..., None, None] / size
    return devices.place((1 - SHRINKAGE) * mean + SHRINKAGE * level * jnp.eye(size), 3)


def output_metrics(
    params: Params,
    tokens: np.ndarray,
    config: ModelConfig,
    kinds: tuple[SiteKind, ...],
    seed: int,
    *,
    scratch: Scratch | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Any:
    """H_out of every site, `[L, S, D, D]` in float32, from text `tokens [B, T]` (the output factor of K-FAC).

    Args:
        params: the dense model, with stacked blocks.
        tokens: the text.
        config: the model's configuration.
        kinds: its kinds of site.
        seed: decides which tokens are drawn from the predictions on the text.
        scratch: where the result is kept on disk; the layers of `params` are then on disk too.
        on_tokens: called with the number of tokens finished since its last call.
    """
    keys, rows = sequence_keys(seed, len(tokens)), batches(tokens, BATCH_TOKENS)
    shape = (len(kinds), config.hidden, config.hidden)

    def no_sums(layers: int) -> jax.Array:
        return devices.place(jnp.zeros((layers, *shape)), 3)

    if scratch is None:
        total = no_sums(config.depth)
        for part in rows:
            start = functools.partial(_same, total)
            ((_, total),) = batch_sums(params, [part], tokens, keys, config, kinds, start)
            on_tokens(part.real * tokens.shape[1])
        return finish(total, jnp.float32(tokens.size))
    metrics = scratch.empty(jax.ShapeDtypeStruct((config.depth, *shape), np.float32))
    for segment, sums in batch_sums(params, rows, tokens, keys, config, kinds, no_sums):
        metrics[segment.start : segment.stop] = devices.fetch(finish(sums, jnp.float32(tokens.size)))
        on_tokens(tokens.size * (segment.stop - segment.start) // config.depth)
    return metrics


def _same(sums: jax.Array, layers: int) -> jax.Array:
    return sums


def batch_sums(
    params: Params,
    rows: list[BatchRows],
    tokens: np.ndarray,
    keys: np.ndarray,
    config: ModelConfig,
    kinds: tuple[SiteKind, ...],
    start: Callable[[int], jax.Array],
) -> Iterator[tuple[Segment, jax.Array]]:
    """Sums of g gᵀ `[l, S, D, D]` over batches `rows` of `tokens [B, T]`, for every segment of layers from
    the last to the first. They are added to the sums that `start` returns for the l layers of a segment."""
    blocks, layers = params["blocks"], range(config.depth)
    outside, keep = decoder.outside(params), devices.fetch if offload.on_disk(blocks) else lambda x: x
    x = [decoder.embed(params, devices.place(jnp.asarray(tokens[part.indices]))) for part in rows]
    before: list[list[Any]] = []
    for segment in offload.segments(blocks, layers):
        ran = [forward(devices.spread(segment.weights, config.hidden_axes), each, config) for each in x]
        x, seen = map(list, zip(*ran, strict=True))
        before.append([keep(each) for each in seen])
    gradients = []
    for part, each in zip(rows, x, strict=True):
        real = devices.place(jnp.arange(len(part.indices)) < part.real)
        gradients.append(
            answer_gradient(outside, each, devices.place(jnp.asarray(keys[part.indices])), real, config)
        )
    for segment in offload.segments(blocks, layers[::-1]):
        weights = devices.spread(segment.weights, config.hidden_axes)
        sums = start(segment.stop - segment.start)
        for index, seen in enumerate(before.pop()):
            gradients[index], sums = backward(weights, seen, gradients[index], sums, config, kinds)
        yield segment, sums
