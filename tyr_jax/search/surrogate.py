"""A start for the search that costs no candidate: an additive estimate, solved exactly under the budget.

Pruning a site to a level disturbs the residual stream by its relative layer error times the share that the
site's output has of the stream (per token, so that the few tokens with massive activations do not drown
the rest). Both come out of the supernet's fold. Summed over sites this estimates how much a distribution
hurts; it knows nothing of how errors meet, so moves are limited to a few levels around the centre, where
the estimate can be trusted, and the evolutionary search goes on from the answer.

Axis letters: `L` layers, `E` levels.
"""

import numpy as np
from numpy.typing import ArrayLike


def disturbance(error: ArrayLike, share: ArrayLike, exists: np.ndarray) -> np.ndarray:
    """Estimated cost `[2, L, E]` of every level: relative `error [2, L, E]` × `share [2, L]`; +inf where
    a level does not exist `[2, L, E]`."""
    return np.where(exists, np.asarray(error) * np.asarray(share)[..., None], np.inf)


def cheapest_levels(cost: np.ndarray, limit: int) -> np.ndarray:
    """Levels `[L]` of least total `cost [L, E]` that keep, together, as many units as the centre levels do.

    All sites of a kind share one step, so the budget is that moves away from the centre sum to zero; sites
    move at most `limit` levels. Solved exactly by dynamic programming over sites and the sum of moves.
    """
    depth, levels = cost.shape
    moves = np.arange(levels) - levels // 2
    allowed = np.flatnonzero(np.abs(moves) <= limit)
    reach = depth * limit
    best = np.full(2 * reach + 1, np.inf)
    best[reach] = 0.0
    choices = []
    for site in range(depth):
        totals = np.stack([shifted(best, moves[level]) + cost[site, level] for level in allowed])
        choices.append(allowed[np.argmin(totals, axis=0)])
        best = totals.min(axis=0)
    found = np.zeros(depth, np.int32)
    balance = reach
    for site in reversed(range(depth)):
        found[site] = choices[site][balance]
        balance -= moves[found[site]]
    return found


def shifted(values: np.ndarray, by: int) -> np.ndarray:
    """`values [n]` moved `by` places up, +inf moved in."""
    return np.roll(np.pad(values, abs(by), constant_values=np.inf), by)[abs(by) : len(values) + abs(by)]


def estimated_start(error: ArrayLike, share: ArrayLike, exists: np.ndarray, limit: int = 2) -> np.ndarray:
    """The distribution `[2, L]` of least estimated disturbance, within `limit` levels of the centre.

    Arguments as in `disturbance`, out of a supernet.
    """
    return np.stack([cheapest_levels(cost, limit) for cost in disturbance(error, share, exists)])
