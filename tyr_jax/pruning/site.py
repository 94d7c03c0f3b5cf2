"""One prunable site, and what a local pruner makes of it (method §1).

Your own local pruner is a frozen dataclass that orders the units of a site and returns the weights of every
level::

    @dataclasses.dataclass(frozen=True)
    class Magnitude(LocalPruner):
        def __call__(self, site: Site) -> PrunedSite:
            norms = jnp.linalg.norm(site.weight, axis=1)
            return keep_rows(site, rank_by(site.per_unit(norms)))

`--pruner my_module:Magnitude` then prunes every site with it.

Axis letters here: `U` units of a site, `b` input channels of a unit (H for heads, G·H for key/value groups,
1 for neurons), `d_in = U·b`, `D` outputs, `E` levels, `S` steps, `X` experts, `F` their width.
"""

import functools
from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.components import Component, broken, guarded
from tyr_jax.pruning.hessian import DampingScale
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.pruning.saliency import Saliency


class Site(flax.struct.PyTreeNode):
    """A site to prune: what a local pruner is given.

    `gram [d_in, d_in]` is XᵀX of its inputs, and `weight [d_in, D]` is dense. `kept [E]` are the units kept
    at each level, and `schedule [S]` the units removed at each step, from `removal_schedule`. Static:
    `unit_size`, the input channels of a unit; `chunk`, the maximum number of units removed in a step;
    `damping`, λ as a fraction of the diagonal of XᵀX (of its mean, or channel by channel: `damping_scale`);
    and the `saliency` that orders the removal.

    `metric [D, D]`, symmetric, says how a change Δ of the output counts: as Δᵀ·metric·Δ, or as ‖Δ‖² without
    one. If the `rank [U]` of the units is given, the order in which they are removed is settled.
    """

    gram: jax.Array
    weight: jax.Array
    kept: jax.Array
    schedule: jax.Array
    unit_size: int = flax.struct.field(pytree_node=False)
    chunk: int = flax.struct.field(pytree_node=False)
    damping: float = flax.struct.field(pytree_node=False)
    damping_scale: DampingScale = flax.struct.field(pytree_node=False)
    saliency: Saliency = flax.struct.field(pytree_node=False)
    metric: jax.Array | None = None
    rank: jax.Array | None = None

    @property
    def units(self) -> int:
        """`U`, the number of units."""
        return len(self.weight) // self.unit_size

    def per_unit(self, channels: jax.Array) -> jax.Array:
        """Means `[U]` of values `[d_in]` over the channels of every unit."""
        return channels.reshape(self.units, self.unit_size).mean(axis=1)


class PrunedSite(NamedTuple):
    """Every level of one site: `weights [E, d_in, D]`, unit `rank [U]`, relative `error [E]`, `damping`.

    `rank` numbers units last-removed first; level `e` keeps the units with `rank < kept[e]`. `error` is
    `tr((W−W_e)ᵀ Hs (W−W_e) M) / tr(Wᵀ Hs W M)`, where M is the site's metric. `damping` is the factor used.
    It is larger than the one asked for if the Hessian could not be inverted accurately in float32.
    """

    weights: jax.Array
    rank: jax.Array
    error: jax.Array
    damping: jax.Array


class LocalPruner(Component):
    """Base of all local pruners."""

    role: ClassVar[str] = "pruner"

    def __call__(self, site: Site) -> PrunedSite:
        """Prune the site to every level; pure and traceable by JAX. If `site.rank` is given, levels keep the
        units of lowest rank."""
        raise NotImplementedError


@functools.partial(jax.jit, static_argnames="pruner")
def prune_site(site: Site, pruner: LocalPruner) -> PrunedSite:
    """Prune a site to all of its levels."""
    size = site.units * site.unit_size
    chex.assert_shape(site.gram, (size, size))
    chex.assert_shape(site.weight, (size, None))
    chex.assert_rank([site.kept, site.schedule], 1)
    return pruner(site)


@functools.partial(jax.jit, static_argnames="pruner")
def prune_experts(site: Site, pruner: LocalPruner) -> PrunedSite:
    """Prune every expert of a site, by itself, to all of the site's levels.

    `gram` is `[X, F, F]` and `weight [X·F, D]`. A level keeps the same number of neurons of
    every expert, so `rank` is `[X, F]`. The error is the mean of the experts' errors, weighted by the squares
    of their outputs.
    """
    weight = site.weight.reshape(*site.gram.shape[:2], -1)

    def prune(part: tuple[jax.Array, jax.Array]) -> tuple[PrunedSite, jax.Array]:
        gram, weight = part
        counted = weight if site.metric is None else jnp.matmul(weight, site.metric, precision=HIGHEST)
        energy = jnp.sum(counted * jnp.matmul(gram, weight.astype(gram.dtype), precision=HIGHEST))
        return prune_site(site.replace(gram=gram, weight=weight), pruner), energy

    each, energy = jax.lax.map(prune, (site.gram, weight))
    weights = jnp.moveaxis(each.weights, 0, 1).reshape(-1, *site.weight.shape)
    share = energy / jnp.maximum(jnp.sum(energy), jnp.finfo(energy.dtype).tiny)
    return PrunedSite(
        weights, each.rank, jnp.matmul(share, each.error, precision=HIGHEST), jnp.max(each.damping)
    )


@functools.partial(jax.jit, static_argnames="pruner")
def keep_experts(site: Site, pruner: LocalPruner) -> PrunedSite:
    """The levels of a site that keep whole experts, with their dense weights, whatever the `pruner`: those of
    the largest outputs, in squares weighted by the metric, or those of lowest `site.rank [X]` if that is
    settled.

    `gram` is `[X, F, F]` and `weight [X·F, D]`. Like the score of REAP (Lasby et al. 2025), outputs are
    weighted by the router. The error of a level is the share of what the removed experts put out.
    """
    weight = site.weight.reshape(*site.gram.shape[:2], -1).astype(site.gram.dtype)
    counted = weight if site.metric is None else jnp.matmul(weight, site.metric, precision=HIGHEST)
    energy = jnp.sum(counted * jnp.matmul(site.gram, weight, precision=HIGHEST), axis=(1, 2))
    rank = rank_by(energy) if site.rank is None else site.rank
    kept = rank < site.kept[:, None]
    lost = jnp.sum(jnp.where(kept, 0.0, energy), axis=1)
    error = lost / jnp.maximum(jnp.sum(energy), jnp.finfo(energy.dtype).tiny)
    rows = jnp.repeat(kept, site.gram.shape[1], axis=1)
    return PrunedSite(site.weight * rows[..., None], rank, error, jnp.zeros((), energy.dtype))


def removal_schedule(units: int, chunk: int, kept: np.ndarray, exists: np.ndarray) -> np.ndarray:
    """Units to remove at each step `[S]`: chunks of at most `chunk` that end on every level's boundary.

    `kept [E]` are the unit counts of the levels, of which those in `exists [E]` are needed. The schedule is
    padded with zeros to a length that depends only on shapes, so that sites with other levels share one
    compilation.
    """
    boundaries = np.unique(units - kept[exists])
    spans = np.diff(boundaries, prepend=0)
    steps = [min(chunk, span - done) for span in spans for done in range(0, span, chunk)]
    length = -(-units // chunk) + len(kept)
    return np.array(steps + [0] * (length - len(steps)), np.int32)


def unit_channels(units: jax.Array, unit_size: int) -> jax.Array:
    """Input channels `[u·b]` of `units [u]`."""
    return (units[:, None] * unit_size + jnp.arange(unit_size)).reshape(-1)


def unit_blocks(matrix: jax.Array, unit_size: int) -> jax.Array:
    """Diagonal blocks `[U, b, b]` of `matrix [d_in, d_in]`."""
    units = matrix.shape[0] // unit_size
    unit = jnp.arange(units)
    return matrix.reshape(units, unit_size, units, unit_size)[unit, :, unit]


def rank_by(score: jax.Array) -> jax.Array:
    """Rank of every unit `[U]` if units are removed in the order of their `score [U]`, the lowest first."""
    return (len(score) - 1 - jnp.argsort(jnp.argsort(score))).astype(jnp.int32)


def keep_rows(site: Site, rank: jax.Array) -> PrunedSite:
    """The levels of a site that keep dense rows, without an update: those of the units of lowest `rank [U]`,
    or of lowest `site.rank` if that is settled. Errors are in the site's metric."""
    rank = rank if site.rank is None else site.rank
    dense = site.weight.astype(site.gram.dtype)
    counted = dense if site.metric is None else jnp.matmul(dense, site.metric, precision=HIGHEST)
    rows = jnp.repeat(rank, site.unit_size)
    kept = rows < site.kept[:, None]

    def lost(kept: jax.Array) -> jax.Array:
        change, cost = (jnp.where(kept[:, None], 0, array) for array in (dense, counted))
        return jnp.sum(cost * jnp.matmul(site.gram, change, precision=HIGHEST))

    energy = lost(jnp.zeros(len(dense), bool))
    error = jnp.where(energy == 0, 0.0, jax.lax.map(lost, kept) / energy)
    return PrunedSite(site.weight * kept[..., None], rank, error, jnp.zeros((), dense.dtype))


def check_pruner(pruner: LocalPruner, saliency: Saliency) -> None:
    """Try a local pruner on abstract arrays.

    Raises:
        UserError: the pruner breaks its contract; names it and says how.
    """
    units, levels, outputs = 4, 3, 5
    for unit_size in (1, 2):
        size = units * unit_size

        def abstract(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        counts = abstract(levels, dtype=jnp.int32), abstract(units + levels, dtype=jnp.int32)
        arrays = abstract(size, size), abstract(size, outputs), *counts
        site = Site(*arrays, unit_size, 1, 0.01, "channel", saliency)  # type: ignore[arg-type]
        with guarded(pruner, "__call__"):
            pruned = jax.eval_shape(pruner.__call__, site)
        if not isinstance(pruned, PrunedSite):
            raise broken(pruner, f"returns a {type(pruned).__name__}: it must return a PrunedSite")
        wanted = PrunedSite((levels, size, outputs), (units,), (levels,), ())  # type: ignore[arg-type]
        for name, shape in wanted._asdict().items():
            found = getattr(getattr(pruned, name), "shape", None)
            if found != shape:
                raise broken(pruner, f"returns {name} of shape {found}: it must have the shape {shape}")
            type_, kind = getattr(pruned, name).dtype, jnp.integer if name == "rank" else jnp.floating
            if not jnp.issubdtype(type_, kind):
                raise broken(pruner, f"returns {name} of type {type_}: it must be {kind.__name__}")
