"""Additive estimates of what a distribution costs, solved exactly under the budget: where evolution starts.

Two of them, each a cost `[2, L, E]` for every level of every site, that sum over sites.

- `disturbance` costs no candidate: a site disturbs the residual stream by its relative layer error times
  the share that its output has of the stream (per token, so that the few tokens with massive activations
  do not drown the rest). Both come out of the supernet's fold.
- `expected_change` looks around a distribution, from one forward and one backward pass: the slope of the
  objective towards every level, and a curvature. The weights of nested levels are projections of one
  another, so a site's own layer error is exactly quadratic on the way from its level to another: it falls
  from E with slope -2ΔE towards a denser level and rises from slope 0 towards a sparser one, where ΔE is
  the difference of the two errors. The slope towards the next denser level thus tells how much the
  objective rises with the site's error, s = -slope / 2ΔE, and every level costs slope + s·ΔE.

Neither knows how changes of several sites meet, so moves are limited to a few levels, where the sum can be
trusted, and what it proposes is scored before it is believed.

Axis letters: `L` layers, `E` levels, `P` proposals.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from tyr_jax.search.evolve import Scorer

Slopes = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(levels [2, L], sequences [s]) -> slopes [2, L, E]` of the objective towards every level."""


CAUTIONS = (1.0, 3.0, 9.0)
"""Factors on the curvature with which a descent proposes: how far the sum over sites can be trusted differs
from step to step, and scoring a proposal tells."""


def disturbance(error: ArrayLike, share: ArrayLike, exists: np.ndarray) -> np.ndarray:
    """Estimated cost `[2, L, E]` of every level: relative `error [2, L, E]` × `share [2, L]`; +inf where
    a level does not exist `[2, L, E]`."""
    return np.where(exists, np.asarray(error) * np.asarray(share)[..., None], np.inf)


def expected_change(
    slopes: ArrayLike, error: ArrayLike, levels: np.ndarray, exists: np.ndarray, caution: float = 1.0
) -> np.ndarray:
    """Expected change of the objective `[2, L, E]` if one site leaves its level in `levels [2, L]` for
    another; +inf where that does not exist `[2, L, E]`.

    `slopes [2, L, E]` of the objective towards every level, relative layer `error [2, L, E]`. `caution`
    multiplies the curvature, so that fewer and smaller moves seem worth it.
    """
    slopes, error = np.asarray(slopes, float), np.asarray(error, float)

    def at(values: np.ndarray, level: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, level[..., None], axis=-1)[..., 0]

    distance = np.abs(error - at(error, levels)[..., None])
    denser = np.minimum(levels + 1, exists.shape[-1] - 1)
    known = (denser > levels) & at(exists, denser) & (at(distance, denser) > 0)
    fall = np.maximum(-at(slopes, denser), 0.0)
    sensitivity = np.where(known, fall / np.where(known, 2 * at(distance, denser), 1.0), 0.0)
    return np.where(exists, slopes + caution * sensitivity[..., None] * distance, np.inf)


def cheapest_levels(cost: np.ndarray, start: np.ndarray, limit: int) -> np.ndarray:
    """Levels `[L]` of least total `cost [L, E]` that keep, together, as many units as `start [L]` does.

    All sites of a kind share one step, so the budget is that moves away from `start` sum to zero; sites
    move at most `limit` levels. Solved exactly by dynamic programming over sites and the sum of moves.
    """
    depth, levels = cost.shape
    reach = depth * limit
    best = np.full(2 * reach + 1, np.inf)
    best[reach] = 0.0
    choices = []
    for site in range(depth):
        allowed = np.arange(max(0, start[site] - limit), min(levels, start[site] + limit + 1))
        totals = np.stack([shifted(best, level - start[site]) + cost[site, level] for level in allowed])
        choices.append(allowed[np.argmin(totals, axis=0)])
        best = totals.min(axis=0)
    found = np.zeros(depth, np.int32)
    balance = reach
    for site in reversed(range(depth)):
        found[site] = choices[site][balance]
        balance -= found[site] - start[site]
    return found


def shifted(values: np.ndarray, by: int) -> np.ndarray:
    """`values [n]` moved `by` places up, +inf moved in."""
    return np.roll(np.pad(values, abs(by), constant_values=np.inf), by)[abs(by) : len(values) + abs(by)]


def cheapest(cost: np.ndarray, start: np.ndarray, limit: int) -> np.ndarray:
    """The distribution `[2, L]` of least total `cost [2, L, E]` with the budgets of `start [2, L]`, at most
    `limit` levels from it."""
    return np.stack([cheapest_levels(*kind, limit) for kind in zip(cost, start, strict=True)])


def estimated_start(error: ArrayLike, share: ArrayLike, exists: np.ndarray, limit: int = 2) -> np.ndarray:
    """The distribution `[2, L]` of least `disturbance`, within `limit` levels of the centre.

    Arguments as in `disturbance`, out of a supernet.
    """
    cost = disturbance(error, share, exists)
    return cheapest(cost, np.full(cost.shape[:2], cost.shape[-1] // 2), limit)


def proposals(
    slopes: ArrayLike, error: ArrayLike, levels: np.ndarray, exists: np.ndarray, limit: int = 2
) -> np.ndarray:
    """Distributions `[P, 2, L]` of least `expected_change` within `limit` levels of `levels [2, L]`, one for
    each of `CAUTIONS`; arguments as in `expected_change`."""
    costs = (expected_change(slopes, error, levels, exists, caution) for caution in CAUTIONS)
    return np.stack([cheapest(cost, levels, limit) for cost in costs])


def descend(
    levels: np.ndarray,
    error: ArrayLike,
    exists: np.ndarray,
    slopes: Slopes,
    score: Scorer,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, list[list[float]]]:
    """Improve `levels [2, L]` by one step for each of `batches`.

    A batch is (sequences the slopes are taken on, other sequences on which the proposals are scored beside
    what they came from). The best of them goes on, so a step that does not help is not taken, nor is one
    whose slopes are not finite.

    Returns the last levels, and the objectives of each step: what it came from, then its proposals.
    """
    history = []
    for sloped, scored in batches:
        slope = slopes(levels, sloped)
        if not np.isfinite(slope).all():
            continue
        candidates = np.stack([levels, *proposals(slope, error, levels, exists)])
        fitness = score(candidates, scored)
        levels = candidates[int(np.argmin(np.where(np.isfinite(fitness), fitness, np.inf)))]
        history.append([float(value) for value in fitness])
    return levels, history
