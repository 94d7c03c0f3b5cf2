"""A target: how much a pruned model may keep, and the uniform model that keeps as much.

With a budget of units, the uniform model loses the same share of heads and of neurons in every layer. With a
budget of parameters or of another resource, it keeps attention whole, because heads matter much and cost
little, and all FFNs have the same width up to one step. Heads are removed as well only if FFNs would
otherwise keep less than half of the share asked for, or if a further limit is not kept. In general, kinds of
site are thinned from the last of the table to the first.

Axis letters: `S` kinds of site, `L` layers, `E` levels.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.cut import has_output_bias
from tyr_jax.pruning.prices import Pricing
from tyr_jax.pruning.settings import PruningSettings, Resource
from tyr_jax.space import Budget, check_multiple, uniform_centres, unit_budget, values_at

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
        there = np.stack([kind.there(config.depth) for kind in kinds])
        counts = there.sum(axis=1).tolist(), (there & whole).sum(axis=1).tolist()
        rows = zip(kinds, *counts, strict=True)
        budgets = [unit_budget(kind, depth, sparsity, stay) for kind, depth, stay in rows]
        return Target(sparsity, uniform_centres(kinds, budgets, whole), {})
    for kind in kinds:
        check_multiple(kind)
    shares = {settings.budget: 1 - sparsity, **settings.shares}
    dense = {name: Pricing.of(config, settings, name).blocks() for name in shares}
    limits = {name: math.floor(share * dense[name]) for name, share in shares.items()}
    return Target(sparsity, Uniform(config, settings, limits).largest(sparsity), limits)


@dataclasses.dataclass(frozen=True, eq=False)
class Uniform:
    """The uniform models of a configuration, which differ in how many steps of units each kind keeps in all
    of the layers that are pruned; and the `limits` of what their blocks may take, by resource."""

    config: ModelConfig
    settings: PruningSettings
    limits: dict[Resource, int]

    def kept(self, steps: Sequence[int]) -> np.ndarray:
        """Units `[S, L]` that a model keeps, given the multiples that layers which are pruned keep in all, of
        each kind."""
        kinds, whole = self.settings.kinds(self.config), self.settings.whole(self.config)
        rows = zip(kinds, whole, steps, strict=True)
        depth = self.config.depth
        budgets = [int(kind.most(depth)[row].sum()) + count * kind.multiple for kind, row, count in rows]
        return uniform_centres(kinds, budgets, whole)

    def exceeded(self, steps: Sequence[int]) -> list[Resource]:
        """The limits that a model exceeds, whichever units it keeps."""
        kept = self.kept(steps).tolist()

        def spent(resource: Resource) -> int:
            pricing = Pricing.of(self.config, self.settings, resource)
            rows = zip(pricing.kinds, map(enumerate, kept), strict=True)
            return sum(pricing.dearest(kind, count, layer) for kind, row in rows for layer, count in row)

        return [resource for resource, limit in self.limits.items() if limit < spent(resource)]

    def largest(self, sparsity: float) -> np.ndarray:
        """Units `[S, L]` that the largest model within the limits keeps: each kind in turn as many as fit
        while those after it keep at least half of the share asked for.

        Raises:
            UserError: nothing fits, or everything does.
        """
        kinds, last = self.settings.kinds(self.config), self.settings.site_kinds(self.config)[-1]
        pruned = (~self.settings.whole(self.config)).sum(axis=1).tolist()
        rows = list(zip(kinds, pruned, strict=True))
        # A sublayer whose output bias must stay keeps some units to carry it.
        floor = pruned[-1] if has_output_bias(self.config, last.sublayer) else 0
        steps = [
            math.floor((1 - sparsity) / 2 * layers * kind.units / kind.multiple) for kind, layers in rows
        ]
        steps[-1] = max(steps[-1], floor)
        for row, (kind, layers) in enumerate(rows):

            def too_many(count: int, row: int = row) -> bool:
                return bool(self.exceeded([*steps[:row], count, *steps[row + 1 :]]))

            counts = range(layers * (kind.units // kind.multiple) + 1)
            found = bisect.bisect_left(counts, True, key=too_many) - 1
            steps[row] = found if row + 1 == len(rows) else max(0, found)
        if steps[-1] < floor or not any(steps):
            raise _too_small(self, sparsity, self.exceeded([*steps[:-1], max(floor, 1)]))
        _check_smaller(self, sparsity)
        return self.kept(steps)


def _too_small(models: Uniform, sparsity: float, exceeded: list[Resource]) -> UserError:
    """What to say of limits that leave too little; `exceeded` are those that the smallest model exceeds."""
    first = next(iter(models.limits))
    tightest = next(iter(exceeded), first)
    blocks = Pricing.of(models.config, models.settings, tightest).blocks()
    asked = f"sparsity {sparsity:g}" if tightest == first else f"--at-most {tightest}"
    return UserError(
        f"{asked} would keep {max(0, models.limits[tightest]):,} of {blocks:,} {NOUNS[tightest]} of the "
        f"blocks, fewer than a model needs; choose a "
        f"{'lower sparsity' if tightest == first else 'larger share'}, or list fewer layers in --keep-heads "
        "and --keep-neurons"
    )


def _check_smaller(models: Uniform, sparsity: float) -> None:
    """Check that a target removes something.

    Raises:
        UserError: it asks for less than the smallest step.
    """
    first, limit = next(iter(models.limits.items()))
    pricing = Pricing.of(models.config, models.settings, first)
    kind, multiple = pricing.kinds[-1], models.settings.kinds(models.config)[-1].multiple
    blocks, step = pricing.blocks(), pricing.level(kind, multiple)
    if limit > blocks - step:
        raise UserError(
            f"sparsity {sparsity:g} is too small to remove anything: the smallest step, {multiple} "
            f"{kind.noun}, has {step:,} {NOUNS[first]}, but only {blocks - limit:,} of the blocks' "
            f"{blocks:,} are to go; choose at least {step / blocks:.2g}"
        )
