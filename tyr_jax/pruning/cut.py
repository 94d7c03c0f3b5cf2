"""How a layer is cut: which entries of each axis stay, by kind of site.

A kind of site (`tyr_jax.pruning.kinds`) turns the units that it keeps into entries of axes. Tensors are then
cut by their axes alone. Axis letters as in `tyr_jax.model.spec`; `U` units of a site.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from tyr_jax.model.spec import UNIT_AXES, Block, LayerShape, ModelConfig, Sublayer
from tyr_jax.model.tensors import along, taken


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


def pick_heads(kept: np.ndarray, config: ModelConfig, multiple: int = 1) -> Picks:
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


def pick_experts(kept: np.ndarray, config: ModelConfig, multiple: int = 1) -> Picks:
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
    own = [tensor for tensor in config.tensors if tensor.sublayer == sublayer]
    return any(tensor.key.endswith(".bias") and tensor.outputs == "D" for tensor in own)


def shape_of(picks: Picks) -> LayerShape:
    """The shape of a compressed layer."""
    return LayerShape(*(picks[axis].source.shape[-1] if axis in picks else 0 for axis in "NKFX"))


def cut_block(block: Block, picks: Picks, config: ModelConfig) -> Block:
    """Cut a dense `block` down to the entries in `picks`, and leave out the sublayers that are absent."""
    sublayers = {tensor.name: tensor.sublayer for tensor in config.tensors}

    def cut(array: jax.Array, axes: str) -> jax.Array:
        for axis in axes:
            if axis in picks:
                source, real = picks[axis]
                # The neurons that carry a bias can outnumber those of the dense layer.
                array = taken(array, source, axis, axes)
                array = array if real is None else array * along(axis, real, axes)
        return array

    return {
        name: cut(array, config.axes[name])
        for name, array in block.items()
        if UNIT_AXES[sublayers[name]] in picks
    }


def mask_block(block: Block, kept: Mapping[str, np.ndarray], config: ModelConfig) -> Block:
    """`block` with zeros for everything that belongs only to removed units. `kept` has, by axis, which of its
    entries stay: a mask `[U]`, or `[X, U]` per expert."""
    masked = dict(block)
    for name, axes in config.axes.items():
        for axis in kept.keys() & set(axes):
            masked[name] = masked[name] * along(axis, kept[axis], axes)
    return masked
