"""The layer Hessian of a site, `Hs = XᵀX + λI` (method §1), as an init / update / finish triple."""

import itertools

import jax
import jax.numpy as jnp

PANELS = 4
"""Column panels of the upper triangle: 10/16 of the multiplications of a full XᵀX. More and narrower
panels multiply less, but more slowly than they save."""

HIGHEST = jax.lax.Precision.HIGHEST


def panel_edges(size: int) -> list[int]:
    """Edges of at most `PANELS` column panels over `size` columns."""
    width = -(-size // PANELS)
    return [*range(0, size, width), size]


def init(size: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """An empty accumulator `[d_in, d_in]`."""
    return jnp.zeros((size, size), dtype)


def update(accumulator: jax.Array, inputs: jax.Array) -> jax.Array:
    """Add XᵀX of `inputs [..., d_in]`; only the upper block triangle of the result is meaningful.

    XᵀX is symmetric, so each panel of rows is multiplied with the columns from its own onwards.
    """
    size = accumulator.shape[0]
    x = inputs.reshape(-1, size).astype(accumulator.dtype)
    edges = panel_edges(size)
    for first, last in itertools.pairwise(edges):
        product = jnp.matmul(x[:, first:last].T, x[:, first:], precision=HIGHEST)
        accumulator = accumulator.at[first:last, first:].add(product)
    return accumulator


def finish(accumulator: jax.Array) -> jax.Array:
    """The full symmetric XᵀX `[d_in, d_in]` from an accumulator's upper triangle."""
    upper = jnp.triu(accumulator)
    return upper + jnp.triu(accumulator, 1).T


def damp(gram: jax.Array, damping: jax.Array | float) -> jax.Array:
    """`XᵀX + λI` with λ = `damping` times the mean diagonal (λ = `damping` where the inputs are all zero)."""
    mean = jnp.mean(jnp.diagonal(gram))
    return gram + damping * jnp.where(mean > 0, mean, 1.0) * jnp.eye(gram.shape[0], dtype=gram.dtype)
