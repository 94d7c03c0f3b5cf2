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

from tyr_jax.model.spec import Block, ModelConfig
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import TEMPORARY, Scratch, on_disk
from tyr_jax.space import LevelGrid


class Supernet(flax.struct.PyTreeNode):
    """The stacked parameter pytree indexed by sparsity level.

    For each of its `kinds` of site it has the pruned projection, `weights [L, E, ...]` by the tensor's name
    (for heads `[L, E, N, H, D]`), and the `ranks [L, U]` of units by the kind's name, which number them
    last-removed first, so that a level with k units keeps those of rank below k. Where experts are pruned by
    themselves, ranks are `[L, X, U]`.

    Levels have `kept [S, L, E]` units, `exists [S, L, E]`, and a relative `error [S, L, E]` of their output.
    Sites have a `share [S, L]`, how much the dense output counts (both by
    `tyr_jax.pruning.stream.level_costs`), and a `damping [S, L]`. If sublayers were reconstructed, `learnt`
    has their other tensors, in dense shapes, by layer (None for those that were not).
    """

    weights: dict[str, Any]
    ranks: dict[str, Any]
    kept: Any
    exists: Any
    error: Any
    share: Any
    damping: Any
    learnt: tuple[Block | None, ...] = ()
    kinds: tuple[SiteKind, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def hidden_axes(self) -> dict[str, int]:
        """The axis `D` of the weights of every kind, counted from the end."""
        return {kind.name: -1 for kind in self.kinds}

    def admitted(self, layer: Any, levels: Any) -> Block:
        """Tensors of a block that say which units `levels [S]` of a layer keep, for kinds that need them."""
        found: Block = {}
        for row, kind in enumerate(self.kinds):
            if kind.admit is not None:
                count = jnp.asarray(self.kept)[row, layer, levels[row]]
                found |= kind.admit(jnp.asarray(self.ranks[kind.name])[layer] < count)
        return found


class Layer(flax.struct.PyTreeNode):
    """A supernet's part for one layer: `weights [E, ...]` and `ranks [U]`, `error [S, E]`, and
    `share` and `damping [S]`."""

    weights: dict[str, Any]
    ranks: dict[str, Any]
    error: Any
    share: Any
    damping: Any


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
    kinds, (depth, levels) = settings.site_kinds(config), grid.kept.shape[1:]
    shapes = {kind.name: jax.ShapeDtypeStruct((depth, levels, *kind.shape(config)), dtype) for kind in kinds}

    def make(weights: bool) -> Supernet:
        supernet = Supernet(
            weights={name: jnp.zeros(one.shape, dtype) for name, one in shapes.items() if weights},
            ranks={kind.name: jnp.zeros((depth, *kind.rank_shape(config)), jnp.int32) for kind in kinds},
            kept=jnp.asarray(grid.kept),
            exists=jnp.asarray(grid.exists),
            error=jnp.zeros(grid.kept.shape),
            share=jnp.zeros(grid.kept.shape[:2]),
            damping=jnp.zeros(grid.kept.shape[:2]),
            kinds=kinds,
        )
        return devices.spread(supernet, supernet.hidden_axes)

    supernet = jax.jit(make, static_argnums=0)(scratch is None)
    return supernet if scratch is None else supernet.replace(weights=scratch.empty(shapes))


def of_layer(supernet: Supernet, layer: int) -> Layer:
    """The part of a supernet for a layer."""
    stacked, by_kind = jax.tree.map(lambda stack: stack[layer], (supernet.weights, supernet.ranks)), []
    for array in (supernet.error, supernet.share, supernet.damping):
        by_kind.append(array[:, layer])
    return Layer(*stacked, *by_kind)


@functools.partial(jax.jit, donate_argnames="supernet")
def fill_layer(supernet: Supernet, layer: jax.Array, sites: Layer) -> Supernet:
    """Write the part `sites` of a layer into a supernet, in place."""
    given, empty = (sites.weights, sites.ranks), (supernet.weights, supernet.ranks)
    weights, ranks = jax.tree.map(lambda stack, part: stack.at[layer].set(part), empty, given)
    names = ("error", "share", "damping")
    rows = {name: getattr(supernet, name).at[:, layer].set(getattr(sites, name)) for name in names}
    filled = supernet.replace(weights=weights, ranks=ranks, **rows)
    return devices.spread(filled, filled.hidden_axes)


def with_layer(supernet: Supernet, layer: int, sites: Layer) -> Supernet:
    """Write the part of a layer into a supernet, in place; its weights may be on disk."""
    if not on_disk(supernet):
        return fill_layer(supernet, jnp.int32(layer), sites)
    for name, stack in supernet.weights.items():
        stack[layer] = devices.fetch(sites.weights[name])
    filled = fill_layer(supernet.replace(weights={}), jnp.int32(layer), sites.replace(weights={}))
    return filled.replace(weights=supernet.weights)


def level_index(supernet: Supernet, grid: LevelGrid) -> jax.Array:
    """Where a supernet has the levels of `grid`, `[S, L, E']`; it must have all of these that exist."""
    same = (supernet.kept[..., None, :] == grid.kept[..., None]) & supernet.exists[..., None, :]
    return jnp.argmax(same, axis=-1)


def at_levels(
    supernet: Supernet, index: jax.Array, grid: LevelGrid, scratch: Scratch = TEMPORARY
) -> Supernet:
    """A supernet cut down to the levels of `grid`, which it has at `index [S, L, E']`. If it is on disk, the
    result is on that of `scratch`. Weights of which all levels are taken are not copied."""
    weights = {
        kind.name: picked(supernet.weights[kind.name], index[row], scratch)
        for row, kind in enumerate(supernet.kinds)
    }
    return supernet.replace(
        weights=weights,
        kept=jnp.asarray(grid.kept),
        exists=jnp.asarray(grid.exists),
        error=jnp.take_along_axis(supernet.error, index, axis=-1),
    )


def takes_all(index: jax.Array, levels: int) -> bool:
    """Whether `index [L, E']` takes all `levels` of every layer as they are."""
    return np.array_equal(devices.fetch(index), np.broadcast_to(np.arange(levels), (len(index), levels)))


def picked(stack: Any, index: jax.Array, scratch: Scratch) -> Any:
    """The levels `index [L, E']` of every layer of `stack [L, E, ...]`."""
    if takes_all(index, stack.shape[1]):
        return stack
    if on_disk(stack):
        return scratch.stack(len(index), lambda layer: stack[layer][np.asarray(index[layer])])
    return jax.vmap(lambda levels, e: levels[e])(stack, index)
