"""The cost of a distribution: what the blocks of its compressed model take of each resource.

Heads cost what they take in the compressed layer, including key/value heads, padding and duplicates. Where
queries share keys, fewer heads may cost as much. A sublayer without units costs nothing, unless it has an
output bias that must stay.

Axis letters: `R` resources, `S` kinds of site, `L` layers, `E` levels, `N` heads, `K` key/value heads, `F`
FFN width, `U` units of a site.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import active_size, block_specs
from tyr_jax.pruning.cut import shape_of
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.latency import Latencies
from tyr_jax.pruning.settings import PruningSettings, Resource

CONTEXT = 2048
"""Tokens of the sequence for which FLOPs and the cache are counted."""


@functools.lru_cache(maxsize=2**16)
def sublayer_price(
    kind: SiteKind,
    config: ModelConfig,
    shape: LayerShape,
    resource: Resource = "parameters",
    layer: int = 0,
    table: Latencies | None = None,
) -> int:
    """What the sublayer of a kind of site takes of a resource, in a layer of this `shape`.

    `parameters`; `active-parameters`, of the experts only as many as a token is sent to; `flops`, those of
    the matrix products for a sequence of `CONTEXT` tokens; `kv-cache`, the numbers in the cache of keys and
    values of such a sequence; `latency`, nanoseconds by the `table` (prices are kept for the table, not for
    its file, which may be measured again). FLOPs and cache depend on the window of the `layer`.

    Raises:
        UserError: latency is counted without a table, or this shape is not in it.
    """
    one = dataclasses.replace(config, layers=(shape,))
    specs = [spec for spec in block_specs(one, 0) if spec.sublayer == kind.sublayer]
    if resource == "latency":
        if table is None:
            raise UserError(
                "a budget of latency needs --latencies FILE, as scripts/measure_latencies.py writes it"
            )
        return table.nanoseconds(kind.sublayer, shape)
    if resource == "parameters":
        return sum(math.prod(spec.shape) for spec in specs)
    if resource == "active-parameters":
        return sum(active_size(spec, config) for spec in specs)
    positions = config.positions[layer if config.mixed else 0]
    window = min(CONTEXT, positions.window or CONTEXT)
    if resource == "kv-cache":
        return kind.cached(config, shape) * window
    products = CONTEXT * 2 * sum(active_size(spec, config) for spec in specs if len(spec.shape) > 1)
    # Every token attends to those before it, as far as the window goes, and to itself.
    pairs = window * (window + 1) // 2 + (CONTEXT - window) * window
    return products + kind.paired(config, shape) * pairs


@dataclasses.dataclass(frozen=True)
class Pricing:
    """How prices are counted: sublayers of a model of `config`, whose `kinds` of site may be pruned, by a
    `resource`; latency by its `table`. A sublayer that only carries a bias keeps `multiple` units."""

    config: ModelConfig
    kinds: tuple[SiteKind, ...]
    multiple: int
    resource: Resource
    table: Latencies | None

    @classmethod
    def of(cls, config: ModelConfig, settings: PruningSettings, resource: Resource = "parameters") -> Self:
        """Prices of a resource for a model that is pruned as `settings` say.

        Raises:
            UserError: the table of latencies is none.
        """
        table, kinds = settings.table(resource), settings.site_kinds(config)
        return cls(config, kinds, settings.neuron_multiple, resource, table)

    def sublayer(self, kind: SiteKind, shape: LayerShape, layer: int = 0) -> int:
        """What the sublayer of a kind takes in a layer of this `shape`."""
        return sublayer_price(kind, self.config, shape, self.resource, layer, self.table)

    def blocks(self, layers: Sequence[LayerShape] | None = None) -> int:
        """What the blocks of a model with `layers` of these shapes take (default: the dense one)."""
        shapes = list(enumerate(self.config.layers if layers is None else layers))
        return sum(self.sublayer(kind, shape, layer) for kind in self.kinds for layer, shape in shapes)

    def entries(self, kind: SiteKind, entries: np.ndarray, layer: int = 0) -> int:
        """What a sublayer takes that keeps these `entries [U]` (sorted) along the axis of its units."""
        picks = kind.pick(entries, self.config, self.multiple)
        return self.sublayer(kind, shape_of(picks), layer)

    def level(self, kind: SiteKind, count: int, layer: int = 0, rank: np.ndarray | None = None) -> int:
        """What a site takes that keeps `count` units: those of lowest `rank [U]`, or any, where only their
        number counts."""
        if not kind.has(self.config, layer):
            return 0
        units = np.arange(count) if rank is None else np.sort(np.flatnonzero(rank < count))
        return self.entries(kind, kind.entries(units, self.config), layer)

    def dearest(self, kind: SiteKind, count: int, layer: int = 0) -> int:
        """The most that a site with `count` units can take, whichever units they are."""
        if kind.spreads is None or not kind.has(self.config, layer):
            return self.level(kind, count, layer)
        return _dearest(self, kind, count * kind.span(self.config), layer)


@functools.lru_cache(maxsize=2**16)
def _dearest(pricing: Pricing, kind: SiteKind, count: int, layer: int) -> int:
    spreads = () if kind.spreads is None else kind.spreads(count, pricing.config)
    return max(pricing.entries(kind, entries, layer) for entries in spreads)


def level_prices(
    config: ModelConfig,
    settings: PruningSettings,
    kept: np.ndarray,
    ranks: Mapping[str, np.ndarray],
    resources: Sequence[Resource] = ("parameters",),
) -> np.ndarray:
    """What all sites take of `resources` at levels that keep `kept [S, L, E]` units: `[R, S, L, E]`. Where it
    depends on which units these are, `ranks` has their ranks `[L, U]`, last-removed first, by kind."""

    def rows(pricing: Pricing) -> Iterator[list[list[int]]]:
        for kind, layers in zip(pricing.kinds, kept, strict=True):
            rank = [None] * len(layers) if kind.spreads is None else ranks[kind.name]
            yield [
                [pricing.level(kind, count, layer, own) for count in counts]
                for layer, (counts, own) in enumerate(zip(layers, rank, strict=True))
            ]

    return np.array([[*rows(Pricing.of(config, settings, resource))] for resource in resources], np.int64)
