"""Local pruning of one site (method §1, Algorithm 1): one progressive pass emits every sparsity level.

Units (heads or neurons) leave in the order of their saliency, a chunk at a time, with an OBS update of the
remaining weights and of Hs⁻¹ after each chunk (Eq. 10). The order does not depend on any target, so one
pass serves all levels. Numbered last-removed first, the units of every level are a prefix, and one pass over
the permuted Hs gives the solutions on all prefixes: the weights of a level are the least-squares optimum on
its support, `W_S = Hs_SS⁻¹ G_S`, free of the drift of the incremental updates.

Axis letters here: `U` units of a site, `b` input channels of a unit (H for heads, G·H for key/value groups,
1 for neurons), `d_in = U·b`, `D` outputs, `E` levels.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from tyr_jax.pruning import linalg
from tyr_jax.pruning.hessian import DampingScale, damp, damping_diagonal
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.runtime import devices
from tyr_jax.runtime.buckets import bucket_widths

MAX_DAMPING_RAISES = 6

ROUNDING = 0.1
"""By what share an element of Hs⁻¹ may exceed what damping allows before it is not to be trusted."""

PANEL_ROWS = 128
"""Removed channels whose downdates of Hs⁻¹ are gathered before they are applied."""


@dataclasses.dataclass(frozen=True)
class Saliency:
    """Which terms of Eq. 4 count, and how a unit of several channels combines them.

    The default is the exact rise of the layer's error, which measured best on held-out text; the paper's
    is `abs` and `channel`.
    """

    first_order: Literal["abs", "signed", "none"] = "none"
    """First-order term: `abs` is |G_p · W_p| per channel (the paper), `signed` the sum over a unit's
    channels without the modulus (the public code)."""
    second_order: Literal["channel", "block", "none"] = "block"
    """Second-order term: `channel` is ‖W_p‖² / 2[Hs⁻¹]_pp per channel (the paper), `block` the joint form
    ½ tr(W_uᵀ ([Hs⁻¹]_uu)⁻¹ W_u) of a unit, the exact rise of the layer's error."""


PAPER_SALIENCY = Saliency("abs", "channel")


class PrunedSite(NamedTuple):
    """Every level of one site: `weights [E, d_in, D]`, unit `rank [U]`, relative `error [E]`, `damping`.

    `rank` numbers units last-removed first; level `e` keeps the units with `rank < kept[e]`. `error` is
    `tr((W−W_e)ᵀ Hs (W−W_e)) / tr(Wᵀ Hs W)`. `damping` is the factor used, larger than the one asked
    where the Hessian was not positive definite in float32.
    """

    weights: jax.Array
    rank: jax.Array
    error: jax.Array
    damping: jax.Array


def removal_schedule(units: int, chunk: int, kept: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Units to remove at each step `[S]`: chunks of at most `chunk` that end on every level's boundary.

    `kept [E]` are the unit counts of the levels, of which those in `exists [E]` are needed. Padded with
    zeros to a length that depends on shapes only, so that sites with other levels share one compilation.
    """
    boundaries = np.unique(units - kept[exists])
    spans = np.diff(boundaries, prepend=0)
    steps = [min(chunk, span - done) for span in spans for done in range(0, span, chunk)]
    length = -(-units // chunk) + len(kept)
    return np.array(steps + [0] * (length - len(steps)), np.int32)


def unit_blocks(matrix: jax.Array, unit_size: int) -> jax.Array:
    """Diagonal blocks `[U, b, b]` of `matrix [d_in, d_in]`."""
    units = matrix.shape[0] // unit_size
    unit = jnp.arange(units)
    return matrix.reshape(units, unit_size, units, unit_size)[unit, :, unit]


def unit_saliency(weight: jax.Array, gradient: jax.Array, blocks: jax.Array, saliency: Saliency) -> jax.Array:
    """Saliency of every unit `[U]` (Eq. 4), from W, G = Hs·W₀ (both `[d_in, D]`) and the diagonal blocks
    of Hs⁻¹ `[U, b, b]`.

    Per channel and averaged over a unit, except that `signed` and `block` terms are joint over it (and
    divided by its channels, to stay on the same scale).
    """
    units, unit_size = blocks.shape[:2]
    first = jnp.sum(gradient * weight, axis=1)
    if saliency.first_order == "abs":
        first = jnp.abs(first)
    elif saliency.first_order == "none":
        first = jnp.zeros_like(first)
    score = first.reshape(units, unit_size).mean(axis=1)
    if saliency.second_order == "none":
        return score
    if saliency.second_order == "channel" or unit_size == 1:
        variance = jnp.maximum(jnp.diagonal(blocks, axis1=1, axis2=2), jnp.finfo(blocks.dtype).tiny)
        second = jnp.sum(weight * weight, axis=1).reshape(units, unit_size) / (2 * variance)
        return score + second.mean(axis=1)
    # Removed units have an empty block; the identity keeps the solve finite and they are masked anyway.
    empty = jnp.trace(blocks, axis1=1, axis2=2) <= 0
    blocks = jnp.where(empty[:, None, None], jnp.eye(unit_size, dtype=blocks.dtype), blocks)
    rows = weight.reshape(units, unit_size, -1)
    energy = jnp.einsum("ubd,ubd->u", rows, jnp.linalg.solve(blocks, rows), precision=HIGHEST)
    return score + energy / (2 * unit_size)


class Inverse(NamedTuple):
    """Hs⁻¹ on the channels that are left: `base − panelᵀ panel`, and its diagonal blocks.

    `base [d_in, d_in]`, `panel [p, d_in]`, `blocks [U, b, b]`. A removal only adds rows to the panel; the
    base absorbs a full panel in one product. That has the FLOPs of the many thin downdates it stands for,
    but reads and writes the matrix once.
    """

    base: jax.Array
    panel: jax.Array
    blocks: jax.Array


def inverse_of(matrix: jax.Array, unit_size: int, rows: int) -> Inverse:
    """`matrix [d_in, d_in]`, Hs⁻¹ of all channels, with an empty panel of `rows`."""
    panel = devices.place(jnp.zeros((rows, matrix.shape[0]), matrix.dtype), 1)
    return Inverse(devices.place(matrix, 1), panel, devices.place(unit_blocks(matrix, unit_size), 0))


def absorb(inverse: Inverse) -> Inverse:
    """The same matrix with an empty panel."""
    product = jnp.matmul(devices.everywhere(inverse.panel).T, inverse.panel, precision=HIGHEST)
    return inverse._replace(base=inverse.base - product, panel=jnp.zeros_like(inverse.panel))


def obs_step(
    weight: jax.Array, inverse: Inverse, channels: jax.Array, active: jax.Array, row: jax.Array | int
) -> tuple[jax.Array, Inverse]:
    """Remove `channels [c]` where `active [c]`: the OBS update of W `[d_in, D]` and Hs⁻¹ (Eq. 10).

    The panel's rows from `row` on, which must be empty, become `R⁻ᵀ Hs⁻¹_{P,:}` with `RᵀR = [Hs⁻¹]_PP`.
    """
    base, panel, blocks = inverse
    units, unit_size = blocks.shape[:2]
    rows = base[channels] - jnp.matmul(devices.everywhere(panel[:, channels]).T, panel, precision=HIGHEST)
    rows *= active[:, None]
    corner = devices.everywhere(rows[:, channels])
    # Rounding must not make a nearly singular corner indefinite.
    floor = 4 * jnp.finfo(rows.dtype).eps * jnp.max(jnp.diagonal(corner))
    factor = jnp.linalg.cholesky(corner * active + jnp.diag(1.0 - active + floor))
    fresh = devices.place(solve_triangular(factor, rows, lower=True), 1)
    step = solve_triangular(factor, devices.everywhere(weight[channels]) * active[:, None], lower=True)
    parts = fresh.reshape(-1, units, unit_size)
    blocks -= jnp.einsum("cub,cuk->ubk", parts, parts, precision=HIGHEST)
    weight -= jnp.matmul(fresh.T, step, precision=HIGHEST)
    # What is left of a removed channel is rounding error.
    keep = jnp.ones(len(weight), weight.dtype).at[channels].multiply(1.0 - active)
    by_unit = keep.reshape(units, unit_size)
    blocks *= by_unit[:, :, None] * by_unit[:, None, :]
    panel = jax.lax.dynamic_update_slice(panel, fresh, (row, 0))
    return weight * keep[:, None], Inverse(base, panel, blocks)


def panel_steps(chunk: int, unit_size: int) -> int:
    """Removals, of `chunk` units each, between which the inverse does not absorb its panel."""
    return max(1, PANEL_ROWS // (chunk * unit_size))


class _Pass(NamedTuple):
    """State of the removal loop."""

    weight: jax.Array
    inverse: Inverse
    rank: jax.Array
    alive: jax.Array
    remaining: jax.Array


def removal_rank(
    weight: jax.Array,
    gradient: jax.Array,
    inverse: jax.Array,
    schedule: jax.Array,
    *,
    unit_size: int,
    chunk: int,
    saliency: Saliency,
) -> tuple[jax.Array, jax.Array]:
    """Rank of every unit `[U]`, last-removed first, by removing `schedule[s]` units at step s; and whether
    all numbers stayed finite.

    Args:
        weight: W `[d_in, D]`.
        gradient: G = Hs·W `[d_in, D]`, fixed through the pass.
        inverse: Hs⁻¹ `[d_in, d_in]`.
        schedule: units per step `[S]`, each at most `chunk`; zeros at the end.
        unit_size: input channels of a unit, b.
        chunk: the most units removed at once.
        saliency: the terms of Eq. 4.

    Units that the schedule never removes get the lowest ranks, in their own order.
    """
    units, width = len(weight) // unit_size, chunk * unit_size
    steps = panel_steps(chunk, unit_size)
    schedule = jnp.pad(schedule, (0, steps))

    def remove(step: jax.Array, row: jax.Array, state: _Pass) -> _Pass:
        score = unit_saliency(state.weight, gradient, state.inverse.blocks, saliency)
        leaving = jax.lax.top_k(jnp.where(state.alive, -score, -jnp.inf), chunk)[1]
        place = jnp.arange(chunk)
        leaves = place < schedule[step]
        channels = unit_channels(leaving, unit_size)
        active = jnp.repeat(leaves, unit_size).astype(weight.dtype)
        weight_now, inverse_now = obs_step(state.weight, state.inverse, channels, active, row)
        rank = state.rank.at[leaving].set(
            jnp.where(leaves, state.remaining - 1 - place, state.rank[leaving]).astype(jnp.int32)
        )
        alive = state.alive.at[leaving].set(jnp.where(leaves, False, state.alive[leaving]))
        return _Pass(weight_now, inverse_now, rank, alive, state.remaining - schedule[step])

    def remove_panel(number: jax.Array, state: _Pass) -> _Pass:
        state = jax.lax.fori_loop(0, steps, lambda s, x: remove(number * steps + s, s * width, x), state)
        return state._replace(inverse=absorb(state.inverse))

    start = _Pass(
        devices.place(weight, 0),
        inverse_of(inverse, unit_size, steps * width),
        jnp.zeros(units, jnp.int32),
        jnp.ones(units, bool),
        jnp.asarray(units, jnp.int32),
    )
    panels = -(-jnp.sum(schedule > 0) // steps)
    end = jax.lax.fori_loop(0, panels, remove_panel, start)
    survivors = (jnp.cumsum(end.alive) - 1).astype(jnp.int32)
    return jnp.where(end.alive, survivors, end.rank), jnp.isfinite(end.weight).all()


def solve_levels(
    hessian: jax.Array, gradient: jax.Array, dense: jax.Array, rank: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(least-squares weights of every level `[E, d_in, D]`, `W_S = Hs_SS⁻¹ G_S`, zero elsewhere; their
    relative errors `[E]`).

    `hessian [d_in, d_in]` damped, `gradient` and `dense [d_in, D]`, `rank [U]`, `kept [E]` units; in the
    type of `dense`. With channels in the order of their units' rank, the support of every level is a prefix.
    """
    unit_size = len(dense) // len(rank)
    channels, place = unit_channels(jnp.argsort(rank), unit_size), unit_channels(rank, unit_size)
    # Only rows move, from columns of one device each.
    permuted = devices.place(devices.place(hessian[channels], 1).T, 1)[channels]
    dense = devices.place(dense, 1)
    energy = jnp.sum(dense * gradient)

    def finish(count: jax.Array, solution: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A site that keeps all keeps its weights, to the last bit.
        weights = jnp.where(count == len(dense), dense, devices.place(solution[place], 1))
        # At the optimum W_e ⟂ (W − W_e) in the Hs metric: the error is the energy lost, tr(GᵀW) − tr(GᵀW_e).
        error = jnp.where(energy == 0, 0.0, 1.0 - jnp.sum(gradient * weights) / energy)
        return weights.astype(dense.dtype), error

    widths = bucket_widths(len(rank), unit_size)
    return linalg.prefix_solutions(permuted, gradient[channels], kept * unit_size, widths, finish)


def unit_channels(units: jax.Array, unit_size: int) -> jax.Array:
    """Input channels of `units [u]`, `[u·b]`."""
    return (units[:, None] * unit_size + jnp.arange(unit_size)).reshape(-1)


def factorise(gram: jax.Array, damping: float, scale: DampingScale) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(damped Hs, its inverse, damping used): the damping is raised tenfold until there is an inverse that is
    not rounding error."""

    def attempt(factor: jax.Array) -> jax.Array:
        return linalg.inverse(damp(gram, factor, scale))

    def raise_damping(state: tuple) -> tuple:
        tries, factor, _ = state
        return tries + 1, factor * 10, attempt(factor * 10)

    def failed(state: tuple) -> jax.Array:
        tries, factor, inverse = state
        # Hs ⪰ Λ, so that no diagonal element of Hs⁻¹ exceeds Λ's inverse. A matrix that is not positive
        # definite gives NaN throughout.
        bounded = jnp.diagonal(inverse) * damping_diagonal(gram, factor, scale) < 1 + ROUNDING
        return (tries < MAX_DAMPING_RAISES) & ~jnp.all(bounded)

    start = jnp.asarray(damping, gram.dtype)
    _, used, inverse = jax.lax.while_loop(failed, raise_damping, (0, start, attempt(start)))
    return damp(gram, used, scale), inverse, used


@functools.partial(jax.jit, static_argnames=("unit_size", "chunk", "saliency", "damping", "damping_scale"))
def prune_site(
    gram: jax.Array,
    weight: jax.Array,
    kept: jax.Array,
    schedule: jax.Array,
    *,
    unit_size: int,
    chunk: int,
    saliency: Saliency,
    damping: float,
    damping_scale: DampingScale,
) -> PrunedSite:
    """Prune one site to every level in one progressive pass (Algorithm 1).

    Args:
        gram: XᵀX of the site's inputs `[d_in, d_in]`.
        weight: dense weight W `[d_in, D]`.
        kept: units kept at each level `[E]`.
        schedule: units removed at each step `[S]`, from `removal_schedule`.
        unit_size: input channels of a unit, b.
        chunk: the most units removed between two OBS updates.
        saliency: the terms of Eq. 4.
        damping: λ as a fraction of the diagonal of XᵀX.
        damping_scale: of its mean, or channel by channel.

    `error` is all NaN if `gram` is not finite or too ill-conditioned: the caller names the site.
    """
    dtype = gram.dtype
    dense = weight.astype(dtype)
    hessian, inverse, used = factorise(gram, damping, damping_scale)
    # Hs is its own transpose, and of that one, rows are at hand.
    gradient = devices.place(jnp.matmul(hessian.T, dense, precision=HIGHEST), 0)
    rank, sound = removal_rank(
        dense, gradient, inverse, schedule, unit_size=unit_size, chunk=chunk, saliency=saliency
    )
    gradient = devices.place(gradient, 1)
    weights, error = solve_levels(hessian, gradient, weight, rank, kept)
    error = jnp.where(sound, error, jnp.nan)
    return PrunedSite(weights, rank, error, used)
