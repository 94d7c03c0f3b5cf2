"""A local search after the greedy pass: a removed unit changes places with a kept one where that helps.

Meng, Ibrahim, Behdin, Hazimeh, Ponomareva and Mazumder, "OSSCAR: One-Shot Structured Pruning in Vision and
Language Models with Combinatorial Optimization", ICML 2024. A support S is worth the energy that its
least-squares weights keep, tr(G_Sᵀ Hs_SS⁻¹ G_S). The levels of a site are nested, so the exchange is made at
one of them, the middle one, which is the only one in the last pruning; the others follow in their order.

Axis letters here: `U` units of a site, `b` input channels of a unit, `d_in = U·b`, `D` outputs.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.errors import require
from tyr_jax.pruning import linalg
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.pruning.obs import OBS, Known
from tyr_jax.pruning.site import Site, unit_blocks

TRIES = 4
"""Removed units whose return is tried for each exchange."""


class Support(NamedTuple):
    """The rank `[U]` of all units, and the energy that the best `count` of them keep."""

    rank: jax.Array
    energy: jax.Array


@dataclasses.dataclass(frozen=True)
class OSSCAR(OBS):
    """The greedy pass, then exchanges of single units for as long as they help."""

    name: ClassVar[str] = "osscar"

    exchanges: int = 8
    """Maximum number of exchanges at a site."""

    def check(self) -> None:
        """Refuse a negative number of exchanges."""
        require(self.exchanges >= 0, "--exchanges", self.exchanges, "at least 0")

    def order(self, site: Site, known: Known) -> tuple[jax.Array, jax.Array]:
        """The greedy order, with exchanges across the middle level."""
        rank, sound = super().order(site, known)
        _, gradient = known.turned(site.metric)
        count = site.kept[len(site.kept) // 2]
        return exchanged(known.hessian, gradient, rank, count, self.exchanges), sound


def exchanged(
    hessian: jax.Array, gradient: jax.Array, rank: jax.Array, count: jax.Array, exchanges: int
) -> jax.Array:
    """The `rank [U]` after at most `exchanges` exchanges across the first `count` places.

    `hessian [d_in, d_in]` is damped; `gradient [d_in, D]` is G, in output coordinates in which every change
    counts alike.
    """

    def attempt(state: tuple[Support, jax.Array, jax.Array]) -> tuple[Support, jax.Array, jax.Array]:
        now, done, _ = state
        leaves, enters = best_pair(hessian, gradient, now.rank, count)
        swapped = now.rank.at[leaves].set(now.rank[enters]).at[enters].set(now.rank[leaves])
        then = Support(swapped, energy_of(hessian, gradient, swapped, count))
        # A gain within rounding error does not count.
        helps = (leaves != enters) & (then.energy > now.energy * (1 + 1e-6))
        return jax.tree.map(lambda old, new: jnp.where(helps, new, old), now, then), done + 1, helps

    def goes_on(state: tuple[Support, jax.Array, jax.Array]) -> jax.Array:
        return state[2] & (state[1] < exchanges) & (count > 0) & (count < len(rank))

    start = Support(rank, energy_of(hessian, gradient, rank, count)), jnp.int32(0), jnp.bool_(True)
    return jax.lax.while_loop(goes_on, attempt, start)[0].rank


def best_pair(
    hessian: jax.Array, gradient: jax.Array, rank: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best exchange: (the unit that leaves, the one that enters), given `gradient [d_in, D]`, `rank [U]`
    and `hessian [d_in, d_in]`; the first `count` units are kept. Each of the `TRIES` removed units of
    largest gain is tried: it enters, then the unit that loses least energy leaves. Both are the same if
    nothing helps."""
    inside, size = rank < count, len(hessian) // len(rank)
    gains = jnp.where(inside, -jnp.inf, gained(hessian, gradient, inside))
    found, entering = jax.lax.top_k(gains, min(TRIES, len(rank)))

    def leaving(enters: jax.Array) -> tuple[jax.Array, jax.Array]:
        together = inside | (jnp.arange(len(rank)) == enters)
        inverse, weights = solution(hessian, gradient, together)
        lost = joint_energy(unit_blocks(inverse, size), weights.reshape(len(rank), size, -1))
        lost = jnp.where(together, lost, jnp.inf)
        return jnp.argmin(lost), jnp.min(lost)

    leaves, lost = jax.lax.map(leaving, entering)
    best = jnp.argmax(found - lost)
    return leaves[best], entering[best]


def gained(hessian: jax.Array, gradient: jax.Array, inside: jax.Array) -> jax.Array:
    """How much energy the support `inside [U]` gains from adding each unit outside it, `[U]`."""
    units, size = len(inside), len(hessian) // len(inside)
    kept = jnp.repeat(inside, size).astype(hessian.dtype)
    inverse, weights = solution(hessian, gradient, inside)
    # What the support explains neither of a unit's gradient nor of its inputs.
    rest = (gradient - jnp.matmul(hessian * kept, weights, precision=HIGHEST)).reshape(units, size, -1)
    across = hessian * kept[:, None] * (1 - kept)
    explained = jnp.matmul(jnp.matmul(inverse, across, precision=HIGHEST).T, across, precision=HIGHEST)
    return joint_energy(unit_blocks(hessian - explained, size), rest)


def solution(hessian: jax.Array, gradient: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Hs_SS⁻¹ and W_S of the support `inside [U]`; the identity and zeros elsewhere)."""
    kept = jnp.repeat(inside, len(hessian) // len(inside)).astype(hessian.dtype)
    inverse = linalg.inverse(on_support(hessian, kept))
    return inverse, jnp.matmul(inverse, gradient * kept[:, None], precision=HIGHEST)


def energy_of(hessian: jax.Array, gradient: jax.Array, rank: jax.Array, count: jax.Array) -> jax.Array:
    """tr(G_Sᵀ Hs_SS⁻¹ G_S) of the support S of the units whose `rank [U]` is below `count`."""
    kept = jnp.repeat(rank < count, len(hessian) // len(rank)).astype(hessian.dtype)
    here = gradient * kept[:, None]
    return jnp.sum(here * linalg.solve(on_support(hessian, kept), here))


def on_support(hessian: jax.Array, kept: jax.Array) -> jax.Array:
    """`hessian [d_in, d_in]` on the channels `kept [d_in]`, and the identity on the others."""
    return hessian * kept[:, None] * kept + jnp.diag(1.0 - kept)


def joint_energy(blocks: jax.Array, rows: jax.Array) -> jax.Array:
    """tr(Rᵤᵀ Bᵤ⁻¹ Rᵤ) of every unit `[U]`, with `blocks [U, b, b]` and `rows [U, b, D]`."""
    return jnp.einsum("ubd,ubd->u", rows, jnp.linalg.solve(blocks, rows), precision=HIGHEST)
