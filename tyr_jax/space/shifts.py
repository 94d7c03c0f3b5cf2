"""The sparsity shift, and offspring made by several shifts (method §3).

Axis letters: `S` kinds of site, `L` layers, `E` levels, `R` resources of a budget.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.space.budgets import Budget
from tyr_jax.space.repair import allowed, picked

STEPS = 8
"""Maximum number of level steps in a shift: one site becomes denser, then others compensate for it."""


class _Shift(NamedTuple):
    """A shift in progress: the number of steps, levels `[S, L]`, the direction in which each site has moved,
    `[S, L]`, and whether the last step moved any."""

    number: jax.Array
    levels: jax.Array
    moved: jax.Array
    goes_on: jax.Array


def sparsity_shift(key: jax.Array, distribution: jax.Array, exists: jax.Array, budget: Budget) -> jax.Array:
    """Move level steps between sites (method §3).

    A site, drawn from all that can, becomes one level denser. Then others become sparser until the budget is
    met again, and denser where that leaves room. With a budget of units, that is one step from one site of a
    kind to another.

    Args:
        key: PRNG key.
        distribution: levels `[S, L]`.
        exists: which levels exist, `[S, L, E]`; those of a site are contiguous.
        budget: what all sites may cost.

    Returns:
        The shifted levels `[S, L]`; the same distribution if no shift was found that meets the budget.
    """
    levels = exists.shape[-1]
    price, limit = jnp.asarray(budget.price), jnp.asarray(budget.limit)

    def price_at(at: jax.Array) -> jax.Array:
        return picked(price, jnp.clip(at, 0, levels - 1))

    def step(shift: _Shift) -> _Shift:
        number, now = shift.number, price_at(shift.levels)
        room = limit - now.sum(axis=(1, 2))

        def change(by: int) -> tuple[jax.Array, jax.Array]:
            """Whether each site can move `[S, L]`, and how much more it would then cost `[R, S, L]`."""
            target = shift.levels + by
            index = jnp.clip(target, 0, levels - 1)
            can = picked(exists, index) & (target == index) & (shift.moved != -by)
            return can, price_at(target) - now

        (up, dearer), (down, cheaper) = change(+1), change(-1)
        # What other sites can still give up must compensate for it.
        spare = now - jnp.min(jnp.where(exists, price, now[..., None]), axis=-1)
        others = spare.sum(axis=(1, 2), keepdims=True) - spare
        lacking = (room < 0)[:, None, None]
        helps = down & jnp.any(lacking & (cheaper < 0), axis=0)
        fits = up & jnp.all(dearer <= room[:, None, None], axis=0)
        by = jnp.where((number > 0) & jnp.any(room < 0), -1, 1)
        begins = up & jnp.all(dearer <= room[:, None, None] + others, axis=0)
        pool = jnp.where(number == 0, begins, jnp.where(by < 0, helps, fits))
        move = by * drawn_from(jax.random.fold_in(key, number), pool)
        moved = jnp.where(move != 0, move, shift.moved)
        # If one step moves nothing, no later step would.
        return _Shift(number + 1, shift.levels + move, moved, jnp.any(pool))

    start = _Shift(jnp.int32(0), distribution, jnp.zeros_like(distribution), jnp.bool_(True))
    found = jax.lax.while_loop(lambda shift: shift.goes_on & (shift.number < STEPS), step, start).levels
    return jnp.where(allowed(found, budget), found, distribution)


def drawn_from(key: jax.Array, pool: jax.Array) -> jax.Array:
    """A mask `[S, L]` of one site, drawn from those in `pool [S, L]` with equal chances; empty if that is."""
    place = jnp.cumsum(pool.reshape(-1)).reshape(pool.shape)
    drawn = jax.random.randint(key, (), 0, jnp.maximum(pool.sum(), 1))
    return pool & (place == drawn + 1)


def mutate(
    key: jax.Array, parent: jax.Array, exists: jax.Array, budget: Budget, max_shifts: int = 4
) -> jax.Array:
    """An offspring `[S, L]` of `parent [S, L]`, by as many shifts as the smaller of two draws from
    {1…max_shifts}."""
    key_count, key_shifts = jax.random.split(key)
    count = jax.random.randint(key_count, (2,), 1, max_shifts + 1).min()

    def body(step: int, distribution: jax.Array) -> jax.Array:
        return sparsity_shift(jax.random.fold_in(key_shifts, step), distribution, exists, budget)

    return jax.lax.fori_loop(0, count, body, parent)
