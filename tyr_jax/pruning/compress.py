"""Compress: from a distribution to a physically smaller model (Algorithm 4's last step).

Kept heads and neurons are gathered, key/value groups that no kept head reads disappear, and a sublayer
without units disappears whole. (Or zeros take their place, for what loads dense shapes only.) Axis letters
as in `tyr_jax.model.spec`; `U` units of a site.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import Block, LayerShape, ModelConfig, Params, block_specs, layer_block
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import on_disk
from tyr_jax.space import ATTENTION, FFN, values_at


@dataclasses.dataclass(frozen=True)
class HeadLayout:
    """Heads of a compressed layer in groups of equal size.

    `kv_source[i]` is the dense key/value head that group i reads, `heads[i]` its dense query heads, of
    which `None` marks a padded one (zero weights).
    """

    kv_source: tuple[int, ...]
    heads: tuple[tuple[int | None, ...], ...]


def head_layout(kept_heads: np.ndarray, group_size: int) -> HeadLayout:
    """The cheapest regular grouping of `kept_heads` (sorted indices), `group_size` heads to a dense group.

    Grouped-query attention needs groups of equal size g. A dense group with c kept heads becomes ⌈c/g⌉
    groups, its key/value head duplicated and the last one padded; each costs g query/output heads and one
    key/value head. g = the largest count is pure padding, g = 1 pure duplication; the cheapest g is taken,
    the larger one (fewer key/value heads to cache) on a tie.
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


def compress_attention(block: Block, kept: np.ndarray, config: ModelConfig, layer: int) -> Block:
    """Attention tensors of `block` with only the `kept` (sorted) query heads.

    An attention without heads has no tensors, unless an output bias must outlive it: then one head with a
    zero output projection carries it.
    """
    shape = config.layers[layer]
    carrier = kept.size == 0 and config.out_bias
    if kept.size == 0 and not carrier:
        return {}
    layout = head_layout(kept if not carrier else np.array([0]), shape.heads // shape.kv_heads)
    slots = [head for group in layout.heads for head in group]
    source = np.array([0 if head is None else head for head in slots])
    real = np.array([head is not None and not carrier for head in slots], np.float32)
    kv = np.array(layout.kv_source)
    out = {
        "attn_norm": block["attn_norm"],
        "q": block["q"][:, source] * real[:, None],
        "k": block["k"][:, kv],
        "v": block["v"][:, kv],
        "o": block["o"][source] * real[:, None, None],
    }
    if config.qkv_bias:
        out |= {
            "q_bias": block["q_bias"][source] * real[:, None],
            "k_bias": block["k_bias"][kv],
            "v_bias": block["v_bias"][kv],
        }
    return out | ({"o_bias": block["o_bias"]} if config.out_bias else {})


def compress_ffn(block: Block, kept: np.ndarray, config: ModelConfig, multiple: int) -> Block:
    """FFN tensors of `block` with only the `kept` (sorted) neurons.

    An FFN without neurons has no tensors, unless a down bias must outlive it: then `multiple` neurons with
    zero weights carry it.
    """
    carrier = kept.size == 0 and config.mlp_bias
    if kept.size == 0 and not carrier:
        return {}
    neurons, real = (np.arange(multiple), 0.0) if carrier else (kept, 1.0)
    out = {
        "mlp_norm": block["mlp_norm"],
        "gate": block["gate"][:, neurons],
        "up": block["up"][:, neurons],
        "down": block["down"][neurons] * real,
    }
    if config.mlp_bias:
        biases = {"gate_bias": block["gate_bias"][neurons], "up_bias": block["up_bias"][neurons]}
        out |= {**biases, "down_bias": block["down_bias"]}
    return out


def kept_masks(
    supernet: Supernet, distribution: np.ndarray, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Boolean masks of kept heads `[L, N]` and neurons `[L, F]` under levels `[2, L]`."""
    kept = values_at(supernet.kept, distribution)[..., None]
    heads = devices.fetch(supernet.attn_rank) < kept[ATTENTION]
    neurons = devices.fetch(supernet.mlp_rank) < kept[FFN]
    # A unit of attention is one head or a whole key/value group of neighbouring heads.
    return np.repeat(heads, config.dense_shape.heads // heads.shape[1], axis=1), neurons


def layer_at(params: Params, supernet: Supernet, distribution: np.ndarray, layer: int) -> Block:
    """A dense-shaped block with the pruned projections of levels `distribution [2, L]`."""
    attention, ffn = distribution[:, layer]
    pruned = {"o": supernet.attn_out[layer, attention], "down": supernet.mlp_down[layer, ffn]}
    return jax.tree.map(jnp.asarray, layer_block(params["blocks"], layer) | pruned)


def mask_block(block: Block, heads: np.ndarray, neurons: np.ndarray, config: ModelConfig) -> Block:
    """`block` with zeros for whatever is of heads and neurons alone that are not kept, `heads [N]` and
    `neurons [F]` being true where they are."""
    kept = {"N": heads, "K": heads.reshape(config.dense_shape.kv_heads, -1).any(axis=-1), "F": neurons}
    masked = dict(block)
    for spec in block_specs(config, 0):
        for axis in kept.keys() & set(spec.axes):
            masked[spec.name] *= kept[axis].reshape([-1 if letter == axis else 1 for letter in spec.axes])
    return masked


OnBlock = Callable[[Block], Block]
"""What is done with a block once it is pruned, such as keeping it on disk."""


def mask(
    params: Params,
    supernet: Supernet,
    distribution: np.ndarray,
    config: ModelConfig,
    finish: OnBlock = lambda block: block,
) -> Params:
    """The model of levels `distribution [2, L]` in the dense model's shapes, with zeros for whatever is of
    removed units alone; same function as the compressed one."""
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
    """The smaller model (params, config) of levels `distribution [2, L]`; same function as the masked one."""
    blocks, shapes = [], []
    for layer, (heads, neurons) in enumerate(zip(*kept_masks(supernet, distribution, config), strict=True)):
        block = layer_at(params, supernet, distribution, layer)
        attention = compress_attention(block, np.flatnonzero(heads), config, layer)
        ffn = compress_ffn(block, np.flatnonzero(neurons), config, neuron_multiple)
        blocks.append(finish(attention | ffn))
        heads_left, kv_left = (attention["q"].shape[1], attention["k"].shape[1]) if attention else (0, 0)
        shapes.append(LayerShape(heads_left, kv_left, ffn["down"].shape[0] if ffn else 0))
    small = dataclasses.replace(config, layers=tuple(shapes))
    return params | {"blocks": joined(blocks, small)}, small


def joined(blocks: list[Block], config: ModelConfig) -> Any:
    """The blocks of a model: stacked where layers are of one shape, and not on disk."""
    if on_disk(blocks) or not config.uniform:
        return tuple(blocks)
    return {name: jnp.stack([block[name] for block in blocks]) for name in blocks[0]}
