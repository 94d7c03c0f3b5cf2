"""Compress: build the physically smaller model of a distribution (the last step of Algorithm 4).

Kept heads and neurons are gathered. Key/value groups that no kept head reads are removed, and so is a whole
sublayer without units. (For software that loads dense shapes only, zeros can take their place instead.) Axis
letters as in `tyr_jax.model.spec`; `U` units of a site.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import (
    UNIT_AXES,
    Block,
    LayerShape,
    ModelConfig,
    Params,
    Sublayer,
    along,
    layer_block,
    taken,
)
from tyr_jax.pruning.supernet import RANK_FIELDS, Supernet, drops_experts, kept_experts
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import on_disk
from tyr_jax.space import values_at


@dataclasses.dataclass(frozen=True)
class HeadLayout:
    """Heads of a compressed layer in groups of equal size.

    `kv_source[i]` is the dense key/value head that group i reads, and `heads[i]` are its dense query heads.
    `None` marks a padded head (zero weights).
    """

    kv_source: tuple[int, ...]
    heads: tuple[tuple[int | None, ...], ...]


def head_layout(kept_heads: np.ndarray, group_size: int) -> HeadLayout:
    """The cheapest regular grouping of `kept_heads [U]` (sorted), with `group_size` heads in a dense group.

    Grouped-query attention needs groups of equal size g. A dense group with c kept heads becomes ⌈c/g⌉
    groups: its key/value head is duplicated and the last group is padded. Each group costs g query/output
    heads and one key/value head. With g = the largest count there is only padding, with g = 1 only
    duplication. The cheapest g is chosen; on a tie, the larger one (fewer key/value heads to cache).
    """
    groups: dict[int, list[int]] = {}
    for head in kept_heads:
        groups.setdefault(int(head) // group_size, []).append(int(head))
    sizes = [len(heads) for heads in groups.values()]

    def cost(size: int) -> tuple[int, int]:
        return sum(-(-count // size) for count in sizes) * (size + 1), -size

    size = min(range(1, max(sizes) + 1), key=cost)
    kv_source, layout = [], []
    for kv, heads in groups.items():
        for start in range(0, len(heads), size):
            part: list[int | None] = list(heads[start : start + size])
            kv_source.append(kv)
            layout.append((*part, *[None] * (size - len(part))))
    return HeadLayout(tuple(kv_source), tuple(layout))


class Pick(NamedTuple):
    """One axis of a compressed layer: the dense entries `source [U]` (or `[X, U]`, per expert),
    multiplied by `real [U]`, which is zero for entries that only pad a group."""

    source: np.ndarray
    real: np.ndarray | None = None


Picks = dict[str, Pick]
"""Picks by axis. A sublayer is absent if the axis of its units has no pick."""


def pick_heads(kept: np.ndarray, config: ModelConfig) -> Picks:
    """Pick the query heads `N` and key/value heads `K` of a layer that keeps the query heads `kept [U]`
    (sorted).

    If none is kept, attention is removed, unless it has an output bias: then one padded head carries it.
    """
    shape = config.dense_shape
    if kept.size:
        layout = head_layout(kept, shape.heads // shape.kv_heads)
    elif has_output_bias(config, "attention"):
        layout = HeadLayout((0,), ((None,),))
    else:
        return {}
    slots = [head for group in layout.heads for head in group]
    source = np.array([0 if head is None else head for head in slots])
    real = np.array([head is not None for head in slots], np.float32)
    return {"N": Pick(source, real), "K": Pick(np.array(layout.kv_source))}


def pick_experts(kept: np.ndarray, config: ModelConfig) -> Picks:
    """Pick the experts `X` of a layer that keeps the experts `kept [U]` (sorted). If none is kept, the FFN is
    removed."""
    if kept.size == 0:
        return {}
    return {"X": Pick(kept), "F": Pick(np.arange(config.dense_shape.ffn))}


def pick_neurons(kept: np.ndarray, config: ModelConfig, multiple: int) -> Picks:
    """Pick the neurons `F` of a layer that keeps the neurons `kept [U]` (sorted), or `[X, U]` per expert.

    If none is kept, the FFN is removed, unless it has an output bias: then `multiple` neurons carry it.
    """
    if kept.size == 0 and not has_output_bias(config, "ffn"):
        return {}
    neurons = {"F": Pick(kept if kept.size else np.arange(multiple))}
    return neurons | ({"X": Pick(np.arange(config.dense_shape.experts))} if config.experts else {})


def has_output_bias(config: ModelConfig, sublayer: Sublayer) -> bool:
    """Whether a sublayer adds to the residual stream even when it has no units left."""
    return any(tensor.outlives_units for tensor in config.tensors if tensor.sublayer == sublayer)


def shape_of(picks: Picks) -> LayerShape:
    """The shape of a compressed layer."""
    return LayerShape(*(picks[axis].source.shape[-1] if axis in picks else 0 for axis in "NKFX"))


def cut_block(block: Block, picks: Picks, config: ModelConfig) -> Block:
    """Cut a dense `block` down to the entries in `picks`, and leave out the sublayers that are absent. The
    mask of the experts that are kept is left out too, because the others are gone."""
    tensors = {tensor.name: tensor for tensor in config.tensors}

    def cut(array: jax.Array, axes: str) -> jax.Array:
        for axis in axes:
            if axis in picks:
                source, real = picks[axis]
                # The neurons that carry a bias can outnumber those of the dense layer.
                array = taken(array, source, axis, axes)
                array = array if real is None else array * along(axis, real, axes)
        return array

    return {
        name: cut(array, tensors[name].axes)
        for name, array in block.items()
        if name != "kept_experts" and UNIT_AXES[tensors[name].sublayer] in picks
    }


def kept_masks(
    supernet: Supernet, distribution: np.ndarray, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Boolean masks of the heads `[L, N]` and of the neurons `[L, F]` or `[L, X, F]`, or experts `[L, X]`,
    that levels `[S, L]` keep."""
    kept = values_at(supernet.kept, distribution)
    ranks = (devices.fetch(getattr(supernet, name)) for name in RANK_FIELDS)
    heads, neurons = (
        rank < count.reshape(-1, *[1] * (rank.ndim - 1)) for rank, count in zip(ranks, kept, strict=True)
    )
    # A unit of attention is one head or a whole key/value group of neighbouring heads.
    return np.repeat(heads, config.dense_shape.heads // heads.shape[1], axis=1), neurons


def layer_at(params: Params, supernet: Supernet, distribution: np.ndarray, layer: int) -> Block:
    """A block in dense shapes, with the pruned projections (and what its FFN has learnt) at levels
    `distribution [S, L]`."""
    attention, ffn = distribution[:, layer]
    learnt = supernet.learnt[layer] if supernet.learnt else None
    block = layer_block(params["blocks"], layer) | (learnt or {})
    pruned = {"o": supernet.attn_out[layer, attention], "down": supernet.mlp_down[layer, ffn]}
    return jax.tree.map(jnp.asarray, block | pruned | kept_experts(supernet, layer, ffn))


def mask_block(block: Block, heads: np.ndarray, ffn: np.ndarray, config: ModelConfig) -> Block:
    """`block` with zeros for everything that belongs only to removed units. `heads [N]` and `ffn` are true
    for the units that are kept: `ffn` is `[F]`; of experts `[X, F]`, or `[X]` if these are the units."""
    groups = np.any(heads.reshape(config.dense_shape.kv_heads, -1), axis=-1)
    unit = "X" if config.experts and ffn.ndim == 1 else "F"
    kept, masked = {"N": heads, "K": groups, unit: ffn}, dict(block)
    for tensor in config.tensors:
        for axis in kept.keys() & set(tensor.axes):
            masked[tensor.name] = masked[tensor.name] * along(axis, kept[axis], tensor.axes)
    return masked


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
    kept = zip(*kept_masks(supernet, distribution, config), strict=True)
    blocks = [
        finish(mask_block(layer_at(params, supernet, distribution, layer), heads, neurons, config))
        for layer, (heads, neurons) in enumerate(kept)
    ]
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
    blocks, shapes = [], []
    for layer, (heads, neurons) in enumerate(zip(*kept_masks(supernet, distribution, config), strict=True)):
        picks = pick_heads(np.flatnonzero(heads), config)
        if drops_experts(supernet):
            picks |= pick_experts(true_indices(neurons), config)
        else:
            picks |= pick_neurons(true_indices(neurons), config, neuron_multiple)
        block = cut_block(layer_at(params, supernet, distribution, layer), picks, config)
        if "down" in block and not neurons.any():
            # These neurons carry the bias and must add nothing else.
            block["down"] *= 0
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
