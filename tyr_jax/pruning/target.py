"""A target: how much a pruned model may keep, and the uniform model that keeps as much.

With a budget of units, the uniform model loses the same share of heads and of neurons in every layer. With a
budget of parameters, it keeps attention whole, because heads matter much and cost little, and all FFNs have
one width. Whatever loads the dense model can then load it too. Heads are removed as well only if FFNs would
otherwise keep less than half of the share asked for.

Axis letters: `L` layers, `E` levels.
"""

import dataclasses
import math

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.compress import has_output_bias
from tyr_jax.pruning.prices import blocks_price, dearest_heads, ffn_price
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.space import (
    ATTENTION,
    FFN,
    Budget,
    check_multiple,
    uniform_centres,
    uniform_split,
    unit_budget,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One of the sparsities asked for: the units `kept [2, L]` that the uniform model keeps for it, and the
    `limit` of parameters that blocks may have, None with a budget of units."""

    sparsity: float
    kept: np.ndarray
    limit: int | None

    @property
    def name(self) -> str:
        """The name of its directory and of its part of the progress display."""
        return f"{self.sparsity:g}"

    def budget(self, kept: np.ndarray, prices: np.ndarray) -> Budget:
        """The budget of distributions whose levels keep `kept [2, L, E]` units and cost `prices [2, L, E]`
        parameters."""
        if self.limit is None:
            return Budget.of_units(kept, self.kept.sum(axis=-1))
        return Budget.of_parameters(prices, self.limit)


def target_of(config: ModelConfig, settings: PruningSettings, sparsity: float) -> Target:
    """The target of a sparsity, in whole units.

    Raises:
        UserError: the sparsity would leave nothing, or everything; names what is possible.
    """
    kinds, whole = settings.kinds(config), settings.whole(config)
    if settings.budget == "units":
        stay = whole.sum(axis=1).tolist()
        budgets = [unit_budget(kind, config.depth, sparsity, n) for kind, n in zip(kinds, stay, strict=True)]
        return Target(sparsity, uniform_centres(kinds, (budgets[0], budgets[1]), whole), None)
    check_multiple(kinds[FFN])
    limit = math.floor((1 - sparsity) * blocks_price(config, settings.counts_active))
    return Target(sparsity, _within(limit, sparsity, config, settings), limit)


def _within(limit: int, sparsity: float, config: ModelConfig, settings: PruningSettings) -> np.ndarray:
    """Units `[2, L]` that the uniform model keeps within `limit` parameters.

    Raises:
        UserError: nothing fits, or everything does.
    """
    attention, ffn = settings.kinds(config)
    whole, multiple = settings.whole(config), ffn.multiple

    def price(neurons: int) -> int:
        return ffn_price(neurons, config, settings)

    heads_each = config.dense_shape.heads // attention.units
    movable, thinned = (int((~stays).sum()) for stays in whole)

    def neurons_left(heads: np.ndarray) -> int:
        """Neurons that all FFNs to be pruned can keep, in multiples, if attention keeps `heads [L]`."""
        spent = sum(dearest_heads(int(count) * heads_each, config) for count in heads)
        spent += (config.depth - thinned) * price(ffn.units)
        one, two = price(multiple), price(2 * multiple)
        fixed = thinned * (2 * one - two)
        return (limit - spent - fixed) // (two - one) * multiple

    def heads_of(total: int) -> np.ndarray:
        """Heads `[L]` if the layers that can lose some keep `total` of them."""
        heads = np.full(config.depth, attention.units)
        heads[~whole[ATTENTION]] = uniform_split(attention, movable, total) if movable else 0
        return heads

    total = movable * attention.units
    # An FFN whose output bias must stay keeps some neurons to carry it.
    floor = thinned * multiple if has_output_bias(config, "ffn") else 0
    least = max(floor, math.floor((1 - sparsity) / 2 * thinned * ffn.units / multiple) * multiple)
    while total and neurons_left(heads_of(total)) < least:
        total -= 1
    heads = heads_of(total)
    neurons, most = neurons_left(heads), thinned * (ffn.units // multiple) * multiple
    blocks, least_price = blocks_price(config, settings.counts_active), price(multiple)
    if neurons < floor or (total == 0 and neurons == 0):
        raise UserError(
            f"sparsity {sparsity:g} would keep {max(0, limit):,} of {blocks:,} parameters of the blocks, "
            "fewer than a model needs; choose a lower sparsity, or name fewer layers that stay whole"
        )
    if limit > blocks - least_price:
        raise UserError(
            f"sparsity {sparsity:g} would leave the model intact: {blocks - limit:,} of the blocks' "
            f"{blocks:,} parameters are to go, fewer than {multiple} neurons have; choose at least "
            f"{least_price / blocks:.2g}"
        )
    kept = np.stack([heads, np.full(config.depth, ffn.units)])
    if thinned:
        kept[FFN, ~whole[FFN]] = uniform_split(ffn, thinned, min(neurons, most))
    return kept
