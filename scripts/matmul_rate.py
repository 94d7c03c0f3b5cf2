"""The machine's matmul rate."""

import jax
import jax.numpy as jnp

from tyr_jax.runtime.timing import medians


def matmul_rate(size: int = 1536, rows: int = 4096) -> float:
    """FLOP/s of a float32 matrix product, from the median of ten."""
    a, b = jnp.ones((rows, size)), jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return 2 * rows * size * size / medians({"": lambda: product(a, b)}, 10)[""]
