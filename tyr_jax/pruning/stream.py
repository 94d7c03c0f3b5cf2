"""The residual stream at a site, of one batch: what enters the site, its statistics, and the stream after it.

A site that is fitted only to its own dense output on the pruned stream leaves the errors of all earlier sites
in place. The stream of the dense model, followed next to the pruned one, shows what these errors add up to
after a site: the drift `d = r_dense − r_pruned`. A site fitted to its old output plus a share of the drift
has the weights `W + (Hs + Λ)⁻¹ Xᵀd · share`, and is pruned from those.

If a residual is a hundred times as large, the next norm divides it by a hundred, yet in a sum of squares its
token counts ten thousand times. Where drift is corrected, tokens therefore weigh 1 / rms(r) in X and d, so
that such tokens do not dominate the fit.

In a mixture of experts, XᵀX is that of every expert by itself. If a token goes to k experts, the square of
their summed error is at most k times the sum of the squares, so each expert corrects one k-th of the drift.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `N` heads, `H` head dim, `F` FFN width, `X` experts, `n`
devices.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.linear import linear
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning import hessian, linalg
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BATCH_TOKENS, batches
from tyr_jax.runtime.offload import Scratch

LEAST_GAIN = 0.1
"""Gain of a norm's channel, relative to the root mean square of all, below which the channel corrects ever
less of the drift."""

LEAST_WORTH = 1e-6
"""What an output with a gain of zero weighs in the metric, relative to the mean of all."""

COST_TOKENS = 2048
"""Tokens of the first batch that the levels of a site are compared on."""

LEAST_SQUARE = 0.01
"""Lower bound of a residual's mean square in the weight of its token, relative to the median of its
sequence."""

DRIFT_DAMPING = 0.1
"""λ of Λ as a fraction of each channel's diagonal entry of XᵀX, where drift is corrected."""


def embedded(
    params: Params,
    texts: Sequence[np.ndarray],
    batch_tokens: int = BATCH_TOKENS,
    scratch: Scratch | None = None,
) -> tuple[list[Any], list[int]]:
    """(residuals before the first block, `[B, T, D]` of every batch, on disk with `scratch`; how many
    sequences of each batch count).

    `texts` are arrays of tokens `[B, T]` of any lengths T. A device runs `batch_tokens` tokens at a time, in
    whole sequences.
    """
    read = [(tokens[rows.indices], rows.real) for tokens in texts for rows in batches(tokens, batch_tokens)]
    arrays = (decoder.embed(params, devices.place(jnp.asarray(tokens))) for tokens, _ in read)
    real = [real for _, real in read]
    if scratch is None:
        return list(arrays), real
    table = params["embed"]
    shapes = [jax.ShapeDtypeStruct((*tokens.shape, table.shape[1]), table.dtype) for tokens, _ in read]
    residual = scratch.empty(shapes)
    for target, x in zip(residual, arrays, strict=True):
        target[...] = devices.fetch(x)
    return residual, real


def site_units(kind: SiteKind, block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """What enters the site of a kind, `[B, T, ...]`, from residuals `x [B, T, D]`."""
    return kind.inputs(block, x, decoder.rope_tables(config, x.shape[1]), config)


Statistics = tuple[jax.Array, jax.Array]
"""What enters a site for every sequence of a batch, and the XᵀX of everything so far, one per device."""


@functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="gram")
def site_statistics(
    block: Block,
    x: jax.Array,
    gram: jax.Array,
    weights: jax.Array | None,
    kind: SiteKind,
    config: ModelConfig,
) -> Statistics:
    """(what enters the site of a kind, from residuals `x [B, T, D]`; `gram [n, d_in, d_in]`, or with experts
    `[n, X, F, F]`, with its XᵀX added in place). In XᵀX, tokens weigh `weights [B, T]`, or 1 without them."""

    def collect(block: Block, x: jax.Array, gram: jax.Array, weights: jax.Array | None) -> Statistics:
        units = site_units(kind, block, x, config)
        weights = behind_norm(kind, block, units, weights, config)
        # `gram` keeps its first axis: to remove and restore it, the TPU compiler would copy it twice.
        inputs = weighed(units, weights)
        if kind.apart(config):
            return units, hessian.update_experts(gram, inputs.reshape(units.shape))
        return units, hessian.update(gram, inputs)

    return devices.divided(collect, whole=1)(block, x, gram, weights)


def behind_norm(
    kind: SiteKind, block: Block, units: jax.Array, weights: jax.Array | None, config: ModelConfig
) -> jax.Array | None:
    """Weights `[B, T]` of tokens: their `weights [B, T]`, if any, divided by the output's root mean square if
    a norm follows the site, because that norm divides any error by it too."""
    if not config.post_norms:
        return weights
    out = linear(units.reshape(*units.shape[:2], -1), block[kind.output]).astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(out * out, axis=-1) + config.norm_eps)
    return scale if weights is None else weights * scale


def behind_gain(kind: SiteKind, block: Block, config: ModelConfig) -> jax.Array | None:
    """The gain `[D]` of the norm that follows a site, in float32; None if there is none."""
    return block[kind.post_norm].astype(jnp.float32) if config.post_norms else None


def metric_behind(metric: jax.Array | None, gain: jax.Array | None) -> jax.Array | None:
    """The metric `[D, D]` of a site's product, from that of what it adds to the residual, and the `gain [D]`
    of a norm between the two. The norm's division is in the weights of the tokens.

    Published models have gains of exactly zero. Their outputs weigh next to nothing, not nothing, so that the
    metric still has a Cholesky factor.
    """
    if metric is None or gain is None:
        return metric
    behind = metric * gain * gain[:, None]
    return behind + jnp.diag(jnp.full_like(gain, LEAST_WORTH * jnp.mean(jnp.diagonal(behind))))


def weighed(units: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`units [B, T, ...]` as X `[B, T, d_in]`, where tokens weigh `weights [B, T]`, or 1 without them."""
    inputs = units.reshape(*units.shape[:2], -1)
    return inputs if weights is None else inputs * weights[..., None].astype(inputs.dtype)


@functools.partial(jax.jit, static_argnames="even")
def token_weights(x: jax.Array, real: jax.Array, even: bool) -> jax.Array:
    """Weights of the tokens of residuals `x [B, T, D]`, `[B, T]` in float32.

    A token weighs 1 / rms(r), but at most ten times the median weight of its sequence. If `even`, every token
    weighs 1. Tokens beyond the first `real` sequences weigh 0.
    """
    wide = x.astype(jnp.float32)
    square = jnp.ones(x.shape[:2]) if even else jnp.mean(wide * wide, axis=-1)
    # Models have tokens that were never trained, whose embeddings are almost zero.
    square = jnp.maximum(square, LEAST_SQUARE * jnp.median(square, axis=1, keepdims=True))
    counts = (jnp.arange(len(x)) < real)[:, None] & (square > 0)
    return jnp.where(counts, jax.lax.rsqrt(jnp.where(counts, square, 1.0)), 0.0)


@functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="x")
def add_output(
    block: Block, x: jax.Array, units: jax.Array | None, kind: SiteKind, config: ModelConfig
) -> jax.Array:
    """The residual after the site of a kind, in place of `x [B, T, D]` before it, with the output projection
    of `block`. `units` is what enters the site; without it, that is computed from `x`."""

    def add(block: Block, x: jax.Array, units: jax.Array | None) -> jax.Array:
        units = site_units(kind, block, x, config) if units is None else units
        return x + kind.out(block, x, units, config)

    return devices.divided(add, whole=1)(block, x, units)


@functools.partial(jax.jit, static_argnames=("kind", "count", "config"))
def level_costs(
    block: Block,
    levels: jax.Array,
    x: jax.Array,
    units: jax.Array,
    metric: jax.Array | None,
    kind: SiteKind,
    count: int,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """(`share []`, how much the output y of the site of a kind counts; the `error [E]` of each of its
    `levels [E, d_in, D]`, relative to that), measured on the first `count` sequences of `x [B, T, D]` and of
    the `units` that enter it. Biases are left out; a norm that follows the site belongs to y.

    With the `metric [D, D]`, an error δ of y costs the mean over tokens of ½ δᵀ·metric·δ, in nats, and the
    share is what y itself would cost. Without a metric, the cost is the mean of ‖δ‖² / ‖r‖², with the
    residual r after the site.
    """
    x, units = x[:count], units[:count]
    inputs = units.reshape(*x.shape[:2], -1)
    if metric is None:
        after = x + kind.out(block, x, units, config)
        worth = token_weights(after, jnp.int32(count), even=False) ** 2 / config.hidden
    else:
        worth = jnp.full(x.shape[:2], 0.5)
    weights = worth / worth.size
    if (scale := behind_norm(kind, block, units, None, config)) is not None:
        weights = weights * scale**2
    metric = metric_behind(metric, behind_gain(kind, block, config))

    def cost(weight: jax.Array) -> jax.Array:
        delta = linalg.wide_matmul(inputs, weight.astype(inputs.dtype))
        counted = delta if metric is None else linalg.matmul(delta, metric)
        return jnp.sum(weights * jnp.sum(delta * counted, axis=-1))

    dense = block[kind.output].reshape(-1, config.hidden).astype(jnp.float32)
    share = cost(dense)
    costs = jax.lax.map(lambda weight: cost(dense - weight.astype(jnp.float32)), levels)
    return share, costs / jnp.maximum(share, jnp.finfo(jnp.float32).tiny)


class Drift(NamedTuple):
    """The dense model's residual `dense [B, T, D]` of a batch, and `pull [n, d_in, D]`, the sum of Xᵀd so
    far in the parts of n devices."""

    dense: jax.Array
    pull: jax.Array


@functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="drift")
def follow_dense(
    block: Block,
    x: jax.Array,
    units: jax.Array,
    weights: jax.Array,
    drift: Drift,
    kind: SiteKind,
    config: ModelConfig,
) -> Drift:
    """The `drift`, overwritten, after the site of a kind, in place of that before it.

    `block` has the dense weights, and perhaps which experts are kept. `x [B, T, D]` is the pruned residual
    before the site, and `units [B, T, ...]` is what enters the site from it. Tokens weigh `weights [B, T]`.
    """

    def follow(
        block: Block, x: jax.Array, units: jax.Array, weights: jax.Array, dense: jax.Array, pull: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        told = () if kind.admit is None else kind.admit(None)
        whole = {name: array for name, array in block.items() if name not in told}
        entering = site_units(kind, whole, dense, config)
        after = dense + kind.out(whole, dense, entering, config)
        own = x + kind.out(block, x, units, config)
        drift = after.astype(jnp.float32) - own.astype(jnp.float32)
        if (gain := behind_gain(kind, block, config)) is not None:
            # A channel of almost no gain cannot correct much.
            drift = drift * gain / (gain**2 + LEAST_GAIN**2 * jnp.mean(gain**2))
        # The norm's division cancels in the weighted drift.
        inputs = weighed(units, behind_norm(kind, block, units, weights, config))
        drift = (weights[..., None] * drift).astype(inputs.dtype)
        return after, pull + linalg.wide_matmul(_by_token(inputs).T, _by_token(drift))

    return Drift(*devices.divided(follow, whole=1)(block, x, units, weights, *drift))


def _by_token(array: jax.Array) -> jax.Array:
    return array.reshape(-1, array.shape[-1])


@jax.jit
def corrected_weight(weight: jax.Array, gram: jax.Array, pull: jax.Array, share: jax.Array) -> jax.Array:
    """A site's `weight [d_in, D]` refitted to correct a `share` of the drift, from XᵀX `gram [d_in, d_in]`,
    or with experts `[X, F, F]`, and Xᵀd in the parts `pull [n, d_in, D]` of n devices."""

    def change(gram: jax.Array, pull: jax.Array) -> jax.Array:
        return linalg.solve(hessian.damp(gram, DRIFT_DAMPING, "channel"), pull)

    total = devices.total(pull, 1)
    if gram.ndim == 2:
        return (weight + share * change(gram, total)).astype(weight.dtype)
    each = jax.lax.map(lambda one: change(*one), (gram, total.reshape(*gram.shape[:2], -1)))
    return (weight + share * each.reshape(weight.shape)).astype(weight.dtype)
