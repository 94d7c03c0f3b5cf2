"""The layer Hessian of a site, `Hs = XᵀX + λI` (method §1), as an init / update / finish triple."""

import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tyr_jax.pruning import linalg
from tyr_jax.runtime import devices

BLOCKS = 8
"""Largest number of blocks of channels. With 8, the upper block triangle takes 9/16 of the multiplications of
a full XᵀX."""

TILE = 128
"""Channels of a tile of a matrix unit: the width of a block is a multiple of this."""

CPU_MARGIN = 16
"""Extra channels of a block on CPUs, whose caches hold few rows that lie a power of two bytes apart."""

FLOOR = 1e-3
"""Damping of a dead channel, as a fraction of the damping by the mean, where damping is per channel."""

DampingScale = Literal["mean", "channel"]


def block_edges(size: int) -> list[int]:
    """Edges of the blocks of `size` channels."""
    width = -(-size // (BLOCKS * TILE)) * TILE + (CPU_MARGIN if devices.are_cpus() else 0)
    return [*range(0, size, width), size]


def gram_flops(size: int, tokens: float) -> float:
    """FLOPs of XᵀX of `size` channels over `tokens` tokens, as `update` computes it."""
    edges = itertools.pairwise(block_edges(size))
    return 2 * tokens * sum((last - first) * (size - first) for first, last in edges)


def init(size: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """An empty accumulator `[d_in, d_in]`."""
    return jnp.zeros((size, size), dtype)


def update(accumulator: jax.Array, inputs: jax.Array) -> jax.Array:
    """Add XᵀX of `inputs [..., d_in]` to `accumulator [..., d_in, d_in]`. Only the upper block triangle of
    the result is meaningful.

    XᵀX is symmetric, so each block of channels is multiplied only with itself and the blocks after it. Each
    block is sliced once: a slice of a wider array would be copied for every product that uses it.
    """
    size = accumulator.shape[-1]
    x = inputs.reshape(-1, size)
    edges = list(itertools.pairwise(block_edges(size)))
    blocks = [x[:, first:last] for first, last in edges]
    for i, rows in enumerate(edges):
        for j in range(i, len(edges)):
            product = linalg.wide_matmul(blocks[i].T, blocks[j], accumulator.dtype)
            accumulator = accumulator.at[..., slice(*rows), slice(*edges[j])].add(product)
    return accumulator


def update_experts(accumulator: jax.Array, inputs: jax.Array) -> jax.Array:
    """`update` for the inputs `[..., X, F]` of every expert by itself, in `accumulator [n, X, F, F]`."""
    return jax.vmap(update, in_axes=(1, -2), out_axes=1)(accumulator, inputs)


@jax.jit
def finish(parts: jax.Array) -> jax.Array:
    """The full symmetric XᵀX `[..., d_in, d_in]` from the upper block triangles of the accumulators
    `[n, ..., d_in, d_in]` of n devices. Its columns are divided among the devices."""
    columns = parts.ndim - 2
    total = devices.total(parts, columns)
    # Selecting one of the two triangles by index takes XLA a minute to compile for a CPU.
    return devices.place(jnp.triu(total) + jnp.triu(total, 1).mT, columns)


def damping_diagonal(gram: jax.Array, damping: jax.Array | float, scale: DampingScale) -> jax.Array:
    """The diagonal `[d_in]` of Λ.

    With scale `mean` (as in the paper), this is `damping` times the mean diagonal of `gram`. With `channel`,
    it is `damping` times the sum of each channel's own diagonal entry and a thousandth of the mean. The mean
    counts as 1 where the inputs are all zero.

    A few channels with massive activations can dominate the mean. Then `mean` keeps all others from being
    refitted at all, while `channel` treats every channel alike, whatever its scale.
    """
    diagonal = jnp.diagonal(gram)
    mean = jnp.mean(diagonal)
    mean = jnp.where(mean > 0, mean, 1.0)
    own = jnp.full_like(diagonal, mean) if scale == "mean" else diagonal + FLOOR * mean
    return damping * own


def damp(gram: jax.Array, damping: jax.Array | float, scale: DampingScale) -> jax.Array:
    """`XᵀX + Λ` `[d_in, d_in]`, with the diagonal Λ of `damping_diagonal`."""
    return gram + jnp.diag(damping_diagonal(gram, damping, scale))
