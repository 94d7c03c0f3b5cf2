"""The linear algebra of a site: the inverse of its Hessian, and solutions on prefixes of its channels.

On one CPU, LAPACK does both. Elsewhere, Gauss–Jordan sweeps handle a block of channels at a time: matrix
products and the factor of a small block, in one loop for every size. (XLA's own factorisation unrolls on a
TPU: at 14,336 channels it does not compile within minutes.) A sweep of channels S turns `[H | G]` into a
matrix whose rows S are `H_SS⁻¹ [H | G]_S`. After all channels, the left side is the inverse. After the first
k, the first k rows of the right side are the solution on them.

Axis letters: `d` channels, `D` outputs, `E` prefixes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax.linalg import cholesky
from jax.scipy.linalg import cho_solve, solve_triangular

from tyr_jax.runtime import devices

HIGHEST = jax.lax.Precision.HIGHEST

BLOCK = 256
"""Largest number of channels swept at a time."""

matmul = functools.partial(jnp.matmul, precision=HIGHEST)


def wide_matmul(left: jax.Array, right: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The product of two matrices, in `dtype`, which is float32 or wider.

    Products of bfloat16 numbers are exact in float32. So matrices in bfloat16 are multiplied as they are, in
    one pass of a matrix unit, where float32 at HIGHEST takes six.
    """
    if left.dtype == right.dtype == jnp.bfloat16:
        return jnp.matmul(left, right, preferred_element_type=dtype)
    return matmul(left.astype(dtype), right.astype(dtype))


OnSolution = Callable[[jax.Array, jax.Array], Any]
"""Turns the number of channels and the solution `[d, D]` on that many channels into a pytree."""


def inverse(hessian: jax.Array) -> jax.Array:
    """`H⁻¹ [d, d]` of a symmetric `hessian [d, d]`; not finite unless that is positive definite."""
    if devices.count() > 1:
        return inverse_by_sweeps(hessian)
    return jax.lax.platform_dependent(hessian, cpu=inverse_by_factor, default=inverse_by_sweeps)


def factor(matrix: jax.Array) -> jax.Array:
    """The Cholesky factor `L [d, d]`, `L Lᵀ = M`, of a symmetric positive definite `matrix [d, d]`."""
    if devices.count() > 1:
        return factor_by_blocks(matrix)
    return jax.lax.platform_dependent(matrix, cpu=cholesky, default=factor_by_blocks)


def prefix_solutions(
    hessian: jax.Array, right: jax.Array, counts: jax.Array, widths: tuple[int, ...], finish: OnSolution
) -> Any:
    """`finish(k, X)` for every `k` of `counts [E]`, stacked. `X [d, D]` is the solution `H[:k, :k]⁻¹ G[:k]`,
    with zeros below row k.

    `hessian [d, d]` is symmetric positive definite, `right [d, D]` is G. `widths`, the last of which is d,
    are sizes at which a solution may be computed where that is cheaper. Only one solution is in memory at a
    time.
    """
    if devices.count() > 1:
        return solve_by_sweeps(hessian, right, counts, finish)
    by_factor = functools.partial(solve_by_factor, widths=widths, finish=finish)
    by_sweeps = functools.partial(solve_by_sweeps, finish=finish)
    return jax.lax.platform_dependent(hessian, right, counts, cpu=by_factor, default=by_sweeps)


def solve(hessian: jax.Array, right: jax.Array) -> jax.Array:
    """`H⁻¹ G [d, D]` of a symmetric positive definite `hessian [d, d]` and `right [d, D]`."""
    size = len(hessian)
    (solution,) = prefix_solutions(hessian, right, jnp.array([size]), (size,), lambda _, found: found)
    return solution


def inverse_by_factor(hessian: jax.Array) -> jax.Array:
    """`inverse`, by a Cholesky factor."""
    # LAPACK is column-major, and the columns of a symmetric matrix are its rows.
    lower = cholesky(hessian.T, symmetrize_input=False)
    channel = jnp.arange(len(hessian))
    # A constant identity would stay in memory throughout a loop around this.
    identity = (0 * lower).at[channel, channel].set(1)
    return cho_solve((lower, True), identity)


def solve_by_factor(
    hessian: jax.Array, right: jax.Array, counts: jax.Array, widths: tuple[int, ...], finish: OnSolution
) -> Any:
    """`prefix_solutions`, by one Cholesky factor.

    The factor of a prefix is the leading block of the whole factor, and its forward substitution is a prefix
    of the whole one. Only the back-substitutions differ.
    """
    factor = cholesky(hessian, symmetrize_input=False)
    forward = solve_triangular(factor, right, lower=True)

    def solve_leading(width: int) -> Callable[[jax.Array], jax.Array]:
        def solve(count: jax.Array) -> jax.Array:
            inside = jnp.arange(width) < count
            # The identity outside the prefix's block gives the exact solution in a static shape.
            block = inside[:, None] & inside
            leading = jnp.where(block, factor[:width, :width], jnp.eye(width, dtype=factor.dtype))
            solution = solve_triangular(leading, forward[:width] * inside[:, None], trans=1, lower=True)
            return jnp.zeros_like(forward).at[:width].set(solution)

        return solve

    def solve_prefix(count: jax.Array) -> Any:
        bucket = jnp.searchsorted(jnp.array(widths), count)
        return finish(count, jax.lax.switch(bucket, [solve_leading(width) for width in widths], count))

    return jax.lax.map(solve_prefix, counts)


def sweep(
    matrix: jax.Array, right: jax.Array, first: jax.Array, count: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """Sweep channels `first` to `first + count` of `[matrix | right]`, at most `block` of them. All earlier
    channels are swept already.

    `matrix [d, d]` is symmetric except for the sign of entries between swept and other channels, so its rows
    determine its columns. Each of several devices holds some columns, and they exchange the rows of a block.
    """
    size = len(matrix)
    channel = jnp.arange(size)
    start = jnp.minimum(first, size - block)
    place = start + jnp.arange(block)
    active = (place >= first) & (place < first + count)

    def rows_of(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, start, block) * active[:, None]

    def with_rows(array: jax.Array, rows: jax.Array) -> jax.Array:
        others = jax.lax.dynamic_slice_in_dim(array, start, block)
        rows = jnp.where(active[:, None], rows, others)
        return devices.place(jax.lax.dynamic_update_slice_in_dim(array, rows, start, 0), 1)

    rows = rows_of(matrix)
    corner = devices.everywhere(jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1))
    identity = jnp.eye(block, dtype=matrix.dtype)
    corner = jnp.where(active[:, None] & active, corner, identity)
    # corner = L Lᵀ; half = L⁻¹.
    half = solve_triangular(cholesky(corner, symmetrize_input=False), identity, lower=True)
    left, answers = devices.everywhere(matmul(half, rows)), matmul(half, rows_of(right))
    sign = jnp.where(channel < first, -1, 1).astype(matrix.dtype)
    columns = (sign * left).T
    swept = (channel >= first) & (channel < first + count)
    at = jnp.clip(channel - start, 0, block - 1)
    fresh = matmul(half.T, jnp.where(swept, half[:, at], left))
    # The swept columns become `−columns · half`, except in the swept rows, which are replaced.
    matrix = jnp.where(swept, 0, matrix) - matmul(columns, jnp.where(swept, half[:, at], left))
    right = right - matmul(columns, answers)
    return with_rows(matrix, fresh), with_rows(right, matmul(half.T, answers))


def inverse_by_sweeps(hessian: jax.Array) -> jax.Array:
    """`inverse`, by sweeps of all channels."""
    size = len(hessian)
    block = min(BLOCK, size)
    nothing = jnp.zeros((size, 0), hessian.dtype)

    def step(number: jax.Array, matrix: jax.Array) -> jax.Array:
        first = number * block
        return sweep(matrix, nothing, first, jnp.minimum(block, size - first), block)[0]

    return jax.lax.fori_loop(0, -(-size // block), step, devices.place(hessian, 1))


def factor_by_blocks(matrix: jax.Array) -> jax.Array:
    """`factor`, a block of rows of Lᵀ at a time."""
    size = len(matrix)
    block = min(BLOCK, size)
    channel = jnp.arange(size)

    def step(number: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, upper = state
        start = jnp.minimum(number * block, size - block)
        place = start + jnp.arange(block)
        fresh = place >= number * block
        rows = jax.lax.dynamic_slice_in_dim(left, start, block) * fresh[:, None]
        corner = devices.everywhere(jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1))
        corner = jnp.where(fresh[:, None] & fresh, corner, jnp.eye(block, dtype=matrix.dtype))
        rows = solve_triangular(cholesky(corner, symmetrize_input=False), rows, lower=True)
        rows = devices.everywhere(jnp.where(channel >= place[:, None], rows, 0))
        upper = jax.lax.dynamic_update_slice_in_dim(
            upper, jax.lax.dynamic_slice_in_dim(upper, start, block) + rows, start, 0
        )
        return devices.place(left - matmul(rows.T, rows), 1), devices.place(upper, 1)

    start = devices.place(matrix, 1), devices.place(jnp.zeros_like(matrix), 1)
    return jax.lax.fori_loop(0, -(-size // block), step, start)[1].T


def solve_by_sweeps(hessian: jax.Array, right: jax.Array, counts: jax.Array, finish: OnSolution) -> Any:
    """`prefix_solutions`, by sweeps that stop at each of `counts`."""
    size = len(hessian)
    block = min(BLOCK, size)
    State = tuple[jax.Array, jax.Array, jax.Array, Any]

    def more(state: State) -> jax.Array:
        return state[0] < jnp.max(counts)

    def step(state: State) -> State:
        done, matrix, right, found = state
        halt = jnp.min(jnp.where(counts > done, counts, size))
        count = jnp.minimum(block, halt - done)
        matrix, right = sweep(matrix, right, done, count, block)
        done += count

        def keep(found: Any) -> Any:
            new = finish(done, jnp.where((jnp.arange(size) < done)[:, None], right, 0))

            def put(old: jax.Array, new: jax.Array) -> jax.Array:
                return jnp.where(jnp.expand_dims(counts == done, range(1, old.ndim)), new, old)

            return jax.tree.map(put, found, new)

        return done, matrix, right, jax.lax.cond(done == halt, keep, lambda found: found, found)

    nothing = jnp.zeros((), counts.dtype)
    found = jax.vmap(lambda _: finish(nothing, jnp.zeros_like(right)))(counts)
    start = nothing, devices.place(hessian, 1), devices.place(right, 1), found
    return jax.lax.while_loop(more, step, start)[3]
