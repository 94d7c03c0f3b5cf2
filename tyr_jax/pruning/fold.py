"""The fold over the blocks that builds a supernet (method §2, Algorithm 2).

Each block runs once: attention → its Hessian → prune `o_proj` → the FFN's input from the accumulated
result → its Hessian → prune `down_proj` → next. What a site passes on is its output under the weight
`W̄ = Σ_e p_e W_e`; the site is linear in its weight, so that is the expectation of Eq. 5 over levels with
probabilities `p`, and every mode of error accumulation is one choice of `p`.

Axis letters: `L` layers, `E` levels, `B` sequences, `T` tokens, `D` hidden, `N` heads, `H` head dim,
`F` FFN width, `U` units of a site.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params, layer_block
from tyr_jax.pruning import hessian
from tyr_jax.pruning.settings import Accumulation, PruningSettings
from tyr_jax.pruning.site import PrunedSite, prune_site
from tyr_jax.pruning.supernet import Supernet, empty_supernet, with_layer
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BATCH_TOKENS, batches
from tyr_jax.runtime.offload import Scratch, on_disk
from tyr_jax.space import ATTENTION, FFN, KINDS, LevelGrid

SHARE_TOKENS = 4096
"""Tokens of the first batch that tell how much of the residual stream a site's output is."""


def level_probabilities(
    mode: Accumulation, kept: np.ndarray, exists: np.ndarray, units: int, rng: np.random.Generator
) -> np.ndarray:
    """Weights `p [E]` with which a site's levels are passed on (Eq. 5 and the modes of Table 4).

    `expectation`: proportional to `1 − S_e`, the share kept. `uniform`: equal over the levels that exist.
    `random`: one level drawn per site. `centre`: the middle level. (`none` passes on the dense weight,
    which need not be a level: the fold handles it.)
    """
    levels = len(kept)
    if mode == "expectation":
        share = np.where(exists, kept / units, 0.0)
    elif mode == "uniform":
        share = exists.astype(float)
    elif mode == "random":
        share = np.eye(levels)[rng.choice(np.flatnonzero(exists))]
    else:
        share = np.eye(levels)[levels // 2]
    return (share / share.sum()).astype(np.float32)


class Fold(NamedTuple):
    """Where a fold over the blocks stands: the supernet, of which layers `done` on are still empty, and the
    residuals `[B, T, D]`, one for each batch of calibration text, that enter the next, on devices or on disk;
    the first `real` sequences of each count."""

    supernet: Supernet
    done: int
    residual: list[Any]
    real: list[int]


Statistics = tuple[jax.Array, jax.Array]
"""What enters a projection, of every sequence of a batch, and the XᵀX of all so far, one of every device."""


def collected(
    enter: Callable[[Block, jax.Array], jax.Array],
    block: Block,
    x: jax.Array,
    gram: jax.Array,
    counts: jax.Array | None,
) -> Statistics:
    """`enter(block, x)`, from residuals `x [B, T, D]`, and `gram [n, d_in, d_in]` with its XᵀX; sequences
    count `counts [B]` times there, or once."""

    def collect(block: Block, x: jax.Array, gram: jax.Array, counts: jax.Array | None) -> Statistics:
        units = enter(block, x)
        inputs = units.reshape(*x.shape[:2], -1)
        if counts is not None:
            inputs = inputs * counts[:, None, None].astype(inputs.dtype)
        return units, hessian.update(gram[0], inputs)[None]

    return devices.divided(collect, whole=1)(block, x, gram, counts)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="gram")
def attention_statistics(
    block: Block, x: jax.Array, gram: jax.Array, counts: jax.Array | None, config: ModelConfig
) -> Statistics:
    """Head outputs `[B, T, N, H]` and updated `gram [n, d_in, d_in]`, as `collected`, in place."""

    def enter(block: Block, x: jax.Array) -> jax.Array:
        return decoder.attention_units(block, x, decoder.rope_tables(config, x.shape[1]), config)

    return collected(enter, block, x, gram, counts)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="gram")
def ffn_statistics(
    block: Block, x: jax.Array, gram: jax.Array, counts: jax.Array | None, config: ModelConfig
) -> Statistics:
    """Neuron activations `[B, T, F]` and updated `gram [n, d_in, d_in]`, as `collected`, in place."""
    return collected(lambda block, x: decoder.ffn_units(block, x, config), block, x, gram, counts)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="x")
def add_attention(block: Block, x: jax.Array, units: jax.Array | None, config: ModelConfig) -> jax.Array:
    """Residual after attention with the output projection of `block`, in place of `x`, from head `units`, or
    from `x` alone."""

    def add(block: Block, x: jax.Array, units: jax.Array | None) -> jax.Array:
        if units is None:
            units = decoder.attention_units(block, x, decoder.rope_tables(config, x.shape[1]), config)
        return x + decoder.attention_output(block, units)

    return devices.divided(add, whole=1)(block, x, units)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="x")
def add_ffn(block: Block, x: jax.Array, units: jax.Array | None, config: ModelConfig) -> jax.Array:
    """Residual after the FFN with the down projection of `block`, in place of `x`, from the neurons' `units`,
    or from `x` alone."""

    def add(block: Block, x: jax.Array, units: jax.Array | None) -> jax.Array:
        return x + decoder.ffn_output(block, decoder.ffn_units(block, x, config) if units is None else units)

    return devices.divided(add, whole=1)(block, x, units)


@functools.partial(jax.jit, static_argnames="count")
def output_share(weight: jax.Array, x: jax.Array, units: jax.Array, count: int) -> jax.Array:
    """Mean over tokens of ‖site output‖² / ‖residual‖², from the first `count` sequences of `x [B, T, D]` and
    of what enters `weight`."""
    x, inputs = x[:count], units.reshape(*x.shape[:2], -1)[:count]
    out = inputs @ weight
    return jnp.mean(jnp.sum(out * out, axis=-1) / jnp.sum(x * x, axis=-1))


def begin_fold(
    params: Params,
    supernet: Supernet,
    texts: Sequence[np.ndarray],
    batch_tokens: int = BATCH_TOKENS,
    scratch: Scratch | None = None,
) -> Fold:
    """A fold before its first block, over `texts`, arrays of tokens `[B, T]` of any lengths T, of which
    `batch_tokens` run at a time, in whole sequences; `supernet` is empty. With `scratch`, residuals are on
    disk."""
    read = [(tokens[rows.indices], rows.real) for tokens in texts for rows in batches(tokens, batch_tokens)]
    embedded = (decoder.embed(params, devices.place(jnp.asarray(tokens))) for tokens, _ in read)
    real = [real for _, real in read]
    if scratch is None:
        return Fold(supernet, 0, list(embedded), real)
    table = params["embed"]
    shapes = [jax.ShapeDtypeStruct((*tokens.shape, table.shape[1]), table.dtype) for tokens, _ in read]
    residual = scratch.empty(shapes)
    for target, x in zip(residual, embedded, strict=True):
        target[...] = devices.fetch(x)
    return Fold(supernet, 0, residual, real)


def collect(
    statistics: Callable[..., Statistics],
    block: Block,
    residual: list[Any],
    real: list[int],
    size: int,
    config: ModelConfig,
) -> tuple[list[jax.Array | None], jax.Array]:
    """What enters a projection of `size` channels, of all batches (of the first alone where residuals are on
    disk), and its XᵀX."""
    stays, gram = on_disk(residual), devices.copies(hessian.init(size))
    units: list[jax.Array | None] = []
    for x, count in zip(residual, real, strict=True):
        counts = None if count == len(x) else jnp.arange(len(x)) < count
        x = devices.place(jnp.array(x)) if stays else x
        unit, gram = statistics(block, x, gram, counts, config)
        units.append(None if stays and units else unit)
    return units, gram


def pass_on(
    add: Callable[..., jax.Array], block: Block, residual: list[Any], units: list[Any], config: ModelConfig
) -> list[Any]:
    """The residuals behind a sublayer of `block`, in place of those before it."""
    if not on_disk(residual):
        return [add(block, x, unit, config) for x, unit in zip(residual, units, strict=True)]
    for x, unit in zip(residual, units, strict=True):
        x[...] = devices.fetch(add(block, devices.place(jnp.array(x)), unit, config))
    return residual


def fold_block(
    params: Params,
    fold: Fold,
    config: ModelConfig,
    grid: LevelGrid,
    settings: PruningSettings,
    seed: int,
    on_site: Callable[[str, float], None],
) -> Fold:
    """Prune the next block and pass the residuals on behind it (a step of Algorithm 2), in place of those of
    `fold`.

    Raises:
        UserError: a site's Hessian is not finite; names the site.
    """
    layer, shape = fold.done, config.dense_shape
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], layer))
    block = devices.spread(block, config.hidden)

    def prune(kind: int, gram: jax.Array, weight: jax.Array) -> tuple[PrunedSite, jax.Array]:
        """The pruned site, and the weight that its output is passed on with."""
        name, count = f"layer {layer} {KINDS[kind]}", settings.kinds(config)[kind].units
        kept, exists = grid.kept[kind, layer], grid.exists[kind, layer]
        site = prune_site(settings.site(hessian.finish(gram), weight, kept, exists, count), settings.pruner)
        if not np.isfinite(devices.fetch(site.error)).all():
            raise UserError(
                f"the inputs of {name} gave a Hessian that is not finite or cannot be factorised even with "
                "more damping; check the weights of this layer and of those before it"
            )
        on_site(name, float(devices.fetch(site.damping)))
        if settings.accumulation == "none":
            return site, weight
        rng = np.random.default_rng((seed, layer, kind))
        p = level_probabilities(settings.accumulation, kept, exists, count, rng)
        return site, jnp.einsum("e,eio->io", p, site.weights).astype(weight.dtype)

    dense, residual = block["o"].reshape(-1, config.hidden), fold.residual
    seen = min(fold.real[0], max(1, SHARE_TOKENS // residual[0].shape[1]))
    size = shape.heads * config.head_dim
    units, gram = collect(attention_statistics, block, residual, fold.real, size, config)
    attention, passed = prune(ATTENTION, gram, dense)
    share = [output_share(dense, residual[0], units[0], seen)]
    passed_block = block | {"o": passed.reshape(block["o"].shape)}
    residual = pass_on(add_attention, passed_block, residual, units, config)

    units, gram = collect(ffn_statistics, block, residual, fold.real, shape.ffn, config)
    ffn, passed = prune(FFN, gram, block["down"])
    share.append(output_share(block["down"], residual[0], units[0], seen))
    residual = pass_on(add_ffn, block | {"down": passed}, residual, units, config)
    sites = {
        "attn_out": attention.weights.reshape(-1, *block["o"].shape),
        "mlp_down": ffn.weights,
        "attn_rank": attention.rank,
        "mlp_rank": ffn.rank,
        "error": jnp.stack([attention.error, ffn.error]),
        "share": jnp.stack(share),
        "damping": jnp.stack([attention.damping, ffn.damping]),
    }
    return Fold(with_layer(fold.supernet, layer, sites), layer + 1, residual, fold.real)


def build_supernet(
    params: Params,
    texts: Sequence[np.ndarray],
    config: ModelConfig,
    grid: LevelGrid,
    settings: PruningSettings,
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    scratch: Scratch | None = None,
    fold: Fold | None = None,
    on_site: Callable[[str, float], None] = lambda name, damping: None,
    on_block: Callable[[Fold], None] = lambda fold: None,
) -> Supernet:
    """Prune every site of a dense model to every level of `grid` (Algorithm 2).

    Args:
        params: the dense model, blocks stacked.
        texts: calibration tokens, arrays `[B, T]` of any lengths T.
        config: its configuration.
        grid: levels of the 2·L sites.
        settings: local pruning and error accumulation.
        seed: for the `random` accumulation mode.
        batch_tokens: tokens that run at a time, in whole sequences.
        scratch: where weights and residuals are to be kept on disk.
        fold: where an earlier call stopped, from its `on_block`.
        on_site: called with the name and damping of each finished site.
        on_block: called with the fold after each block.

    The residual and the current sublayer's inputs of all calibration tokens are held on the device; those
    inputs are computed twice instead, where residuals are on disk.

    Raises:
        UserError: a site's Hessian is not finite.
    """
    if fold is None:
        empty = empty_supernet(params["blocks"]["o"].dtype, config, grid, settings, scratch)
        fold = begin_fold(params, empty, texts, batch_tokens, scratch)
    while fold.done < config.depth:
        fold = fold_block(params, fold, config, grid, settings, seed, on_site)
        on_block(fold)
    return fold.supernet
