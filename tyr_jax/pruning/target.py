"""A target: how much a pruned model may keep, and the uniform model that keeps as much.

With a budget of units, the uniform model loses the same share of heads and of neurons in every layer. With a
budget of parameters or of another resource, it keeps attention whole, because heads matter much and cost
little, and all FFNs have one width. Whatever loads the dense model can then load it too. Heads are removed as
well only if FFNs would otherwise keep less than half of the share asked for, or if a further limit is not
kept.

Axis letters: `L` layers, `E` levels.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.compress import has_output_bias
from tyr_jax.pruning.prices import blocks_take, dearest_heads, ffn_price
from tyr_jax.pruning.settings import PruningSettings, Resource
from tyr_jax.space import (
    ATTENTION,
    FFN,
    Budget,
    check_multiple,
    uniform_centres,
    uniform_split,
    unit_budget,
)

NOUNS: dict[Resource, str] = {
    "parameters": "parameters",
    "active-parameters": "parameters that a token uses",
    "flops": "FLOPs",
    "kv-cache": "numbers in the cache",
    "latency": "nanoseconds",
}
"""What messages call the resources."""


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One of the sparsities asked for: the units `kept [2, L]` that the uniform model keeps for it, and the
    `limits` of what its blocks may take, by resource; none with a budget of units."""

    sparsity: float
    kept: np.ndarray
    limits: dict[Resource, int]

    @property
    def name(self) -> str:
        """The name of its directory and of its part of the progress display."""
        return f"{self.sparsity:g}"

    def budget(self, kept: np.ndarray, prices: np.ndarray) -> Budget:
        """The budget of distributions whose levels keep `kept [2, L, E]` units and take `prices
        [R, 2, L, E]` of the limited resources."""
        if not self.limits:
            return Budget.of_units(kept, self.kept.sum(axis=-1))
        return Budget.of_prices(prices, list(self.limits.values()))


def target_of(config: ModelConfig, settings: PruningSettings, sparsity: float) -> Target:
    """The target of a sparsity, in whole units.

    Raises:
        UserError: the sparsity would leave nothing, or everything; names what is possible.
    """
    kinds, whole = settings.kinds(config), settings.whole(config)
    if settings.budget == "units":
        stay = whole.sum(axis=1).tolist()
        budgets = [unit_budget(kind, config.depth, sparsity, n) for kind, n in zip(kinds, stay, strict=True)]
        return Target(sparsity, uniform_centres(kinds, (budgets[0], budgets[1]), whole), {})
    check_multiple(kinds[FFN])
    shares = {settings.budget: 1 - sparsity, **settings.shares}
    dense = {name: blocks_take(config, name, settings.latencies) for name in shares}
    limits = {name: math.floor(share * dense[name]) for name, share in shares.items()}
    return Target(sparsity, _within(limits, sparsity, config, settings), limits)


def _within(
    limits: dict[Resource, int], sparsity: float, config: ModelConfig, settings: PruningSettings
) -> np.ndarray:
    """Units `[2, L]` that the uniform model keeps within the `limits` of all resources.

    Raises:
        UserError: nothing fits, or everything does.
    """
    attention, ffn = settings.kinds(config)
    whole, multiple, first = settings.whole(config), ffn.multiple, next(iter(limits))
    heads_each = config.dense_shape.heads // attention.units
    movable, thinned = (int((~stays).sum()) for stays in whole)

    def take(resource: Resource) -> int:
        return blocks_take(config, resource, settings.latencies)

    def price(neurons: int, resource: Resource = first) -> int:
        return ffn_price(neurons, config, settings, resource)

    def widths_of(neurons: int) -> np.ndarray:
        """Widths `[L]` if all FFNs to be pruned keep so many neurons together."""
        widths = np.full(config.depth, ffn.units)
        if thinned:
            widths[~whole[FFN]] = uniform_split(ffn, thinned, neurons)
        return widths

    def heads_of(total: int) -> np.ndarray:
        """Heads `[L]` if the layers that can lose some keep `total` of them."""
        heads = np.full(config.depth, attention.units)
        heads[~whole[ATTENTION]] = uniform_split(attention, movable, total) if movable else 0
        return heads

    def broken(total: int, neurons: int) -> list[Resource]:
        """The limits that do not hold with so many heads, whichever they are, and neurons."""

        def spent(resource: Resource) -> int:
            return sum(
                dearest_heads(int(count) * heads_each, config, resource, layer, settings.latencies)
                for layer, count in enumerate(heads_of(total))
            ) + sum(price(int(width), resource) for width in widths_of(neurons))

        return [resource for resource, limit in limits.items() if limit < spent(resource)]

    def largest(count: int, breaks: Callable[[int], object]) -> int:
        """The largest of 0 … `count` that does not break a limit, -1 if there is none."""
        return bisect.bisect_left(range(count + 1), True, key=lambda number: bool(breaks(number))) - 1

    # An FFN whose output bias must stay keeps some neurons to carry it.
    floor = thinned * multiple if has_output_bias(config, "ffn") else 0
    least = max(floor, math.floor((1 - sparsity) / 2 * thinned * ffn.units / multiple) * multiple)
    total = max(0, largest(movable * attention.units, lambda total: broken(total, least)))
    steps = largest(thinned * (ffn.units // multiple), lambda steps: broken(total, steps * multiple))
    neurons = steps * multiple
    if neurons < floor or (total == 0 and neurons == 0):
        tightest = next(iter(broken(total, max(floor, multiple))), first)
        asked = f"sparsity {sparsity:g}" if tightest == first else f"--at-most {tightest}"
        raise UserError(
            f"{asked} would keep {max(0, limits[tightest]):,} of {take(tightest):,} "
            f"{NOUNS[tightest]} of the blocks, fewer than a model needs; choose a "
            f"{'lower sparsity' if tightest == first else 'larger share'}, or list fewer layers in "
            "--keep-heads and --keep-neurons"
        )
    blocks, least_price = take(first), price(multiple)
    if limits[first] > blocks - least_price:
        raise UserError(
            f"sparsity {sparsity:g} would leave the model intact: {blocks - limits[first]:,} of the blocks' "
            f"{blocks:,} {NOUNS[first]} are to go, fewer than {multiple} neurons have; choose at least "
            f"{least_price / blocks:.2g}"
        )
    return np.stack([heads_of(total), widths_of(neurons)])
