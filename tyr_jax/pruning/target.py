"""A target: how much a pruned model may keep, and the uniform model that keeps as much.

With a budget of units, the uniform model loses the same share of heads and of neurons in every layer. With a
budget of parameters or of another resource, it keeps attention whole, because heads matter much and cost
little, and all FFNs have the same width up to one step. Heads are removed as well only if FFNs would
otherwise keep less than half of the share asked for, or if a further limit is not kept.

Axis letters: `S` kinds of site, `L` layers, `E` levels.
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
    unit_budget,
    values_at,
)

NOUNS: dict[Resource, str] = {
    "parameters": "parameters",
    "active-parameters": "parameters that a token uses",
    "flops": "FLOPs",
    "kv-cache": "KV-cache entries",
    "latency": "nanoseconds",
}
"""What messages call the resources."""


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One of the sparsities asked for: the units `kept [S, L]` that the uniform model keeps for it, and the
    `limits` of what its blocks may take, by resource; none with a budget of units."""

    sparsity: float
    kept: np.ndarray
    limits: dict[Resource, int]

    @property
    def name(self) -> str:
        """The name of its directory and of its part of the progress display."""
        return f"{self.sparsity:g}"

    def budget(self, kept: np.ndarray, prices: np.ndarray) -> Budget:
        """The budget of distributions whose levels keep `kept [S, L, E]` units and take `prices
        [R, S, L, E]` of the limited resources."""
        if not self.limits:
            return Budget.of_units(kept, self.kept.sum(axis=-1))
        return Budget.of_prices(prices, list(self.limits.values()))

    def spare(self, prices: np.ndarray, levels: np.ndarray) -> dict[Resource, int]:
        """What `levels [S, L]`, which take `prices [R, S, L, E]`, leave of each limited resource."""
        spent = values_at(prices, levels).sum(axis=(1, 2))
        return {
            resource: limit - int(taken)
            for (resource, limit), taken in zip(self.limits.items(), spent, strict=True)
        }


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
    dense = {name: blocks_take(config, name, settings.table(name)) for name in shares}
    limits = {name: math.floor(share * dense[name]) for name, share in shares.items()}
    return Target(sparsity, _within(Uniform(config, settings, limits), sparsity), limits)


@dataclasses.dataclass(frozen=True, eq=False)
class Uniform:
    """The uniform models of a configuration, which differ in their `total` of heads and of `neurons` in all
    layers that are pruned; and the `limits` of what their blocks may take, by resource."""

    config: ModelConfig
    settings: PruningSettings
    limits: dict[Resource, int]

    def kept(self, total: int, neurons: int) -> np.ndarray:
        """Units `[S, L]` that a model keeps."""
        kinds, whole = self.settings.kinds(self.config), self.settings.whole(self.config)
        stay = [int(row.sum()) * kind.units for row, kind in zip(whole, kinds, strict=True)]
        return uniform_centres(kinds, (stay[ATTENTION] + total, stay[FFN] + neurons), whole)

    def exceeded(self, total: int, neurons: int) -> list[Resource]:
        """The limits that a model exceeds, whichever heads it keeps."""
        heads, widths = self.kept(total, neurons).tolist()
        each = self._heads_each

        def spent(resource: Resource) -> int:
            table = self.settings.table(resource)
            attention = sum(
                dearest_heads(count * each, self.config, resource, layer, table)
                for layer, count in enumerate(heads)
            )
            return attention + sum(ffn_price(width, self.config, self.settings, resource) for width in widths)

        return [resource for resource, limit in self.limits.items() if limit < spent(resource)]

    @property
    def _heads_each(self) -> int:
        """Query heads of a unit of attention."""
        return self.config.dense_shape.heads // self.settings.kinds(self.config)[ATTENTION].units


def _largest(count: int, exceeds: Callable[[int], object]) -> int:
    """The largest of 0 … `count` that exceeds no limit, -1 if there is none."""
    return bisect.bisect_left(range(count + 1), True, key=lambda number: bool(exceeds(number))) - 1


def _within(models: Uniform, sparsity: float) -> np.ndarray:
    """Units `[S, L]` that the largest uniform model within its limits keeps.

    Raises:
        UserError: nothing fits, or everything does.
    """
    config, settings = models.config, models.settings
    attention, ffn = settings.kinds(config)
    movable, thinned = (int((~stays).sum()) for stays in settings.whole(config))
    # An FFN whose output bias must stay keeps some neurons to carry it.
    floor = thinned * ffn.multiple if has_output_bias(config, "ffn") else 0
    half = math.floor((1 - sparsity) / 2 * thinned * ffn.units / ffn.multiple) * ffn.multiple
    least = max(floor, half)
    total = max(0, _largest(movable * attention.units, lambda total: models.exceeded(total, least)))
    most = thinned * (ffn.units // ffn.multiple)
    neurons = ffn.multiple * _largest(most, lambda steps: models.exceeded(total, steps * ffn.multiple))
    if neurons < floor or (total == 0 and neurons == 0):
        raise _too_small(models, sparsity, models.exceeded(total, max(floor, ffn.multiple)))
    _check_smaller(models, sparsity, ffn.multiple)
    return models.kept(total, neurons)


def _too_small(models: Uniform, sparsity: float, exceeded: list[Resource]) -> UserError:
    """What to say of limits that leave too little; `exceeded` are those that the smallest model exceeds."""
    first = next(iter(models.limits))
    tightest = next(iter(exceeded), first)
    blocks = blocks_take(models.config, tightest, models.settings.table(tightest))
    asked = f"sparsity {sparsity:g}" if tightest == first else f"--at-most {tightest}"
    return UserError(
        f"{asked} would keep {max(0, models.limits[tightest]):,} of {blocks:,} {NOUNS[tightest]} of the "
        f"blocks, fewer than a model needs; choose a "
        f"{'lower sparsity' if tightest == first else 'larger share'}, or list fewer layers in --keep-heads "
        "and --keep-neurons"
    )


def _check_smaller(models: Uniform, sparsity: float, multiple: int) -> None:
    """Check that a target removes something.

    Raises:
        UserError: it asks for less than a step of neurons.
    """
    first, limit = next(iter(models.limits.items()))
    blocks = blocks_take(models.config, first, models.settings.table(first))
    step = ffn_price(multiple, models.config, models.settings, first)
    if limit > blocks - step:
        raise UserError(
            f"sparsity {sparsity:g} is too small to remove anything: the smallest step, {multiple} neurons, "
            f"has {step:,} {NOUNS[first]}, but only {blocks - limit:,} of the blocks' {blocks:,} are to go; "
            f"choose at least {step / blocks:.2g}"
        )
