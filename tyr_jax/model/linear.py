"""Products with weights, including weights with a low-rank change (LoRA, Hu et al. 2021).

Axis letters: `I` inputs, `R` rank.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Adapted(NamedTuple):
    """A frozen `weight [*inputs, *outputs]` and a change of it, `down [I, R]` times `up [R, *outputs]`. That
    product is never formed."""

    weight: jax.Array
    down: jax.Array
    up: jax.Array


Weight = jax.Array | Adapted


def linear(x: jax.Array, weight: Weight) -> jax.Array:
    """`x [..., I]` times a weight `[*inputs, *outputs]`, whose inputs have `I` entries in all:
    `[..., *outputs]`."""
    if isinstance(weight, Adapted):
        change = linear(linear(x, weight.down), weight.up)
        return linear(x, by_inputs(weight.weight, x.shape[-1])) + change
    matrix = by_inputs(weight, x.shape[-1])
    # As matrices: XLA's CPU backend would copy and transpose the operands of a gradient summed over two axes.
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix.reshape(len(matrix), -1))
    return flat.reshape(*x.shape[:-1], *matrix.shape[1:])


def by_inputs(weight: jax.Array, inputs: int) -> jax.Array:
    """A weight `[*inputs, *outputs]` as `[I, *outputs]`: its first axes are merged into one of size
    `inputs`."""
    count = next(n for n in range(1, weight.ndim + 1) if math.prod(weight.shape[:n]) == inputs)
    return weight.reshape(inputs, *weight.shape[count:])
