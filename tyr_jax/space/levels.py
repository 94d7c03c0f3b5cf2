"""Sparsity levels of every site, in whole units (method §2).

Axis letters: `C` candidates, `S` kinds of site, `L` layers, `E` levels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tyr_jax.space.kinds import Kind
from tyr_jax.space.units import uniform_centres, unit_budget

Levels = np.ndarray
"""A level for every site, int32 `[S, L]`."""

Candidates = np.ndarray
"""Levels of several candidates, int32 `[C, S, L]`."""

Fitness = np.ndarray
"""The objective of every candidate `[C]`, float64; lower is better."""


@dataclasses.dataclass(frozen=True, eq=False)
class LevelGrid:
    """Levels of every site around its centre; level `E // 2` is the centre, higher levels are denser.

    `kept [S, L, E]` units (clipped where a level does not exist), `exists [S, L, E]`, `step [2]` units.
    """

    kept: np.ndarray
    exists: np.ndarray
    step: np.ndarray

    @property
    def centre(self) -> int:
        """Index of the centre level."""
        return self.kept.shape[-1] // 2


def step_units(kind: Kind, interval: float) -> int:
    """Units in one level step: `interval` of the layer's units, a positive multiple of `kind.multiple`."""
    return max(1, round(interval * kind.units / kind.multiple)) * kind.multiple


def level_grid(
    kinds: Sequence[Kind],
    centres: np.ndarray,
    levels: int,
    interval: float,
    whole: ArrayLike = False,
) -> LevelGrid:
    """`levels` levels around `centres [S, L]` (units), `interval` (a fraction of a layer's units) apart.
    Sites that are to stay `whole [S, L]` have the centre only. Levels that no site can have are left out."""
    steps = np.array([step_units(kind, interval) for kind in kinds])
    most = np.stack([kind.most(centres.shape[1]) for kind in kinds])[..., None]
    # No site has levels further from its centre than it has units.
    reach = min(levels // 2, int((most // steps[:, None, None]).max()) + 1)
    offsets = np.arange(-reach, levels - 2 * (levels // 2) + reach)
    kept = centres[..., None] + offsets * steps[:, None, None]
    exists = (kept >= 0) & (kept <= most)
    exists &= (offsets == 0) | ~np.asarray(whole)[..., None]
    return LevelGrid(np.clip(kept, 0, most).astype(np.int32), exists, steps)


def uniform_grid(
    kinds: Sequence[Kind], depth: int, sparsity: float, levels: int, interval: float
) -> LevelGrid:
    """Levels around the uniform distribution of a sparsity; raises as `unit_budget` does."""
    whole = np.stack([~kind.there(depth) for kind in kinds])
    budgets = [unit_budget(kind, int((~row).sum()), sparsity) for kind, row in zip(kinds, whole, strict=True)]
    return level_grid(kinds, uniform_centres(kinds, budgets, whole), levels, interval, whole)


def joint_grid(grids: Sequence[LevelGrid]) -> LevelGrid:
    """The levels of all `grids`, which share their steps, so that one supernet can serve each of them."""
    if len(grids) == 1:
        return grids[0]
    kinds, depth, _ = grids[0].kept.shape
    sites = [
        np.unique(np.concatenate([grid.kept[kind, layer][grid.exists[kind, layer]] for grid in grids]))
        for kind in range(kinds)
        for layer in range(depth)
    ]
    return packed_grid(sites, grids[0].step)


def packed_grid(sites: Sequence[np.ndarray], step: np.ndarray) -> LevelGrid:
    """A grid of `sites`, given the units kept at the levels of each, kind by kind.

    A site that needs fewer levels than others is padded on both sides with levels that do not exist.
    """
    count = max(map(len, sites))
    # The middle level that exists stays in the middle of the grid.
    fronts = [count // 2 - len(site) // 2 for site in sites]
    pads = [(front, count - len(site) - front) for front, site in zip(fronts, sites, strict=True)]
    kept = [np.pad(site, pad, mode="edge") for site, pad in zip(sites, pads, strict=True)]
    exists = [np.pad(np.ones(len(site), bool), pad) for site, pad in zip(sites, pads, strict=True)]
    shape = (len(step), -1, count)
    return LevelGrid(np.reshape(kept, shape).astype(np.int32), np.reshape(exists, shape), step)


def worthwhile_grid(grid: LevelGrid, price: np.ndarray) -> LevelGrid:
    """`grid` without levels that cost as much, by `price [R, S, L, E]`, as the next denser one."""
    denser = np.minimum(np.arange(price.shape[-1]) + 1, price.shape[-1] - 1)
    equal = np.all(price[..., denser] == price, axis=0)
    same = equal & grid.exists[..., denser] & (denser > np.arange(len(denser)))
    wanted = grid.exists & ~same
    if (wanted == grid.exists).all():
        return grid
    rows = zip(*(array.reshape(-1, price.shape[-1]) for array in (grid.kept, wanted)), strict=True)
    return packed_grid([kept[there] for kept, there in rows], grid.step)


def centre_distribution(grid: LevelGrid) -> np.ndarray:
    """The distribution at which every site sits at its centre, int32 levels `[S, L]`."""
    return np.full(grid.kept.shape[:2], grid.centre, np.int32)


def values_at(values: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """`values [..., S, L, E]` at `levels [..., S, L]`; leading axes broadcast."""
    values, levels = np.asarray(values), np.asarray(levels)
    shape = np.broadcast_shapes(values.shape[:-1], levels.shape)
    every = np.broadcast_to(values, (*shape, values.shape[-1]))
    return np.take_along_axis(every, np.broadcast_to(levels, shape)[..., None], axis=-1)[..., 0]


def kept_units(grid: LevelGrid, distribution: np.ndarray) -> np.ndarray:
    """Units kept at every site `[..., S, L]` by level distributions `[..., S, L]` of a grid."""
    return values_at(grid.kept, distribution)


def levels_of(grid: LevelGrid, kept: np.ndarray) -> Levels:
    """For every site, the sparsest level of a grid that keeps at least `kept [S, L]` units, or the densest if
    none does: `[S, L]`."""
    enough = (grid.kept >= kept[..., None]) & grid.exists
    last = grid.exists.shape[-1] - 1 - np.argmax(grid.exists[..., ::-1], axis=-1)
    return np.where(enough.any(axis=-1), np.argmax(enough, axis=-1), last).astype(np.int32)
