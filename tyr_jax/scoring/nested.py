"""Models whose units are sorted by their removal, so that levels are prefixes and cost what they keep.

The units of every site are sorted by their removal, last removed first, so a level that keeps k units keeps
the first k. Masks become prefixes, and a site can run at any width.

Axis letters: `C` candidates, `D` hidden, `S` kinds of site, `L` layers, `E` levels, `N` heads, `H` head dim,
`F` FFN width, `U` units of a site.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import taken
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices
from tyr_jax.runtime.buckets import bucket_widths
from tyr_jax.runtime.offload import TEMPORARY, Scratch, on_disk


class Nested(flax.struct.PyTreeNode):
    """A model and its supernet with the units of every site in the order of removal.

    `params` as in `tyr_jax.model.spec`, with what their blocks need in another order (`SiteKind.reads`);
    `weights`, as in a supernet, of every level, `[L, E, N, H, D]` or `[L, E, F, D]` (of experts `[L, E, X, F,
    D]`); `kept [S, L, E]` units; the `kinds` of site; and `widths`, the buckets of every kind in entries
    along the axis of its units.
    """

    params: Params
    weights: dict[str, Any]
    kept: Any
    kinds: tuple[SiteKind, ...] = flax.struct.field(pytree_node=False)
    widths: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)

    def hidden_axes(self, config: ModelConfig) -> dict[str, int]:
        """The axis `D` of all weights, counted from the end."""
        return config.hidden_axes | {kind.name: -1 for kind in self.kinds}


def in_order(stack: jax.Array, order: jax.Array, axis: str, axes: str) -> jax.Array:
    """`stack [L, ...]`, whose other axes are `axes`, with the units of each layer along `axis` in the layer's
    `order [L, U]`, or `[L, X, U]` with experts. It moves layer by layer, so a program that may overwrite
    `stack` needs no copy."""

    def move(layer: jax.Array, stack: jax.Array) -> jax.Array:
        return stack.at[layer].set(taken(stack[layer], order[layer], axis, axes))

    return jax.lax.fori_loop(0, len(stack), move, stack)


overwrite_in_order = jax.jit(in_order, static_argnames=("axis", "axes"), donate_argnames="stack")


def reordered(
    stack: Any, order: jax.Array, axis: str, axes: str, scratch: Scratch, *, overwrite: bool = False
) -> Any:
    """`in_order` of a stack in memory or on disk. `overwrite` reuses its memory or its file; a stack on disk
    is otherwise copied to the disk of `scratch`."""
    if not on_disk(stack):
        return (overwrite_in_order if overwrite else in_order)(stack, order, axis, axes)

    def of_layer(layer: int) -> np.ndarray:
        return np.asarray(taken(np.asarray(stack[layer]), np.asarray(order[layer]), axis, axes))

    if not overwrite:
        return scratch.stack(len(order), of_layer)
    for layer in range(len(order)):
        stack[layer] = of_layer(layer)
    return stack


def orders_of(supernet: Supernet, config: ModelConfig) -> dict[str, jax.Array]:
    """The entries along the axis of units in the order of removal, by kind: `[L, N]` heads, `[L, F]` neurons
    (`[L, X, F]` of experts)."""
    ranks = {kind: supernet.ranks[kind.name] for kind in supernet.kinds}
    return {kind.name: kind.entries(jnp.argsort(rank, axis=-1), config) for kind, rank in ranks.items()}


def reordered_weights(
    weights: dict[str, Any],
    orders: dict[str, jax.Array],
    kinds: tuple[SiteKind, ...],
    config: ModelConfig,
    scratch: Scratch,
    overwrite: bool,
) -> dict[str, Any]:
    """The `weights [L, E, ...]` of a supernet, by kind, with units in `orders`; see `reordered`."""

    def of(kind: SiteKind) -> Any:
        axes, order = "E" + config.axes[kind.output], orders[kind.name]
        return reordered(weights[kind.name], order, kind.axis, axes, scratch, overwrite=overwrite)

    return {kind.name: of(kind) for kind in kinds}


def nest(
    params: Params,
    supernet: Supernet,
    config: ModelConfig,
    *,
    consume: bool = False,
    scratch: Scratch = TEMPORARY,
) -> Nested:
    """Sort the units of a dense model (blocks stacked) and its supernet by removal. What other entries share,
    such as key/value heads, stays where it is. What is on disk stays there, in `scratch`.

    With `consume`, the supernet's weights are overwritten, and it must not be used afterwards, except by
    `restored`.
    """
    kinds, orders = supernet.kinds, orders_of(supernet, config)
    # The supernet has the output weights of every level.
    outputs = {kind.output for kind in kinds}
    blocks = {name: stack for name, stack in params["blocks"].items() if name not in outputs}
    for kind in kinds:
        order = orders[kind.name]
        for name in blocks:
            if kind.axis in config.axes.get(name, ""):
                blocks[name] = reordered(blocks[name], order, kind.axis, config.axes[name], scratch)
        blocks |= {name: make(order, config) for name, make in kind.reads}
    net = Nested(
        params | {"blocks": blocks},
        reordered_weights(supernet.weights, orders, kinds, config, scratch, consume),
        supernet.kept,
        kinds,
        tuple(used_widths(supernet, row, config) for row in range(len(kinds))),
    )
    return devices.spread(net, net.hidden_axes(config))


def restored(
    nested: Nested, supernet: Supernet, config: ModelConfig, *, scratch: Scratch = TEMPORARY
) -> Supernet:
    """The `supernet` that `nest` has consumed, with all units where they were. `nested` must not be used
    afterwards, because its weights are overwritten in turn."""
    orders = {name: jnp.argsort(order, axis=-1) for name, order in orders_of(supernet, config).items()}
    weights = reordered_weights(nested.weights, orders, supernet.kinds, config, scratch, True)
    return devices.spread(supernet.replace(weights=weights), supernet.hidden_axes)


def used_widths(supernet: Supernet, row: int, config: ModelConfig) -> tuple[int, ...]:
    """The widths, in entries along the axis of units, that the levels of a kind of site run at; all that
    there are, if the levels are not known yet."""
    kind = supernet.kinds[row]
    span, units = kind.span(config), kind.count(config)
    *rows, _ = kind.shape(config)
    channels = math.prod(rows[config.axes[kind.output].index(kind.axis) + 1 :])
    widths = bucket_widths(units, 1 if kind.apart(config) else span * channels)
    if not isinstance(supernet.kept, jax.core.Tracer):
        kept, exists = devices.fetch((supernet.kept, supernet.exists))
        used = np.unique(np.searchsorted(widths, kept[row][exists[row]]))
        widths = tuple(widths[bucket] for bucket in used)
    # Layers that lack the kind run at a width of zero.
    return (0,) * any(kind.layers(config)) + tuple(span * width for width in widths)


def prefix(nested: Nested, layer: jax.Array, kind: SiteKind, width: int, config: ModelConfig) -> Block:
    """The weights of a layer's sublayer for the first `width` entries along the axis of its units, except
    output weights."""
    blocks = nested.params["blocks"]
    axes = {tensor.name: tensor.axes for tensor in config.tensors if tensor.sublayer == kind.sublayer}
    axes |= {name: kind.axis for name, _ in kind.reads}
    del axes[kind.output]

    def cut(name: str) -> jax.Array:
        return blocks[name][layer, *(slice(width if axis == kind.axis else None) for axis in axes[name])]

    return {name: cut(name) for name in axes}


def project(stack: jax.Array, layer: jax.Array, level: jax.Array, units: jax.Array) -> jax.Array:
    """The output `[B, T, D]` of a site, without bias, from the activations `units [B, T, U, ...]` of the
    first units, which it keeps, and the weights of a level in `stack [L, E, U', ..., D]`. With experts,
    they are `[B, T, X, U]` and `[L, E, X, U', D]`.

    On a CPU, a `vmap` runs candidates one after the other. Each then multiplies with weights in place,
    instead of with a copy of them for every candidate.
    """

    def product(*arguments: jax.Array) -> jax.Array:
        stack, layer, level, units = arguments
        weight = stack[layer, level, *map(slice, units.shape[2:])]
        out = jnp.tensordot(units, weight, axes=weight.ndim - 1, preferred_element_type=jnp.float32)
        return out.astype(units.dtype)

    in_turn = jax.custom_batching.sequential_vmap(product)
    return jax.lax.platform_dependent(stack, layer, level, units, cpu=in_turn, default=product)
