"""The cost of a distribution: the parameters in the blocks of its compressed model.

Heads cost what they take in the compressed layer, including key/value heads, padding and duplicates. Where
queries share keys, fewer heads may cost as much. A sublayer without units costs nothing, unless it has an
output bias that must stay.

Axis letters: `L` layers, `E` levels, `N` heads, `K` key/value heads, `F` FFN width, `U` units of a site.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from tyr_jax.model.spec import LayerShape, ModelConfig, active_size, block_specs
from tyr_jax.pruning.compress import pick_experts, pick_heads, pick_neurons, shape_of
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.space import ATTENTION, FFN, KINDS


@functools.lru_cache(maxsize=2**16)
def sublayer_parameters(config: ModelConfig, kind: int, shape: LayerShape, active: bool = False) -> int:
    """Parameters of the sublayer of a kind, in a layer of this `shape`. If only `active` ones count, of the
    experts only as many do as a token is sent to."""
    one = dataclasses.replace(config, layers=(shape,))
    specs = [spec for spec in block_specs(one, 0) if spec.sublayer == KINDS[kind]]
    return sum(active_size(spec, config) if active else math.prod(spec.shape) for spec in specs)


def blocks_price(config: ModelConfig, active: bool) -> int:
    """Parameters of all blocks of a dense model."""
    layer = (sublayer_parameters(config, kind, config.dense_shape, active) for kind in (ATTENTION, FFN))
    return config.depth * sum(layer)


def heads_price(heads: np.ndarray, config: ModelConfig) -> int:
    """Parameters of attention that keeps `heads` (sorted)."""
    return sublayer_parameters(config, ATTENTION, shape_of(pick_heads(heads, config)))


def ffn_price(count: int, config: ModelConfig, settings: PruningSettings) -> int:
    """Parameters, as `settings` count them, of an FFN that keeps `count` units: neurons, of every expert if
    there are several, or experts."""
    units = np.arange(count)
    if settings.drops_experts(config):
        picks = pick_experts(units, config)
    else:
        picks = pick_neurons(units, config, settings.neuron_multiple)
    return sublayer_parameters(config, FFN, shape_of(picks), settings.counts_active)


def level_prices(
    config: ModelConfig, settings: PruningSettings, kept: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    """Parameters `[2, L, E]`, as `settings` count them, of all sites at levels that keep `kept [2, L, E]`
    units. `rank [L, U]` numbers the units of attention, last-removed first."""
    each = config.dense_shape.heads // rank.shape[1]

    def attention(layer: int, count: int) -> int:
        units = np.sort(np.flatnonzero(rank[layer] < count))
        return heads_price((units[:, None] * each + np.arange(each)).ravel(), config)

    return np.array(
        [
            [[attention(layer, count) for count in site] for layer, site in enumerate(kept[ATTENTION])],
            [[ffn_price(count, config, settings) for count in site] for site in kept[FFN]],
        ]
    )


@functools.lru_cache(maxsize=1024)
def dearest_heads(count: int, config: ModelConfig) -> int:
    """The most parameters that attention with `count` heads can take, whichever heads they are."""
    groups, size = config.dense_shape.kv_heads, config.dense_shape.heads // config.dense_shape.kv_heads
    chosen = itertools.combinations_with_replacement(range(size + 1), groups)
    spread = (
        np.concatenate([group * size + np.arange(heads) for group, heads in enumerate(choice)]).astype(int)
        for choice in chosen
        if sum(choice) == count
    )
    return max(heads_price(heads, config) for heads in spread)
