"""The layer Hessian of a site, `Hs = XᵀX + λI` (method §1), as an init / update / finish triple."""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tyr_jax import devices
from tyr_jax.pruning.linalg import HIGHEST

PANELS = 4
"""Column panels of the upper triangle: 10/16 of the multiplications of a full XᵀX. More and narrower
panels multiply less, but more slowly than they save."""

FLOOR = 1e-3
"""Damping of a dead channel in terms of the mean, where damping is by channel."""

DampingScale = Literal["mean", "channel"]


def panel_edges(size: int) -> list[int]:
    """Edges of at most `PANELS` column panels over `size` columns."""
    width = -(-size // PANELS)
    return [*range(0, size, width), size]


def init(size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
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


@jax.jit
def finish(parts: jax.Array) -> jax.Array:
    """The full symmetric XᵀX `[d_in, d_in]` from the upper triangles of the accumulators `[n, d_in, d_in]` of
    n devices; its columns are divided among them."""
    total = devices.place(jnp.sum(parts, axis=0), 1)
    # A choice between the two by index takes XLA a minute to compile for a CPU.
    return devices.place(jnp.triu(total) + jnp.triu(total, 1).T, 1)


def damping_diagonal(gram: jax.Array, damping: jax.Array | float, scale: DampingScale) -> jax.Array:
    """Diagonal of Λ `[d_in]`: `damping` times the mean diagonal of `gram` (`mean`, the paper) or times each
    channel's own diagonal and a thousandth of the mean (`channel`); the mean counts as 1 where the inputs are
    all zero.

    A few channels with massive activations can dominate the mean: then `mean` keeps all others from being
    refitted at all, while `channel` treats every channel alike, whatever its scale.
    """
    diagonal = jnp.diagonal(gram)
    mean = jnp.mean(diagonal)
    mean = jnp.where(mean > 0, mean, 1.0)
    own = jnp.full_like(diagonal, mean) if scale == "mean" else diagonal + FLOOR * mean
    return damping * own


def damp(gram: jax.Array, damping: jax.Array | float, scale: DampingScale) -> jax.Array:
    """`XᵀX + Λ`, with the diagonal Λ of `damping_diagonal`."""
    return gram + jnp.diag(damping_diagonal(gram, damping, scale))
