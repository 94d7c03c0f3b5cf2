"""The search space: sparsity levels in whole units, budgets, and the sparsity shift (method §2 and §3).

Two kinds of site share the space: row 0 is attention (units: heads or key/value groups), row 1 the FFN
(units: neurons). Within a kind all sites share one integer step `u`; the levels of a site keep
`centre + j·u` units, and a shift moves one step from one site of a kind to another, so that the number of
units kept in a kind is the same for every candidate. Axis letters: `L` layers, `E` levels, `C` candidates.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from tyr_jax import devices
from tyr_jax.errors import UserError

KINDS = ("attention", "ffn")
ATTENTION, FFN = 0, 1

BUCKETS = 8
"""Widths that what keeps only some of a site's units runs at, at most: each is compiled, which takes most of
two minutes for those of a large model."""

CPU_BUCKETS = 16
"""The same on a CPU, where they compile in seconds."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of site: `units` a layer has, and the `multiple` they are counted in."""

    name: str
    units: int
    multiple: int


@dataclasses.dataclass(frozen=True, eq=False)
class LevelGrid:
    """Levels of every site around its centre; level `E // 2` is the centre, higher levels are denser.

    `kept [2, L, E]` units (clipped where a level does not exist), `exists [2, L, E]`, `step [2]` units.
    """

    kept: np.ndarray
    exists: np.ndarray
    step: np.ndarray

    @property
    def centre(self) -> int:
        """Index of the centre level."""
        return self.kept.shape[-1] // 2


def bucket_widths(units: int, unit_size: int = 1) -> tuple[int, ...]:
    """At most `BUCKETS` widths from small to whole, evenly apart, each of whole units of `unit_size`."""
    count = CPU_BUCKETS if devices.are_cpus() else BUCKETS
    edges = np.unique(-(-units * np.arange(1, count + 1) // count))
    return tuple(int(edge) * unit_size for edge in edges)


def step_units(kind: Kind, interval: float) -> int:
    """Units in one level step: `interval` of the layer's units, a positive multiple of `kind.multiple`."""
    return max(1, round(interval * kind.units / kind.multiple)) * kind.multiple


def unit_budget(kind: Kind, depth: int, sparsity: float, whole: int = 0) -> int:
    """Units that all `depth` sites of a kind keep together, `whole` of them all of theirs: what the others
    keep is a multiple of `kind.multiple`.

    Raises:
        UserError: the sparsity, in whole units, would leave the kind intact or remove it altogether.
    """
    total, fixed = depth * kind.units, whole * kind.units
    budget = fixed + round(((1 - sparsity) * total - fixed) / kind.multiple) * kind.multiple
    # Of a width that is no multiple, a layer can keep at most the multiple below it.
    most = fixed + (depth - whole) * (kind.units // kind.multiple) * kind.multiple
    most = min(most, total - kind.multiple)
    if kind.units < kind.multiple:
        raise UserError(
            f"a layer has {kind.units} {kind.name} units, fewer than the multiple of {kind.multiple} they "
            "are to be kept in; lower --neuron-multiple"
        )
    if whole and not fixed <= budget <= most:
        raise UserError(
            f"sparsity {sparsity:g} would keep {budget} of {total} {kind.name} units, but {whole} of {depth} "
            f"layers are to keep all of theirs, which are {fixed}; name fewer layers, or a lower sparsity"
        )
    if not 0 < budget <= most:
        state = "intact" if budget > 0 else "without a single unit"
        raise UserError(
            f"sparsity {sparsity:g} would leave {kind.name} {state}: of {total} units {budget} would be "
            f"kept, in multiples of {kind.multiple}; choose a sparsity between {1 - most / total:.4g} "
            f"and {1 - kind.multiple / total:.4g}"
        )
    return budget


def uniform_split(kind: Kind, depth: int, budget: int) -> np.ndarray:
    """Units kept per site `[L]`: as equal as whole multiples allow, the remainder spread over the depth."""
    shares = np.arange(depth + 1) * (budget // kind.multiple) // depth
    return np.diff(shares) * kind.multiple


def uniform_centres(kinds: tuple[Kind, Kind], budgets: tuple[int, ...], whole: np.ndarray) -> np.ndarray:
    """Units kept `[2, L]` when the sites of a kind keep the same share of its budget, but for those that are
    to stay `whole [2, L]`."""
    kept = np.empty(whole.shape, int)
    for row, stays, kind, budget in zip(kept, whole, kinds, budgets, strict=True):
        row[stays] = kind.units
        row[~stays] = uniform_split(kind, int((~stays).sum()), budget - int(stays.sum()) * kind.units)
    return kept


def level_grid(
    kinds: tuple[Kind, Kind],
    centres: np.ndarray,
    levels: int,
    interval: float,
    whole: ArrayLike = False,
) -> LevelGrid:
    """Levels around `centres [2, L]` (units): `levels` of them, `interval` (a fraction) apart; sites that are
    to stay `whole [2, L]` have that one only."""
    steps = np.array([step_units(kind, interval) for kind in kinds])
    units = np.array([kind.units for kind in kinds])
    offsets = np.arange(levels) - levels // 2
    kept = centres[..., None] + offsets * steps[:, None, None]
    exists = (kept >= 0) & (kept <= units[:, None, None])
    exists &= (offsets == 0) | ~np.asarray(whole)[..., None]
    return LevelGrid(np.clip(kept, 0, units[:, None, None]).astype(np.int32), exists, steps)


def uniform_grid(
    kinds: tuple[Kind, Kind], depth: int, sparsity: float, levels: int, interval: float
) -> LevelGrid:
    """Levels around the uniform distribution of a sparsity; raises as `unit_budget` does."""
    budgets = tuple(unit_budget(kind, depth, sparsity) for kind in kinds)
    centres = uniform_centres(kinds, budgets, np.zeros((2, depth), bool))
    return level_grid(kinds, centres, levels, interval)


def joint_grid(grids: Sequence[LevelGrid]) -> LevelGrid:
    """The levels of all `grids`, which share their steps: what one supernet needs to serve each of them.

    A site that needs fewer levels than others is padded on both sides with levels that do not exist.
    """
    if len(grids) == 1:
        return grids[0]
    kinds, depth, _ = grids[0].kept.shape
    sites = [
        np.unique(np.concatenate([grid.kept[kind, layer][grid.exists[kind, layer]] for grid in grids]))
        for kind in range(kinds)
        for layer in range(depth)
    ]
    count = max(map(len, sites))
    # The middle of the levels that exist lies in the middle of all.
    fronts = [count // 2 - len(site) // 2 for site in sites]
    pads = [(front, count - len(site) - front) for front, site in zip(fronts, sites, strict=True)]
    kept = [np.pad(site, pad, mode="edge") for site, pad in zip(sites, pads, strict=True)]
    exists = [np.pad(np.ones(len(site), bool), pad) for site, pad in zip(sites, pads, strict=True)]
    shape = (kinds, depth, count)
    return LevelGrid(np.reshape(kept, shape), np.reshape(exists, shape), grids[0].step)


def centre_distribution(grid: LevelGrid) -> np.ndarray:
    """The distribution at which every site sits at its centre, int32 levels `[2, L]`."""
    return np.full(grid.kept.shape[:2], grid.centre, np.int32)


def values_at(values: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """`values [..., 2, L, E]` at `levels [..., 2, L]`; leading axes broadcast."""
    values, levels = np.asarray(values), np.asarray(levels)
    shape = np.broadcast_shapes(values.shape[:-1], levels.shape)
    every = np.broadcast_to(values, (*shape, values.shape[-1]))
    return np.take_along_axis(every, np.broadcast_to(levels, shape)[..., None], axis=-1)[..., 0]


def kept_units(grid: LevelGrid, distribution: np.ndarray) -> np.ndarray:
    """Units kept at every site `[..., 2, L]` by level distributions `[..., 2, L]` of a grid."""
    return values_at(grid.kept, distribution)


def levels_of(grid: LevelGrid, kept: np.ndarray) -> np.ndarray:
    """The levels `[2, L]` of a grid that keep `kept [2, L]` units, which must be levels of it."""
    return np.argmax((grid.kept == kept[..., None]) & grid.exists, axis=-1).astype(np.int32)


def sparsity_shift(key: jax.Array, distribution: jax.Array, exists: jax.Array) -> jax.Array:
    """Move one level step between two sites of one kind (method §3).

    Args:
        key: PRNG key.
        distribution: levels `[2, L]`.
        exists: levels that exist `[2, L, E]`.

    Returns:
        The shifted levels `[2, L]`: a site drawn among all that can become denser, and a site of the same
        kind that can become sparser. Kinds in which no such pair exists are never drawn; if there is none
        at all the distribution comes back unchanged.
    """
    depth, levels = exists.shape[1:]

    def can_move(by: int) -> jax.Array:
        target = distribution + by
        present = jnp.take_along_axis(exists, jnp.clip(target, 0, levels - 1)[..., None], axis=-1)[..., 0]
        return present & (target >= 0) & (target < levels)

    up, down = can_move(+1), can_move(-1)
    # A denser site needs a partner other than itself that can become sparser.
    partners = down.sum(axis=1, keepdims=True) - down > 0
    up = up & partners
    key_up, key_down = jax.random.split(key)
    gains = jax.random.categorical(key_up, jnp.where(up, 0.0, -jnp.inf).reshape(-1))
    kind, site = gains // depth, gains % depth
    partner_mask = down[kind] & (jnp.arange(depth) != site)
    loses = jax.random.categorical(key_down, jnp.where(partner_mask, 0.0, -jnp.inf))
    shifted = distribution.at[kind, site].add(1).at[kind, loses].add(-1)
    return jnp.where(jnp.any(up), shifted, distribution)


def mutate(key: jax.Array, parent: jax.Array, exists: jax.Array, max_shifts: int = 4) -> jax.Array:
    """An offspring `[2, L]` of `parent [2, L]`: the minimum of two draws from {1…max_shifts} shifts."""
    key_count, key_shifts = jax.random.split(key)
    count = jax.random.randint(key_count, (2,), 1, max_shifts + 1).min()

    def body(step: int, distribution: jax.Array) -> jax.Array:
        return sparsity_shift(jax.random.fold_in(key_shifts, step), distribution, exists)

    return jax.lax.fori_loop(0, count, body, parent)
