"""The supernet: every site at every level, stacked, and how levels are chosen from it (method §2).

The fold over the blocks (`tyr_jax.pruning.fold`) fills it a layer at a time.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `N` heads, `H` head dim, `F` FFN width, `X` experts,
`D` hidden, `U` units of a site.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import TEMPORARY, Scratch, on_disk
from tyr_jax.space import ATTENTION, FFN, KINDS, LevelGrid


@flax.struct.dataclass
class Supernet:
    """The stacked parameter pytree indexed by sparsity level.

    `attn_out [L, E, N, H, D]` and `mlp_down [L, E, F, D]` are the pruned projections. `attn_rank [L, U]` and
    `mlp_rank [L, F]` number units last-removed first, so that a level with k units keeps those of rank below
    k. With experts, these are `mlp_down [L, E, X, F, D]` and `mlp_rank [L, X, F]`; if whole experts are
    removed, `mlp_rank [L, X]`.

    Levels have `kept [S, L, E]` units, `exists [S, L, E]`, and a relative layer `error [S, L, E]`. Sites have
    a `share [S, L]`, how much the dense output counts (`tyr_jax.pruning.stream.output_share`), and a
    `damping [S, L]`. If FFNs were reconstructed, `learnt` has their other tensors, in dense shapes, by layer
    (None for those that were not).
    """

    attn_out: jax.Array
    mlp_down: jax.Array
    attn_rank: jax.Array
    mlp_rank: jax.Array
    kept: jax.Array
    exists: jax.Array
    error: jax.Array
    share: jax.Array
    damping: jax.Array
    learnt: tuple[Block | None, ...] = ()


Layer = dict[str, jax.Array]
"""The part of a supernet for one layer, by the names of its fields."""

WEIGHT_FIELDS = ("attn_out", "mlp_down")
"""Pruned projections by kind; they may be on disk."""

RANK_FIELDS = ("attn_rank", "mlp_rank")
"""Ranks of units by kind."""

LAYER_AXES = dict.fromkeys((*WEIGHT_FIELDS, *RANK_FIELDS), 0)
LAYER_AXES |= dict.fromkeys(("error", "share", "damping"), 1)
"""The axis of each field that counts layers. It comes after the axis of kinds, where there is one."""


def layer_index(name: str, layer: Any) -> tuple[Any, ...]:
    """The index of a layer's part in a field of a supernet."""
    return (*[slice(None)] * LAYER_AXES[name], layer)


def empty_supernet(
    dtype: DTypeLike,
    config: ModelConfig,
    grid: LevelGrid,
    settings: PruningSettings,
    scratch: Scratch | None = None,
) -> Supernet:
    """A supernet of `grid`, with weights of type `dtype` and no layer filled yet. With `scratch`, its weights
    are on disk.

    Raises:
        UserError: the disk has no room for them.
    """
    shape, (depth, levels) = config.dense_shape, grid.kept.shape[1:]
    attention, ffn = settings.kinds(config)
    experts, whole = [shape.experts] if config.experts else [], settings.drops_experts(config)

    def make() -> Supernet:
        supernet = Supernet(
            attn_out=jnp.zeros((depth, levels, shape.heads, config.head_dim, config.hidden), dtype),
            mlp_down=jnp.zeros((depth, levels, *experts, shape.ffn, config.hidden), dtype),
            attn_rank=jnp.zeros((depth, attention.units), jnp.int32),
            mlp_rank=jnp.zeros((depth, *([] if whole else experts), ffn.units), jnp.int32),
            kept=jnp.asarray(grid.kept),
            exists=jnp.asarray(grid.exists),
            error=jnp.zeros(grid.kept.shape),
            share=jnp.zeros((len(KINDS), depth)),
            damping=jnp.zeros((len(KINDS), depth)),
        )
        return devices.spread(supernet, config.hidden)

    if scratch is None:
        return jax.jit(make)()
    stacks = {name: getattr(jax.eval_shape(make), name) for name in WEIGHT_FIELDS}
    rest = jax.jit(lambda: make().replace(**dict.fromkeys(stacks)))()  # type: ignore[attr-defined]
    return rest.replace(**scratch.empty(stacks))


def of_layer(supernet: Supernet, layer: int) -> Layer:
    """The part of a supernet for a layer."""
    return {name: getattr(supernet, name)[layer_index(name, layer)] for name in LAYER_AXES}


@functools.partial(jax.jit, donate_argnames="supernet")
def fill_layer(supernet: Supernet, layer: jax.Array, sites: Layer) -> Supernet:
    """Write the parts `sites` of a layer into a supernet, in place."""
    filled = {
        name: getattr(supernet, name).at[layer_index(name, layer)].set(part) for name, part in sites.items()
    }
    supernet = supernet.replace(**filled)  # type: ignore[attr-defined]
    return devices.spread(supernet, sites["mlp_down"].shape[-1]) if "mlp_down" in sites else supernet


def with_layer(supernet: Supernet, layer: int, sites: Layer) -> Supernet:
    """Write the part of a layer into a supernet, in place; its weights may be on disk."""
    if not on_disk(supernet):
        return fill_layer(supernet, jnp.int32(layer), sites)
    weights = {name: getattr(supernet, name) for name in WEIGHT_FIELDS}
    for name, stack in weights.items():
        stack[layer] = devices.fetch(sites[name])
    rest = {name: part for name, part in sites.items() if name not in weights}
    none: Any = supernet.replace(**dict.fromkeys(weights))  # type: ignore[attr-defined]
    return fill_layer(none, jnp.int32(layer), rest).replace(**weights)


def at_levels(supernet: Supernet, grid: LevelGrid, scratch: Scratch = TEMPORARY) -> Supernet:
    """A supernet cut down to the levels of `grid`; it must have all of these that exist. If it is on disk,
    the result is on that of `scratch`."""
    same = (supernet.kept[..., None, :] == grid.kept[..., None]) & supernet.exists[..., None, :]
    index = jnp.argmax(same, axis=-1)
    return supernet.replace(  # type: ignore[attr-defined]
        attn_out=picked(supernet.attn_out, index[ATTENTION], scratch),
        mlp_down=picked(supernet.mlp_down, index[FFN], scratch),
        kept=jnp.asarray(grid.kept),
        exists=jnp.asarray(grid.exists),
        error=jnp.take_along_axis(supernet.error, index, axis=-1),
    )


def picked(stack: Any, index: jax.Array, scratch: Scratch) -> Any:
    """The levels `index [L, E']` of every layer of `stack [L, E, ...]`; one level of each for `index [L]`."""
    every = np.broadcast_to(np.arange(stack.shape[1]), (len(index), stack.shape[1]))
    if not isinstance(index, jax.core.Tracer) and np.array_equal(devices.fetch(index), every):
        return stack
    if on_disk(stack):
        return scratch.stack(len(index), lambda layer: stack[layer][np.asarray(index[layer])])
    return jax.vmap(lambda levels, e: levels[e])(stack, index)


def drops_experts(supernet: Supernet) -> bool:
    """Whether the units of FFNs are whole experts."""
    return supernet.mlp_down.ndim == 5 and supernet.mlp_rank.ndim == 2


def kept_experts(supernet: Supernet, layer: Any, level: Any) -> Block:
    """Which experts a level of a layer keeps, `[X]`, as a tensor of its block; nothing if the units are
    neurons. `layer` and `level` may also be arrays `[L]`."""
    if not drops_experts(supernet):
        return {}
    count = jnp.asarray(supernet.kept)[FFN, layer, level]
    return {"kept_experts": jnp.asarray(supernet.mlp_rank)[layer] < count[..., None]}


def select(params: Params, supernet: Supernet, distribution: jax.Array) -> Params:
    """Dense-shaped params with the pruned projections of `distribution`, integer levels `[S, L]`."""
    every = jnp.arange(distribution.shape[1])
    blocks = params["blocks"] | {
        "o": picked(supernet.attn_out, distribution[ATTENTION], TEMPORARY),
        "down": picked(supernet.mlp_down, distribution[FFN], TEMPORARY),
        **kept_experts(supernet, every, distribution[FFN]),
    }
    return params | {"blocks": blocks}
