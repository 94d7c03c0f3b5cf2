"""Products with weights, including weights with a low-rank change (LoRA, Hu et al. 2021).

A product multiplies in the type of its operands and sums in float32, in the backward pass too. Matrix units
do both at once. XLA's CPU backend uses them for bfloat16 only if it is asked for a float32 result.

Axis letters: `I` inputs, `O` outputs, `R` rank, `n` rows.
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
    flat = product(x.reshape(-1, x.shape[-1]), matrix.reshape(len(matrix), -1))
    return flat.reshape(*x.shape[:-1], *matrix.shape[1:])


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x [n, I]` times `matrix [I, O]`, in their type."""
    return _summed(x, matrix, (1, 0)).astype(jnp.result_type(x, matrix))


def _forward(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, matrix), (x, matrix)


def _backward(operands: tuple[jax.Array, jax.Array], change: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Left to itself, JAX would multiply a float32 gradient with the operands.
    x, matrix = operands
    of_matrix = _summed(change, x, (0, 0)).T
    return _summed(change, matrix, (1, 1)).astype(x.dtype), of_matrix.astype(matrix.dtype)


product.defvjp(_forward, _backward)


def _summed(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices, summed over these axes, in float32 at least."""
    wide = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    contracted = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(left, right, contracted, preferred_element_type=wide)


def by_inputs(weight: jax.Array, inputs: int) -> jax.Array:
    """A weight `[*inputs, *outputs]` as `[I, *outputs]`: its first axes are merged into one of size
    `inputs`."""
    count = next(n for n in range(1, weight.ndim + 1) if math.prod(weight.shape[:n]) == inputs)
    return weight.reshape(inputs, *weight.shape[count:])
