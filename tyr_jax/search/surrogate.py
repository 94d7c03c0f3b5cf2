"""Additive estimates of what a distribution costs, solved exactly under the budget: where evolution starts.

There are two. Each is a cost `[S, L, E]` for every level of every site, summed over sites.

- `disturbance` needs no candidate to be scored. A site disturbs the model by its relative layer
  error times how much its output counts, `Sites.share`. The supernet's fold gives both.
- `expected_change` looks around a distribution, by one forward and one backward pass: the slope of the
  objective towards every level, and a curvature. The weights of nested levels are projections of one
  another, so a site's own layer error ε is exactly quadratic on the way from its level to another. It
  falls from ε with slope -2Δε towards a denser level, and rises from slope 0 towards a sparser one, where
  Δε is the difference of the two errors. So the slope towards the next denser level tells how much the
  objective rises with the site's error: its sensitivity is s = -slope / 2Δε, and every level costs
  slope + s·Δε.

Some sites are harmless on most text and ruinous on some, such as those that make attention sinks. A few
thousand tokens may not show it, and the slopes of these sites also vary most. So a sensitivity is shrunk
towards what the disturbance predicts; the less the parts of the text agree on it, the more. A sensitivity
that says that fewer units are better is not trusted.

Neither estimate knows how changes of several sites interact, so moves are limited, those of a descent to
one level by default, and proposals are scored before they are accepted.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `P` parts of a text, `Q` proposals.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from tyr_jax.search.contract import SearchSpace, Sites
from tyr_jax.space import Budget, Candidates, Levels, values_at

CAUTIONS = (0.8, 1.25)
"""Factors on the curvature, one for each proposal of a descent. How far the sum over sites can be trusted
differs from step to step, and scoring the proposals tells."""

BINS = 2**17
"""Maximum number of bins that a parameter budget is divided into when it is dealt to sites."""

LEAST_MULTIPLIER = 1e-9
"""Least multiplier of a resource that is tried, relative to the largest."""

PRICE_STEPS = 32
"""Halvings of the logarithm of a resource's multiplier."""

LEAST_RATIO = 0.05
"""Lower bound of the ratio between a site's measured and its expected sensitivity."""


def disturbance(sites: Sites) -> np.ndarray:
    """Estimated cost `[S, L, E]` of every level: relative error × share; +inf where it does not exist."""
    return np.where(sites.exists, sites.error * sites.share[..., None], np.inf)


def sensitivity(slopes: ArrayLike, sites: Sites, levels: Levels) -> np.ndarray:
    """How much the objective rises with the relative layer error of each site `[S, L]`, at `levels [S, L]`,
    from `slopes [P, S, L, E]` of the objective on parts of a text.

    A kind's sensitivities are expected to be its shares times one factor. The logarithm of the ratio between
    measured and expected sensitivity is shrunk towards zero like a normal mean, given how it varies from part
    to part and from site to site. If there is no denser level, or none with a smaller error, the expected
    sensitivity is used.
    """
    slopes = np.asarray(slopes, float)
    denser = np.minimum(levels + 1, slopes.shape[-1] - 1)
    gain = values_at(sites.error, levels) - values_at(sites.error, denser)
    known = (denser > levels) & values_at(sites.exists, denser) & (gain > 0) & (sites.share > 0)
    of_parts = np.where(known, np.maximum(-values_at(slopes, denser), 0) / np.where(known, 2 * gain, 1), 0)
    return np.stack(
        [_shrunk(*kind) for kind in zip(of_parts.swapaxes(0, 1), sites.share, known, strict=True)]
    )


def _shrunk(of_parts: np.ndarray, share: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`sensitivity [L]` of one kind of site, from `of_parts [P, L]` on parts of a text, where `known`."""
    measured = of_parts.mean(axis=0)
    factor = np.median(measured[known] / share[known]) if known.any() else 0.0
    if factor == 0:
        return measured
    expected = factor * share

    def log_ratio(values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(values / np.where(share > 0, expected, 1), LEAST_RATIO))

    ratio = log_ratio(measured)
    spread = np.median(np.abs(ratio[known] - np.median(ratio[known]))) * 1.4826
    noise = log_ratio(of_parts).var(axis=0) / max(1, len(of_parts) - 1)
    weight = np.where(known & (noise > 0), spread**2 / (spread**2 + np.where(noise > 0, noise, 1)), known)
    return expected * np.exp(weight * ratio)


def expected_change(slopes: ArrayLike, sites: Sites, levels: Levels, caution: float = 1.0) -> np.ndarray:
    """Expected change of the objective `[S, L, E]` if one site moves from its level in `levels [S, L]` to
    another; +inf where that does not exist.

    `slopes [P, S, L, E]` are those of the objective towards every level, on parts of a text. `caution`
    multiplies the curvature: the larger it is, the fewer and smaller moves seem worth it.
    """
    slope = np.asarray(slopes, float).mean(axis=0)
    sparser = np.arange(slope.shape[-1]) < levels[..., None]
    slope = np.where(sparser, np.maximum(slope, 0), slope)
    distance = np.abs(sites.error - values_at(sites.error, levels)[..., None])
    curvature = sensitivity(slopes, sites, levels)[..., None] * distance
    return np.where(sites.exists, slope + caution * curvature, np.inf)


def cheapest_levels(
    cost: np.ndarray, price: np.ndarray, limit: int, exact: bool = False
) -> np.ndarray | None:
    """Levels `[S]` of S sites of least total `cost [S, E]` whose total `price [S, E]`, in integers, is at
    most `limit`, or equal to it if `exact`; None if there are none. A cost of +inf forbids a level.

    Solved exactly, by dynamic programming over sites and the amount spent, with one exception. Unless
    `exact`, if the amount to deal is more than `BINS` times the greatest common divisor of the prices, prices
    are rounded up to a `BINS`-th of that amount.
    """
    allowed = np.isfinite(cost)
    least = np.where(allowed, price, np.iinfo(price.dtype).max).min(axis=1)
    extra, room = np.where(allowed, price - least[:, None], 0).astype(np.int64), limit - int(least.sum())
    if room < 0:
        return None
    divisor = int(np.gcd.reduce(extra, axis=None)) or 1
    if exact and room % divisor:
        return None
    quantum = divisor if exact else max(divisor, -(-room // BINS))
    weight = -(-extra // quantum)
    reach = min(room // quantum, int(weight.max(axis=1).sum()))
    best = np.full(reach + 1, np.inf)
    best[0] = 0.0
    choices = []
    for site, levels in enumerate(map(np.flatnonzero, allowed)):
        totals = np.stack([shifted(best, weight[site, level]) + cost[site, level] for level in levels])
        choices.append(levels.astype(np.int16)[np.argmin(totals, axis=0)])
        best = totals.min(axis=0)
    spent = room // quantum if exact else int(np.argmin(best))
    if spent > reach or not np.isfinite(best[spent]):
        return None
    found = np.zeros(len(cost), np.int32)
    for site in reversed(range(len(cost))):
        found[site] = choices[site][spent]
        spent -= weight[site, found[site]]
    return found


def shifted(values: np.ndarray, by: int) -> np.ndarray:
    """`values [n]` shifted up by `by` places, and filled with +inf."""
    return np.concatenate([np.full(min(by, len(values)), np.inf), values[: max(0, len(values) - by)]])


def cheapest(cost: np.ndarray, budget: Budget, around: Levels, reach: int) -> Levels | None:
    """The distribution `[S, L]` of least total `cost [S, L, E]` that meets the budget, with every site at
    most `reach` levels from its level in `around [S, L]`; None if there is none."""
    near = np.abs(np.arange(cost.shape[-1]) - around[..., None]) <= reach
    cost, found = np.where(near, cost, np.inf), np.array(around, np.int32)
    if not budget.exact and len(budget.limit) > 1:
        return cheapest_of_several(cost, budget)
    # A resource is dealt only to sites that cost some of it.
    for price, most in zip(budget.price, budget.limit, strict=True):
        sites = price.any(axis=-1)
        levels = cheapest_levels(cost[sites], price[sites], int(most), bool(budget.exact))
        if levels is None:
            return None
        found[sites] = levels
    return found


def cheapest_of_several(cost: np.ndarray, budget: Budget) -> Levels | None:
    """Levels `[S, L]` of little total `cost [S, L, E]` that meet a budget of several resources, which sites
    share; None if none are found.

    The first resource is dealt exactly. Every other one has a price, which is raised, one resource after the
    other, until the cheapest levels keep it; of these the cheapest are returned.
    """
    flat = cost.reshape(-1, cost.shape[-1])
    prices = np.asarray(budget.price).reshape(len(budget.limit), *flat.shape)
    multipliers, found = np.zeros(len(budget.limit)), []

    def solve(resource: int, multiplier: float) -> bool:
        """Whether the cheapest levels keep the limit of a resource, whose multiplier is set."""
        multipliers[resource] = multiplier
        priced = flat + np.einsum("r,rse->se", multipliers, prices)
        levels = cheapest_levels(priced, prices[0], int(budget.limit[0]))
        if levels is None:
            return False
        levels = levels.reshape(cost.shape[:2])
        if budget.allows(levels):
            found.append(levels)
        return bool(budget.spent(levels)[resource] <= budget.limit[resource])

    # Prices are integers, so a multiplier above the number of sites times the range of the costs changes no
    # choice.
    most = len(flat) * float(np.ptp(cost[np.isfinite(cost)])) + 1e-9
    for resource in range(1, len(multipliers)):
        if solve(resource, 0.0):
            continue
        low, high = most * LEAST_MULTIPLIER, most
        for _ in range(PRICE_STEPS):
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if solve(resource, middle) else (middle, high)
        solve(resource, high)
    totals = [float(values_at(cost, levels).sum()) for levels in found]
    return found[int(np.argmin(totals))] if found else None


def nearest(budget: Budget, exists: np.ndarray, around: Levels) -> Levels | None:
    """The distribution `[S, L]` that meets the budget by the fewest level steps from `around [S, L]`, among
    the levels that exist, `exists [S, L, E]`; None if there is none."""
    away = np.abs(np.arange(exists.shape[-1]) - around[..., None])
    return cheapest(np.where(exists, away, np.inf), budget, around, exists.shape[-1])


def estimated_start(sites: Sites, budget: Budget, around: Levels, reach: int = 2) -> Levels | None:
    """The distribution `[S, L]` of least `disturbance` that meets the budget, within `reach` levels of
    `around [S, L]`; None if there is none."""
    return cheapest(disturbance(sites), budget, around, reach)


EXCHANGES = (1.0, 0.5, 0.0)
"""Parts of the estimated exchange between kinds of site that `starts` makes."""


def starts(sites: Sites, budget: Budget, around: Levels, reach: int = 2) -> Candidates:
    """Distributions `[Q, S, L]` to start a search from: `estimated_start`, but with a part of what it
    exchanges between kinds of site, one for each of `EXCHANGES`; `around [S, L]` where there is none.

    An estimate of single sites does not know how their errors add up. Where it takes too much from
    attention, the starts that exchange less, or nothing, are the better ones.
    """
    free = estimated_start(sites, budget, around, reach)
    if free is None:
        return np.repeat(around[None], len(EXCHANGES), axis=0)
    return np.stack([exchanged(sites, budget, around, free, part, reach) for part in EXCHANGES])


def exchanged(sites: Sites, budget: Budget, around: Levels, free: Levels, part: float, reach: int) -> Levels:
    """The distribution `[S, L]` of least `disturbance` in which each kind of site takes as much of every
    resource as `around [S, L]` does, and a `part` of what `free [S, L]` takes beyond that."""
    if part == 1:
        return free
    cost, rows = disturbance(sites), []
    for row in range(len(cost)):
        here = np.s_[row : row + 1]
        price = budget.price[:, here]
        own = Budget(price, np.zeros(len(price), np.int64), budget.exact)
        before, after = own.spent(around[here]), own.spent(free[here])
        own = own._replace(limit=np.floor(before + part * (after - before)).astype(np.int64))
        found = cheapest(cost[here], own, around[here], reach)
        rows.append(around[here] if found is None else found)
    return np.concatenate(rows).astype(np.int32)


def estimated(space: SearchSpace, around: jax.Array) -> jax.Array:
    """`starts [Q, S, L]` in a JAX function."""
    return on_host(starts, (len(EXCHANGES), *around.shape), space.sites, space.budget, around)


def on_host(function: Callable[..., np.ndarray], shape: tuple[int, ...], *arguments: Any) -> jax.Array:
    """Integers of this shape that `function` computes in numpy on the host, called from a JAX function."""

    def computed(*arguments: Any) -> np.ndarray:
        return function(*jax.tree.map(np.asarray, arguments)).astype(np.int32)

    if not any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(arguments)):
        # With several processes, the result of a callback lies where programs on one device cannot take it.
        return jnp.asarray(computed(*arguments))
    result = jax.ShapeDtypeStruct(shape, jnp.int32)
    found: jax.Array = jax.pure_callback(computed, result, *arguments, vmap_method="sequential")
    return found


def widened(
    kept: np.ndarray, levels: Levels, sites: Sites, units: np.ndarray, count: int, multiple: int
) -> np.ndarray:
    """Add `count` times `multiple` units to `kept [L]`, those of one kind of site, or as many as fit up to
    the next levels: units `[L]`. Sites grow to at most their next level, in the order of `disturbance` saved
    per unit.

    Levels keep `units [L, E]`; the sites are at `levels [L]`, and `sites` has the parts of this kind.
    """
    cost = disturbance(sites)
    denser = np.minimum(levels + 1, cost.shape[-1] - 1)
    room = np.where(values_at(sites.exists, denser), values_at(units, denser) - kept, 0)
    worth = values_at(cost, levels) - np.where(room > 0, values_at(cost, denser), np.inf)
    result = kept.copy()
    for site in np.argsort(-worth / np.maximum(room, 1), kind="stable"):
        more = min(count, int(room[site]) // multiple)
        result[site] += more * multiple
        count -= more
    return result


def proposals(slopes: ArrayLike, sites: Sites, budget: Budget, levels: Levels, reach: int = 1) -> Candidates:
    """For each of `CAUTIONS`, the distribution of least `expected_change` that meets the budget within
    `reach` levels of `levels [S, L]`, or `levels` if there is none: `[Q, S, L]`. `slopes [P, S, L, E]`."""
    costs = (expected_change(slopes, sites, levels, caution) for caution in CAUTIONS)
    found = (cheapest(cost, budget, levels, reach) for cost in costs)
    return np.stack([levels if each is None else each for each in found])
