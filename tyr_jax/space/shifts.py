"""The sparsity shift, and offspring made by several (method §3).

Axis letters: `L` layers, `E` levels.
"""

import jax
import jax.numpy as jnp


def sparsity_shift(key: jax.Array, distribution: jax.Array, exists: jax.Array) -> jax.Array:
    """Move one level step between two sites of one kind (method §3).

    Args:
        key: PRNG key.
        distribution: levels `[2, L]`.
        exists: levels that exist `[2, L, E]`.

    Returns:
        The shifted levels `[2, L]`: a site drawn among all that can become denser, and a site of the same
        kind that can become sparser. Kinds in which no such pair exists are never drawn; if there is none
        at all the distribution comes back unchanged.
    """
    depth, levels = exists.shape[1:]

    def can_move(by: int) -> jax.Array:
        target = distribution + by
        present = jnp.take_along_axis(exists, jnp.clip(target, 0, levels - 1)[..., None], axis=-1)[..., 0]
        return present & (target >= 0) & (target < levels)

    up, down = can_move(+1), can_move(-1)
    # A denser site needs a partner other than itself that can become sparser.
    partners = down.sum(axis=1, keepdims=True) - down > 0
    up = up & partners
    key_up, key_down = jax.random.split(key)
    gains = jax.random.categorical(key_up, jnp.where(up, 0.0, -jnp.inf).reshape(-1))
    kind, site = gains // depth, gains % depth
    partner_mask = down[kind] & (jnp.arange(depth) != site)
    loses = jax.random.categorical(key_down, jnp.where(partner_mask, 0.0, -jnp.inf))
    shifted = distribution.at[kind, site].add(1).at[kind, loses].add(-1)
    return jnp.where(jnp.any(up), shifted, distribution)


def mutate(key: jax.Array, parent: jax.Array, exists: jax.Array, max_shifts: int = 4) -> jax.Array:
    """An offspring `[2, L]` of `parent [2, L]`: the minimum of two draws from {1…max_shifts} shifts."""
    key_count, key_shifts = jax.random.split(key)
    count = jax.random.randint(key_count, (2,), 1, max_shifts + 1).min()

    def body(step: int, distribution: jax.Array) -> jax.Array:
        return sparsity_shift(jax.random.fold_in(key_shifts, step), distribution, exists)

    return jax.lax.fori_loop(0, count, body, parent)
