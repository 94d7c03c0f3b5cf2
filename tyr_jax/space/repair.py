"""Levels moved back onto a budget, and dealt out by a Lagrange multiplier.

Algorithms that build a candidate site by site, by sampling, crossing or rounding, usually miss the budget.
One repair serves them all: which sites move depends on the cost that the algorithm gives to each level.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `R` resources of a budget.
"""

import jax
import jax.numpy as jnp

from tyr_jax.space.budgets import Budget

LARGE = 1e30
"""Larger than any cost."""

BISECTIONS = 40
"""Halvings of the interval of a Lagrange multiplier: float32 has fewer significant bits."""


def picked(values: jax.Array, levels: jax.Array) -> jax.Array:
    """`values [..., S, L, E]` at `levels [S, L]`: `[..., S, L]`."""
    index = jnp.broadcast_to(levels[..., None], (*values.shape[:-1], 1))
    return jnp.take_along_axis(values, index, axis=-1)[..., 0]


def allowed(levels: jax.Array, budget: Budget) -> jax.Array:
    """Whether `levels [S, L]` meet the budget; as `Budget.allows`, traceable."""
    spent = picked(jnp.asarray(budget.price), levels).sum(axis=(-1, -2))
    limit = jnp.asarray(budget.limit)
    return jnp.where(budget.exact, jnp.all(spent == limit), jnp.all(spent <= limit))


def repaired(
    cost: jax.Array, levels: jax.Array, exists: jax.Array, budget: Budget, fallback: jax.Array
) -> jax.Array:
    """Levels that meet the budget, near `levels [S, L]`, of little total `cost [S, L, E]`.

    While a limit is exceeded, the site whose cost rises least for what it saves becomes one level sparser.
    Then, while there is room, the site that gains most for what it takes becomes one level denser; unless the
    budget is `exact`, only sites that gain something do.

    Args:
        cost: cost of every level that exists.
        levels: levels to begin with.
        exists: which levels exist, `[S, L, E]`; those of a site are contiguous.
        budget: what all sites may cost.
        fallback: levels `[S, L]` that meet the budget, returned if the moves do not reach it.
    """
    price, limit = jnp.asarray(budget.price), jnp.asarray(budget.limit)
    count = exists.shape[-1]
    first, last = jnp.argmax(exists, axis=-1), count - 1 - jnp.argmax(exists[..., ::-1], axis=-1)

    def moved(levels: jax.Array, by: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Which sites can move `[S, L]`, how their cost rises `[S, L]` and how much more they then
        take `[R, S, L]`."""
        target = jnp.clip(levels + by, first, last)
        rise = picked(cost, target) - picked(cost, levels)
        return target != levels, rise, picked(price, target) - picked(price, levels)

    def room(levels: jax.Array) -> jax.Array:
        return limit - picked(price, levels).sum(axis=(-1, -2))

    def sparser(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        can, rise, taken = moved(levels, -1)
        over = jnp.maximum(-room(levels), 0)[:, None, None]
        saved = jnp.sum(jnp.minimum(-taken, over) / jnp.maximum(over, 1), axis=0)
        return can & (saved > 0), jnp.where(rise > 0, rise / jnp.maximum(saved, 1e-9), rise * saved)

    def denser(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        can, rise, taken = moved(levels, 1)
        fits = can & jnp.all(taken <= room(levels)[:, None, None], axis=0)
        share = jnp.max(taken / jnp.maximum(limit, 1)[:, None, None], axis=0)
        wanted = budget.exact | (rise < 0)
        return fits & wanted, jnp.where(rise < 0, rise / jnp.maximum(share, 1e-9), rise * share)

    def stepped(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        over = jnp.any(room(levels) < 0)
        down, up = sparser(levels), denser(levels)
        can, rank = (jnp.where(over, *both) for both in zip(down, up, strict=True))
        # NaN ranks last among the sites that can move.
        known = jnp.clip(jnp.nan_to_num(rank, nan=LARGE), -LARGE, LARGE)
        site = jnp.argmin(jnp.where(can, known, jnp.inf))
        chosen = (jnp.arange(can.size) == site).reshape(can.shape) & jnp.any(can)
        return levels + jnp.where(over, -1, 1) * chosen, jnp.any(can)

    start = jnp.clip(levels, first, last), jnp.bool_(True)
    found, _ = jax.lax.while_loop(lambda carry: carry[1], lambda carry: stepped(carry[0]), start)
    return jnp.where(allowed(found, budget), found, fallback)


def relaxed(cost: jax.Array, exists: jax.Array, budget: Budget, fallback: jax.Array) -> jax.Array:
    """Levels `[S, L]` of least `cost [S, L, E]` plus price times multiplier, with the smallest multipliers at
    which the budget is met; then `repaired`, whose `exists` and `fallback` these are.

    The multiplier of each resource is found by bisection. With several resources that share sites, all are
    raised together.
    """
    price, limit = jnp.asarray(budget.price, jnp.float32), jnp.asarray(budget.limit)
    known, barred = jnp.where(exists, cost, 0.0), jnp.where(exists, cost, jnp.inf)
    # Prices are integers, so a multiplier above the range of the costs changes no choice.
    most = jnp.full(len(price), jnp.ptp(known) + 1e-6)

    def chosen(multiplier: jax.Array) -> jax.Array:
        return jnp.argmin(barred + jnp.einsum("r,rkle->kle", multiplier, price), axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        spent = picked(jnp.asarray(budget.price), chosen(middle)).sum(axis=(-1, -2))
        over = spent > limit
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    least = jnp.where(budget.exact, -most, 0.0)
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (least, most))
    return repaired(known, chosen(high), exists, budget, fallback)
