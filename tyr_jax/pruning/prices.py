"""The cost of a distribution: what the blocks of its compressed model take of each resource.

Heads cost what they take in the compressed layer, including key/value heads, padding and duplicates. Where
queries share keys, fewer heads may cost as much. A sublayer without units costs nothing, unless it has an
output bias that must stay.

Axis letters: `R` resources, `S` kinds of site, `L` layers, `E` levels, `N` heads, `K` key/value heads, `F`
FFN width, `U` units of a site.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import LayerShape, ModelConfig, active_size, block_specs
from tyr_jax.pruning.compress import pick_experts, pick_heads, pick_neurons, shape_of
from tyr_jax.pruning.latency import Latencies
from tyr_jax.pruning.settings import PruningSettings, Resource
from tyr_jax.space import ATTENTION, FFN, KINDS

CONTEXT = 2048
"""Tokens of the sequence for which FLOPs and the cache are counted."""


@functools.lru_cache(maxsize=2**16)
def sublayer_price(
    config: ModelConfig,
    kind: int,
    shape: LayerShape,
    resource: Resource = "parameters",
    layer: int = 0,
    table: Latencies | None = None,
) -> int:
    """What the sublayer of a kind takes of a resource, in a layer of this `shape`.

    `parameters`; `active-parameters`, of the experts only as many as a token is sent to; `flops`, those of
    the matrix products for a sequence of `CONTEXT` tokens; `kv-cache`, the numbers in the cache of keys and
    values of such a sequence; `latency`, nanoseconds by the `table` (prices are kept for the table, not for
    its file, which may be measured again). FLOPs and cache depend on the window of the `layer`.

    Raises:
        UserError: latency is counted without a table, or this shape is not in it.
    """
    one = dataclasses.replace(config, layers=(shape,))
    specs = [spec for spec in block_specs(one, 0) if spec.sublayer == KINDS[kind]]
    if resource == "latency":
        if table is None:
            raise UserError(
                "a budget of latency needs --latencies FILE, as scripts/measure_latencies.py writes it"
            )
        return table.nanoseconds(kind, shape)
    if resource == "parameters":
        return sum(math.prod(spec.shape) for spec in specs)
    if resource == "active-parameters":
        return sum(active_size(spec, config) for spec in specs)
    positions = config.positions[layer if config.mixed else 0]
    window = min(CONTEXT, positions.window or CONTEXT)
    if resource == "kv-cache":
        return 2 * config.head_dim * shape.kv_heads * window if kind == ATTENTION else 0
    products = CONTEXT * 2 * sum(active_size(spec, config) for spec in specs if len(spec.shape) > 1)
    # Every token attends to those before it, as far as the window goes, and to itself.
    pairs = window * (window + 1) // 2 + (CONTEXT - window) * window
    return products + (4 * config.head_dim * shape.heads * pairs if kind == ATTENTION else 0)


def blocks_take(config: ModelConfig, resource: Resource, table: Latencies | None = None) -> int:
    """What the blocks of a model, dense or compressed, take of a resource."""
    return sum(
        sublayer_price(config, kind, shape, resource, layer, table)
        for kind in (ATTENTION, FFN)
        for layer, shape in enumerate(config.layers)
    )


def heads_price(
    heads: np.ndarray,
    config: ModelConfig,
    resource: Resource = "parameters",
    layer: int = 0,
    table: Latencies | None = None,
) -> int:
    """What attention that keeps `heads [U]` (sorted) takes of a resource."""
    shape = shape_of(pick_heads(heads, config))
    return sublayer_price(config, ATTENTION, shape, resource, layer, table)


def ffn_price(
    count: int, config: ModelConfig, settings: PruningSettings, resource: Resource = "parameters"
) -> int:
    """What an FFN that keeps `count` units takes of a resource: neurons, of every expert if there are
    several, or experts."""
    units = np.arange(count)
    if settings.drops_experts(config):
        picks = pick_experts(units, config)
    else:
        picks = pick_neurons(units, config, settings.neuron_multiple)
    return sublayer_price(config, FFN, shape_of(picks), resource, table=settings.table(resource))


def level_prices(
    config: ModelConfig,
    settings: PruningSettings,
    kept: np.ndarray,
    rank: np.ndarray,
    resources: Sequence[Resource] = ("parameters",),
) -> np.ndarray:
    """What all sites take of `resources` at levels that keep `kept [S, L, E]` units: `[R, S, L, E]`.
    `rank [L, U]` numbers the units of attention, last-removed first."""
    each = config.dense_shape.heads // rank.shape[1]

    def attention(layer: int, count: int, resource: Resource) -> int:
        units = np.sort(np.flatnonzero(rank[layer] < count))
        heads = (units[:, None] * each + np.arange(each)).ravel()
        return heads_price(heads, config, resource, layer, settings.table(resource))

    return np.array(
        [
            [
                [
                    [attention(layer, count, resource) for count in site]
                    for layer, site in enumerate(kept[ATTENTION])
                ],
                [[ffn_price(count, config, settings, resource) for count in site] for site in kept[FFN]],
            ]
            for resource in resources
        ],
        np.int64,
    )


@functools.lru_cache(maxsize=2**16)
def dearest_heads(
    count: int,
    config: ModelConfig,
    resource: Resource = "parameters",
    layer: int = 0,
    table: Latencies | None = None,
) -> int:
    """The most that attention with `count` heads can take of a resource, whichever heads they are."""
    groups, size = config.dense_shape.kv_heads, config.dense_shape.heads // config.dense_shape.kv_heads
    chosen = itertools.combinations_with_replacement(range(size + 1), groups)
    spread = (
        np.concatenate([group * size + np.arange(heads) for group, heads in enumerate(choice)]).astype(int)
        for choice in chosen
        if sum(choice) == count
    )
    return max(heads_price(heads, config, resource, layer, table) for heads in spread)
