"""The machine's matmul rate."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from tyr_jax.model.linear import linear
from tyr_jax.runtime.timing import medians


def matmul_rate(size: int = 1536, rows: int = 4096, dtype: DTypeLike = jnp.float32) -> float:
    """FLOP/s of a matrix product in `dtype`, summed in float32, from the median of ten."""
    a, b = jnp.ones((rows, size), dtype), jnp.ones((size, size), dtype)
    product = jax.jit(linear)
    return 2 * rows * size * size / medians({"": lambda: product(a, b)}, 10)[""]
