"""What a distribution may cost, in units of each kind (the paper) or in resources such as parameters.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `R` resources.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from tyr_jax.space.levels import values_at

MOST = 2**30
"""The prices of all sites together stay below this, because they are added up in 32 bits."""


class Budget(NamedTuple):
    """What a distribution may cost: integers, in one or several resources.

    The `price [R, S, L, E]` of every level; what all sites together may take of each resource, `limit [R]`;
    and `exact`, whether they must take all of it.
    """

    price: np.ndarray
    limit: np.ndarray
    exact: np.bool_

    @classmethod
    def of_units(cls, kept: np.ndarray, total: ArrayLike) -> Self:
        """Each kind keeps `total [S]` units (the paper); levels keep `kept [S, L, E]`."""
        kinds = np.arange(len(kept))
        price = np.where(kinds[:, None, None, None] == kinds[:, None, None], kept, 0)
        return cls(price.astype(np.int32), np.asarray(total, np.int32), np.bool_(True))

    @classmethod
    def of_prices(cls, prices: np.ndarray, limits: Sequence[int]) -> Self:
        """All kinds together take at most `limits [R]` of each resource; levels cost `prices [R, S, L, E]`.

        The prices of a resource are in units of their greatest common divisor. Where they would still be too
        large, the unit is larger, and prices are rounded up.
        """
        most = [int(price.max(axis=-1).sum()) for price in prices]
        quanta = np.array(
            [
                max(int(np.gcd.reduce(price, axis=None)), -(-total // MOST), 1)
                for price, total in zip(prices, most, strict=True)
            ]
        )
        scaled = -(-prices // quanta[:, None, None, None])
        limit = np.asarray(limits) // quanta
        return cls(scaled.astype(np.int32), np.minimum(limit, MOST).astype(np.int32), np.bool_(False))

    def spent(self, levels: ArrayLike) -> np.ndarray:
        """What levels `[..., S, L]` cost, `[..., R]`."""
        spent = values_at(self.price, np.asarray(levels)[..., None, :, :])
        return spent.sum(axis=(-1, -2), dtype=np.int64)

    def allows(self, levels: ArrayLike) -> np.ndarray:
        """Whether levels `[..., S, L]` meet the budget, `[...]`."""
        spent = self.spent(levels)
        return np.all(spent == self.limit if self.exact else spent <= self.limit, axis=-1)
