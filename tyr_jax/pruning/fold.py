"""The fold over the blocks that builds a supernet (method §2, Algorithm 2).

Each block runs once: attention → its Hessian → prune `o_proj` → the FFN's input from the accumulated
result → its Hessian → prune `down_proj` → next. What a site passes on is its output under the weight
`W̄ = Σ_e p_e W_e`; the site is linear in its weight, so that is the expectation of Eq. 5 over levels with
probabilities `p`, and every mode of error accumulation is one choice of `p`.

Axis letters: `L` layers, `E` levels, `B` sequences, `T` tokens, `D` hidden, `N` heads, `H` head dim,
`F` FFN width, `U` units of a site.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.spec import OUTPUTS, Block, ModelConfig, Params, layer_block
from tyr_jax.pruning import hessian
from tyr_jax.pruning.settings import Accumulation, PruningSettings
from tyr_jax.pruning.site import PrunedSite, prune_site
from tyr_jax.pruning.supernet import (
    RANK_FIELDS,
    WEIGHT_FIELDS,
    Supernet,
    empty_supernet,
    with_layer,
)
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


@dataclasses.dataclass(frozen=True, eq=False)
class FoldPlan:
    """What a fold is to do: for a model of `config`, prune every site to the levels of `grid` as `settings`
    say; `seed` is that of the `random` mode of accumulation, `metrics [L, 2, D, D]` those of the sites'
    outputs, if they have any, and `heads [L, U]` the ranks of attention's units, where they are settled."""

    config: ModelConfig
    grid: LevelGrid
    settings: PruningSettings
    seed: int = 0
    metrics: Any = None
    heads: np.ndarray | None = None

    def rank(self, kind: int, layer: int) -> jax.Array | None:
        """That of a site's units `[U]`, where it is settled."""
        if self.heads is None or kind != ATTENTION:
            return None
        return jnp.asarray(self.heads[layer])

    def metric(self, kind: int, layer: int) -> jax.Array | None:
        """That of a site's output `[D, D]`, if it has one."""
        if self.metrics is None:
            return None
        return devices.place(jnp.asarray(self.metrics[layer][kind]), 1)


def site_units(kind: int, block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """What enters the site of a kind, from residuals `x [B, T, D]`: head outputs `[B, T, N, H]`, or neuron
    activations `[B, T, F]`."""
    if kind == ATTENTION:
        return decoder.attention_units(block, x, decoder.rope_tables(config, x.shape[1]), config)
    return decoder.ffn_units(block, x, config)


Statistics = tuple[jax.Array, jax.Array]
"""What enters a site, of every sequence of a batch, and the XᵀX of all so far, one of every device."""


@functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="gram")
def site_statistics(
    block: Block, x: jax.Array, gram: jax.Array, counts: jax.Array | None, kind: int, config: ModelConfig
) -> Statistics:
    """What enters the site of a kind, from residuals `x [B, T, D]`, and `gram [n, d_in, d_in]` with its XᵀX,
    in place; sequences count `counts [B]` times there, or once."""

    def collect(block: Block, x: jax.Array, gram: jax.Array, counts: jax.Array | None) -> Statistics:
        units = site_units(kind, block, x, config)
        inputs = units.reshape(*x.shape[:2], -1)
        if counts is not None:
            inputs = inputs * counts[:, None, None].astype(inputs.dtype)
        # With its first axis: to go without and with it again, the TPU compiler would copy it twice.
        return units, hessian.update(gram, inputs)

    return devices.divided(collect, whole=1)(block, x, gram, counts)


@functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="x")
def add_output(
    block: Block, x: jax.Array, units: jax.Array | None, kind: int, config: ModelConfig
) -> jax.Array:
    """Residual behind the site of a kind, with the output projection of `block`, in place of `x [B, T, D]`,
    from what enters the site, or from `x` alone."""
    output = (decoder.attention_output, decoder.ffn_output)[kind]

    def add(block: Block, x: jax.Array, units: jax.Array | None) -> jax.Array:
        return x + output(block, site_units(kind, block, x, config) if units is None else units)

    return devices.divided(add, whole=1)(block, x, units)


@functools.partial(jax.jit, static_argnames="count")
def output_share(
    weight: jax.Array, x: jax.Array, units: jax.Array, metric: jax.Array | None, count: int
) -> jax.Array:
    """What a site's output counts for, from the first `count` sequences of `x [B, T, D]` and of what enters
    `weight`: by the `metric [D, D]`, as the mean over tokens of ½ yᵀ·metric·y in nats; without one, as that
    of ‖y‖² / ‖residual‖²."""
    x, inputs = x[:count], units.reshape(*x.shape[:2], -1)[:count]
    out = inputs @ weight
    if metric is not None:
        return jnp.mean(jnp.sum((out @ metric) * out, axis=-1)) / 2
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


def dealt_anew(
    residual: Sequence[np.ndarray], real: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> tuple[list[np.ndarray], list[int]]:
    """Residuals `[B, T, D]`, of which the first `real` sequences count, in batches as `begin_fold` would make
    them on the devices that there are now, wherever they come from."""
    batched, counts = [], []
    pairs = zip(residual, real, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].shape[1]):
        text = np.concatenate([x[:count] for x, count in group])
        for rows in batches(text[..., 0], batch_tokens):
            batched.append(text[rows.indices])
            counts.append(rows.real)
    return batched, counts


def collect(
    kind: int, block: Block, fold: Fold, size: int, config: ModelConfig
) -> tuple[list[jax.Array | None], jax.Array]:
    """What enters the site of a kind, of `size` channels, of all batches (of the first alone where residuals
    are on disk), and its XᵀX in the parts `[n, d_in, d_in]` of n devices."""
    stays, gram = on_disk(fold.residual), devices.copies(hessian.init(size))
    units: list[jax.Array | None] = []
    for x, count in zip(fold.residual, fold.real, strict=True):
        counts = None if count == len(x) else jnp.arange(len(x)) < count
        x = devices.place(jnp.array(x)) if stays else x
        unit, gram = site_statistics(block, x, gram, counts, kind, config)
        units.append(None if stays and units else unit)
    return units, gram


def pass_on(kind: int, block: Block, fold: Fold, units: list[Any], config: ModelConfig) -> Fold:
    """The fold with the residuals behind the site of a kind in place of those before it."""
    pairs = zip(fold.residual, units, strict=True)
    if not on_disk(fold.residual):
        return fold._replace(residual=[add_output(block, x, unit, kind, config) for x, unit in pairs])
    for x, unit in pairs:
        x[...] = devices.fetch(add_output(block, devices.place(jnp.array(x)), unit, kind, config))
    return fold


def prune_kind(
    kind: int, layer: int, gram: jax.Array, weight: jax.Array, plan: FoldPlan
) -> tuple[PrunedSite, jax.Array]:
    """The pruned site of a kind in a layer, and the weight `[d_in, D]` that its output is passed on with,
    W̄ of Eq. 5.

    Raises:
        UserError: the site's Hessian is not finite; names the site.
    """
    settings, units = plan.settings, plan.settings.kinds(plan.config)[kind].units
    kept, exists = plan.grid.kept[kind, layer], plan.grid.exists[kind, layer]
    known = plan.metric(kind, layer), plan.rank(kind, layer)
    made = settings.site(hessian.finish(gram), weight, kept, exists, units, *known)
    site = prune_site(made, settings.pruner)
    if not np.isfinite(devices.fetch(site.error)).all():
        raise UserError(
            f"the inputs of {site_name(kind, layer)} gave a Hessian that is not finite or cannot be "
            "factorised even with more damping; check the weights of this layer and of those before it"
        )
    if settings.accumulation == "none":
        return site, weight
    rng = np.random.default_rng((plan.seed, layer, kind))
    p = level_probabilities(settings.accumulation, kept, exists, units, rng)
    return site, jnp.einsum("e,eio->io", p, site.weights).astype(weight.dtype)


def site_name(kind: int, layer: int) -> str:
    """What a site is called, such as `layer 3 ffn`."""
    return f"layer {layer} {KINDS[kind]}"


def fold_block(params: Params, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]) -> Fold:
    """Prune the next block and pass the residuals on behind it (a step of Algorithm 2), in place of those of
    `fold`.

    Raises:
        UserError: a site's Hessian is not finite; names the site.
    """
    layer, config = fold.done, plan.config
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], layer))
    block = devices.spread(block, config.hidden)
    count = min(fold.real[0], max(1, SHARE_TOKENS // fold.residual[0].shape[1]))
    sites: dict[str, Any] = {"error": [], "share": [], "damping": []}
    for kind in (ATTENTION, FFN):
        projection = OUTPUTS[KINDS[kind]]
        weight = block[projection]
        dense = weight.reshape(-1, config.hidden)
        units, gram = collect(kind, block, fold, len(dense), config)
        site, passed = prune_kind(kind, layer, gram, dense, plan)
        on_site(site_name(kind, layer), float(devices.fetch(site.damping)))
        share = output_share(dense, fold.residual[0], units[0], plan.metric(kind, layer), count)
        passed_block = block | {projection: passed.reshape(weight.shape)}
        fold = pass_on(kind, passed_block, fold, units, config)
        sites[WEIGHT_FIELDS[kind]] = site.weights.reshape(-1, *weight.shape)
        sites[RANK_FIELDS[kind]] = site.rank
        for name, value in (("error", site.error), ("share", share), ("damping", site.damping)):
            sites[name].append(value)
    stacked = {name: jnp.stack(part) if isinstance(part, list) else part for name, part in sites.items()}
    return fold._replace(supernet=with_layer(fold.supernet, layer, stacked), done=layer + 1)


def build_supernet(
    params: Params,
    texts: Sequence[np.ndarray],
    plan: FoldPlan,
    *,
    batch_tokens: int = BATCH_TOKENS,
    scratch: Scratch | None = None,
    begun: Fold | None = None,
    on_site: Callable[[str, float], None] = lambda name, damping: None,
    on_block: Callable[[Fold], None] = lambda fold: None,
) -> Supernet:
    """Prune every site of a dense model to every level of a grid (Algorithm 2).

    Args:
        params: the dense model, blocks stacked.
        texts: calibration tokens, arrays `[B, T]` of any lengths T.
        plan: the model's configuration, levels of the 2·L sites, how they are pruned.
        batch_tokens: tokens that run at a time, in whole sequences.
        scratch: where weights and residuals are to be kept on disk.
        begun: where an earlier call stopped, from its `on_block`.
        on_site: called with the name and damping of each finished site.
        on_block: called with the fold after each block.

    The residual and the current sublayer's inputs of all calibration tokens are held on the device; those
    inputs are computed twice instead, where residuals are on disk.

    Raises:
        UserError: a site's Hessian is not finite.
    """
    chex.assert_rank(texts, 2)
    chex.assert_shape(plan.grid.kept, (len(KINDS), plan.config.depth, None))
    fold = begun
    if fold is None:
        empty = empty_supernet(params["blocks"]["o"].dtype, plan.config, plan.grid, plan.settings, scratch)
        fold = begin_fold(params, empty, texts, batch_tokens, scratch)
    while fold.done < plan.config.depth:
        fold = fold_block(params, fold, plan, on_site)
        on_block(fold)
    return fold.supernet
