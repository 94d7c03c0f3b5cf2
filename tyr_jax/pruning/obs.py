"""Local pruning of one site (method §1, Algorithm 1): one progressive pass gives every sparsity level.

Units (heads or neurons) are removed in the order of their saliency, a chunk at a time. After each chunk, an
OBS update adjusts the remaining weights and Hs⁻¹ (Eq. 10). The order does not depend on any target, so one
pass serves all levels. If units are numbered last-removed first, the units of every level are a prefix, and
one pass over the permuted Hs gives the solutions on all prefixes. The weights of a level are the
least-squares optimum on its support, `W_S = Hs_SS⁻¹ G_S`, free of the drift of the incremental updates.

Axis letters here: `U` units of a site, `b` input channels of a unit (H for heads, G·H for key/value groups,
1 for neurons), `d_in = U·b`, `D` outputs, `E` levels.
"""

import dataclasses
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from tyr_jax.pruning import linalg
from tyr_jax.pruning.hessian import DampingScale, damp, damping_diagonal
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.pruning.saliency import SiteStatistics
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, unit_blocks, unit_channels
from tyr_jax.runtime import devices
from tyr_jax.runtime.buckets import bucket_widths

MAX_DAMPING_RAISES = 6

ROUNDING = 0.1
"""The inverse is rejected as rounding error if a diagonal element of Hs⁻¹ exceeds the bound that damping sets
by more than this share, or if `Hs Hs⁻¹ v` differs from `v` by more."""

PROBES = 8
"""Vectors `v` on which an inverse is tried."""

PANEL_ROWS = 128
"""Removed channels whose downdates of Hs⁻¹ are collected before they are applied."""


class Inverse(NamedTuple):
    """Hs⁻¹ on the remaining channels, `base − panelᵀ panel`, and its diagonal blocks.

    `base [d_in, d_in]`, `panel [p, d_in]` with p rows, `blocks [U, b, b]` of units of b channels. A removal
    only adds rows to the panel. The base absorbs a full panel in one product, which has the FLOPs of the many
    thin downdates it replaces, but reads and writes the matrix only once.
    """

    base: jax.Array
    panel: jax.Array
    blocks: jax.Array


def inverse_of(matrix: jax.Array, unit_size: int, rows: int) -> Inverse:
    """An `Inverse` from `matrix [d_in, d_in]`, Hs⁻¹ of all channels, with an empty panel of `rows` rows."""
    panel = devices.place(jnp.zeros((rows, matrix.shape[0]), matrix.dtype), 1)
    return Inverse(devices.place(matrix, 1), panel, devices.place(unit_blocks(matrix, unit_size), 0))


def absorb(inverse: Inverse) -> Inverse:
    """The same matrix with the panel absorbed into the base, and an empty panel."""
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
    """Removals, of `chunk` units each, before the inverse absorbs its panel."""
    return max(1, PANEL_ROWS // (chunk * unit_size))


class _Pass(NamedTuple):
    """State of the removal loop."""

    weight: jax.Array
    inverse: Inverse
    rank: jax.Array
    alive: jax.Array
    remaining: jax.Array
    sound: jax.Array


def removal_rank(
    site: Site, dense: jax.Array, gradient: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(rank of every unit `[U]`, last-removed first, when step s removes `schedule[s]` units of a site;
    whether all numbers stayed finite, and no score was NaN).

    `dense` is W and `gradient` is G = Hs·W, fixed throughout the pass, both `[d_in, D]` in output coordinates
    in which every change counts alike. `inverse` is Hs⁻¹ `[d_in, d_in]`. Units that the schedule never
    removes get the lowest ranks, in their original order.
    """
    units, unit_size, chunk = site.units, site.unit_size, site.chunk
    width = chunk * unit_size
    steps = panel_steps(chunk, unit_size)
    schedule = jnp.pad(site.schedule, (0, steps))

    def remove(step: jax.Array, row: jax.Array, state: _Pass) -> _Pass:
        known = SiteStatistics(site.gram, state.weight, gradient, state.inverse.blocks)
        score = site.saliency(known)
        leaving = jax.lax.top_k(jnp.where(state.alive, -score, -jnp.inf), chunk)[1]
        place = jnp.arange(chunk)
        leaves = place < schedule[step]
        channels = unit_channels(leaving, unit_size)
        active = jnp.repeat(leaves, unit_size).astype(dense.dtype)
        weight_now, inverse_now = obs_step(state.weight, state.inverse, channels, active, row)
        rank = state.rank.at[leaving].set(
            jnp.where(leaves, state.remaining - 1 - place, state.rank[leaving]).astype(jnp.int32)
        )
        alive = state.alive.at[leaving].set(jnp.where(leaves, False, state.alive[leaving]))
        sound = state.sound & ~jnp.any(state.alive & jnp.isnan(score))
        return _Pass(weight_now, inverse_now, rank, alive, state.remaining - schedule[step], sound)

    def remove_panel(number: jax.Array, state: _Pass) -> _Pass:
        state = jax.lax.fori_loop(0, steps, lambda s, x: remove(number * steps + s, s * width, x), state)
        return state._replace(inverse=absorb(state.inverse))

    start = _Pass(
        devices.place(dense, 0),
        inverse_of(inverse, unit_size, steps * width),
        jnp.zeros(units, jnp.int32),
        jnp.ones(units, bool),
        jnp.asarray(units, jnp.int32),
        jnp.asarray(True),
    )
    panels = -(-jnp.sum(schedule > 0) // steps)
    end = jax.lax.fori_loop(0, panels, remove_panel, start)
    survivors = (jnp.cumsum(end.alive) - 1).astype(jnp.int32)
    return jnp.where(end.alive, survivors, end.rank), end.sound & jnp.isfinite(end.weight).all()


def solve_levels(
    hessian: jax.Array,
    gradient: jax.Array,
    worth: jax.Array,
    dense: jax.Array,
    rank: jax.Array,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(least-squares weights of every level `[E, d_in, D]`, `W_S = Hs_SS⁻¹ G_S` and zero elsewhere, in the
    type of `dense`; their relative errors `[E]`).

    `hessian [d_in, d_in]` is damped. `gradient` is G and `dense` is W, both `[d_in, D]`. `worth [d_in, D]` is
    G·M, where the metric M of outputs says how errors count. `rank [U]`; `kept [E]` units. With channels in
    the order of their units' rank, the support of every level is a prefix.
    """
    unit_size = len(dense) // len(rank)
    channels, place = unit_channels(jnp.argsort(rank), unit_size), unit_channels(rank, unit_size)
    # Only rows are permuted, on each side of the transpose: columns are divided among devices.
    permuted = devices.place(devices.place(hessian[channels], 1).T, 1)[channels]
    dense = devices.place(dense, 1)
    energy = jnp.sum(dense * worth)

    def finish(count: jax.Array, solution: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A site that keeps all units keeps its weights bit for bit.
        weights = jnp.where(count == len(dense), dense, devices.place(solution[place], 1))
        # At the optimum W_e ⟂ (W − W_e) in the Hs metric, whatever the metric of outputs. So the error is the
        # energy lost, tr(GᵀWM) − tr(GᵀW_eM).
        error = jnp.where(energy == 0, 0.0, 1.0 - jnp.sum(worth * weights) / energy)
        return weights.astype(dense.dtype), error

    widths = tuple(unit_size * width for width in bucket_widths(len(rank), unit_size))
    return linalg.prefix_solutions(permuted, gradient[channels], kept * unit_size, widths, finish)


def factorise(gram: jax.Array, damping: float, scale: DampingScale) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(damped Hs, its inverse, the damping used) of XᵀX, all `[d_in, d_in]` but the damping. The damping is
    raised tenfold, at most `MAX_DAMPING_RAISES` times, until the inverse is not just rounding error; the last
    try is returned either way."""

    def attempt(factor: jax.Array) -> jax.Array:
        return linalg.inverse(damp(gram, factor, scale))

    def raise_damping(state: tuple) -> tuple:
        tries, factor, _ = state
        return tries + 1, factor * 10, attempt(factor * 10)

    def failed(state: tuple) -> jax.Array:
        tries, factor, inverse = state
        # Hs ⪰ Λ, so no diagonal element of Hs⁻¹ can exceed that of Λ⁻¹. A matrix that is not positive
        # definite gives NaN throughout, which is below no threshold.
        bounded = jnp.diagonal(inverse) * damping_diagonal(gram, factor, scale) < 1 + ROUNDING
        exact = residual(damp(gram, factor, scale), inverse) < ROUNDING
        return (tries < MAX_DAMPING_RAISES) & ~(jnp.all(bounded) & exact)

    start = jnp.asarray(damping, gram.dtype)
    _, used, inverse = jax.lax.while_loop(failed, raise_damping, (0, start, attempt(start)))
    return damp(gram, used, scale), inverse, used


def residual(hessian: jax.Array, inverse: jax.Array) -> jax.Array:
    """Root mean square of `Hs Hs⁻¹ v − v` over random signs `v`, with every channel scaled to a diagonal of
    one, for `hessian` and its `inverse`, both `[d_in, d_in]`."""
    scale = jnp.sqrt(jnp.diagonal(hessian))[:, None]
    signs = jax.random.rademacher(jax.random.key(0), (len(scale), PROBES), hessian.dtype)
    # Both are symmetric and divided by columns, so each device has rows of their transposes.
    solved = devices.everywhere(jnp.matmul(inverse.T, scale * signs, precision=HIGHEST))
    found = devices.everywhere(jnp.matmul(hessian.T, solved, precision=HIGHEST))
    return jnp.sqrt(jnp.mean((found / scale - signs) ** 2))


def by_outputs(array: jax.Array, matrix: jax.Array) -> jax.Array:
    """`array [d_in, D]` times `matrix [D, D]`, divided among devices by rows. Every device gets all of the
    matrix, the smaller of the two, because each row of the product needs only the same row of `array`."""
    return devices.place(linalg.matmul(devices.place(array, 0), devices.everywhere(matrix)), 0)


class Known(NamedTuple):
    """What is computed once of a site: the `dense` weight W and `gradient` G = Hs·W, `[d_in, D]`; Hs and its
    inverse, `[d_in, d_in]`; and the `damping` used."""

    dense: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    inverse: jax.Array
    damping: jax.Array

    @classmethod
    def of(cls, site: Site) -> Self:
        """Factorise a site's Hessian and compute its gradient."""
        dense = site.weight.astype(site.gram.dtype)
        hessian, inverse, used = factorise(site.gram, site.damping, site.damping_scale)
        # Hs is symmetric and divided by columns, so each device has rows of its transpose.
        gradient = devices.place(jnp.matmul(hessian.T, dense, precision=HIGHEST), 0)
        return cls(dense, gradient, hessian, inverse, used)

    def turned(self, metric: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """(W, G), each `[d_in, D]`, multiplied by the Cholesky factor of the `metric [D, D]` of the output,
        in whose place is then the identity; unchanged without one."""
        if metric is None:
            return self.dense, self.gradient
        root = linalg.factor(metric)
        return by_outputs(self.dense, root), by_outputs(self.gradient, root)


@dataclasses.dataclass(frozen=True)
class OBS(LocalPruner):
    """Progressive removal with the optimal brain surgeon's update, all levels in one pass (Algorithm 1).

    `error` is all NaN if XᵀX is not finite or too ill-conditioned: the caller names the site.
    """

    name: ClassVar[str] = "obs"

    def order(self, site: Site, known: Known) -> tuple[jax.Array, jax.Array]:
        """(rank of every unit `[U]`, whether all numbers stayed finite)."""
        return removal_rank(site, *known.turned(site.metric), known.inverse)

    def __call__(self, site: Site) -> PrunedSite:
        """The site at every level: least-squares weights, relative errors, and the damping used."""
        known = Known.of(site)
        if site.rank is None:
            rank, sound = self.order(site, known)
        else:
            rank, sound = site.rank, jnp.isfinite(known.inverse).all()
        worth = known.gradient if site.metric is None else by_outputs(known.gradient, site.metric)
        gradient, worth = devices.place(known.gradient, 1), devices.place(worth, 1)
        weights, error = solve_levels(known.hessian, gradient, worth, site.weight, rank, site.kept)
        return PrunedSite(weights, rank, jnp.where(sound, error, jnp.nan), known.damping)
