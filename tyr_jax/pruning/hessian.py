"""The layer Hessian of a site, `Hs = XᵀX + λI` (method §1), as an init / update / finish triple."""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.runtime import devices

BLOCKS = 8
"""Blocks of channels, at most: of them, the upper triangle has 9/16 of the multiplications of a full XᵀX."""

TILE = 128
"""Blocks fill tiles of so many channels of a matrix unit."""

CPU_MARGIN = 16
"""Further channels of a block on CPUs, whose caches keep few rows that lie a power of two of bytes apart."""

FLOOR = 1e-3
"""Damping of a dead channel in terms of the mean, where damping is by channel."""

DampingScale = Literal["mean", "channel"]


def block_edges(size: int) -> list[int]:
    """Edges of the blocks of `size` channels."""
    width = -(-size // (BLOCKS * TILE)) * TILE + (CPU_MARGIN if devices.are_cpus() else 0)
    return [*range(0, size, width), size]


def gram_flops(size: int, tokens: float) -> float:
    """FLOPs of XᵀX of so many channels as `update` multiplies it."""
    edges = itertools.pairwise(block_edges(size))
    return 2 * tokens * sum((last - first) * (size - first) for first, last in edges)


def init(size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """An empty accumulator `[d_in, d_in]`."""
    return jnp.zeros((size, size), dtype)


def update(accumulator: jax.Array, inputs: jax.Array) -> jax.Array:
    """Add XᵀX of `inputs [..., d_in]` to `accumulator [..., d_in, d_in]`; only the upper block triangle of
    the result is meaningful.

    XᵀX is symmetric, so each block of channels is multiplied with itself and those behind it. A block is cut
    out once: what a product takes of a wider one would be copied for each.
    """
    size = accumulator.shape[-1]
    x = inputs.reshape(-1, size).astype(accumulator.dtype)
    edges = list(itertools.pairwise(block_edges(size)))
    blocks = [x[:, first:last] for first, last in edges]
    for i, rows in enumerate(edges):
        for j in range(i, len(edges)):
            product = jnp.matmul(blocks[i].T, blocks[j], precision=HIGHEST)
            accumulator = accumulator.at[..., slice(*rows), slice(*edges[j])].add(product)
    return accumulator


@jax.jit
def finish(parts: jax.Array) -> jax.Array:
    """The full symmetric XᵀX `[d_in, d_in]` from the upper triangles of the accumulators `[n, d_in, d_in]` of
    n devices; its columns are divided among them."""
    total = devices.total(parts, 1)
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
