"""Compress: build the physically smaller model of a distribution (the last step of Algorithm 4).

Kept heads and neurons are gathered. Key/value groups that no kept head reads are removed, and so is a whole
sublayer without units. (For software that loads dense shapes only, zeros can take their place instead.) Axis
letters as in `tyr_jax.model.spec`; `U` units of a site.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning.cut import Picks, cut_block, mask_block, shape_of
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import on_disk
from tyr_jax.space import values_at


def kept_masks(supernet: Supernet, distribution: np.ndarray, config: ModelConfig) -> dict[str, np.ndarray]:
    """For each kind of site, by name, which entries along the axis of its units levels `[S, L]` keep: a mask
    `[L, N]` for heads, `[L, F]` for neurons, `[L, X, F]` for those of experts."""
    masks = {}
    for kind, kept in zip(supernet.kinds, values_at(supernet.kept, distribution), strict=True):
        rank = devices.fetch(supernet.ranks[kind.name])
        units = rank < kept.reshape(-1, *[1] * (rank.ndim - 1))
        masks[kind.name] = np.repeat(units, kind.span(config), axis=-1)
    return masks


def layer_at(params: Params, supernet: Supernet, distribution: np.ndarray, layer: int) -> Block:
    """A block in dense shapes, with the pruned projections (and what has been learnt) at levels
    `distribution [S, L]`."""
    learnt = supernet.learnt[layer] if supernet.learnt else None
    block = layer_block(params["blocks"], layer) | (learnt or {})
    for kind, level in zip(supernet.kinds, distribution[:, layer], strict=True):
        block = block | {kind.output: supernet.weights[kind.name][layer, level]}
    return jax.tree.map(jnp.asarray, block)


OnBlock = Callable[[Block], Block]
"""Applied to each block once it is pruned, for example to keep it on disk."""


def mask(
    params: Params,
    supernet: Supernet,
    distribution: np.ndarray,
    config: ModelConfig,
    finish: OnBlock = lambda block: block,
) -> Params:
    """The model at levels `distribution [S, L]` in dense shapes, with zeros for everything that belongs only
    to removed units. It computes the same function as the compressed model."""
    masks, blocks = kept_masks(supernet, distribution, config), []
    for layer in range(config.depth):
        kept: dict[str, np.ndarray] = {}
        for kind in supernet.kinds:
            own = masks[kind.name][layer]
            kept |= {kind.axis: own, **kind.follow(own, config)}
        block = layer_at(params, supernet, distribution, layer)
        block |= supernet.admitted(layer, distribution[:, layer])
        blocks.append(finish(mask_block(block, kept, config)))
    return params | {"blocks": joined(blocks, config)}


def compress(
    params: Params,
    supernet: Supernet,
    distribution: np.ndarray,
    config: ModelConfig,
    neuron_multiple: int = 8,
    finish: OnBlock = lambda block: block,
) -> tuple[Params, ModelConfig]:
    """The smaller model (params, config) at levels `distribution [S, L]`. It computes the same function as
    the masked model."""
    masks, blocks, shapes = kept_masks(supernet, distribution, config), [], []
    for layer in range(config.depth):
        picks: Picks = {}
        for kind in supernet.kinds:
            if kind.has(config, layer):
                picks |= kind.pick(true_indices(masks[kind.name][layer]), config, neuron_multiple)
        block = cut_block(layer_at(params, supernet, distribution, layer), picks, config)
        for kind in supernet.kinds:
            if kind.output in block and not masks[kind.name][layer].any():
                # These units carry the bias and must add nothing else.
                block[kind.output] *= 0
        blocks.append(finish(block))
        shapes.append(shape_of(picks))
    # Tokens cannot be sent to more experts than any layer has.
    routed = min(config.routed, max(shape.experts for shape in shapes) or config.routed)
    small = dataclasses.replace(config, layers=tuple(shapes), routed=routed)
    return params | {"blocks": joined(blocks, small)}, small


def true_indices(mask: np.ndarray) -> np.ndarray:
    """Indices of the true entries of each row of `mask [..., U]`, in order; every row has equally many."""
    return np.argsort(~mask, axis=-1, kind="stable")[..., : np.count_nonzero(mask, axis=-1).max()]


def joined(blocks: list[Block], config: ModelConfig) -> Any:
    """The blocks of a model: stacked if all layers have the same shape and none is on disk, else a tuple."""
    if on_disk(blocks) or not config.uniform:
        return tuple(blocks)
    return {name: jnp.stack([block[name] for block in blocks]) for name in blocks[0]}
