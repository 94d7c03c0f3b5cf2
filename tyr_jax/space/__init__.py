"""What pruning and search share: kinds of site, levels in whole units, budgets, shifts (method §2 and §3).

A row of the space is a kind of site, as in `tyr_jax.pruning.kinds`. Within a kind all sites share one integer
step `u`; the levels of a site keep `centre + j·u` units, and a shift moves one step from one site of a kind
to another, so that the number of units kept in a kind is the same for every candidate.
"""

from tyr_jax.space.budgets import Budget
from tyr_jax.space.kinds import Kind
from tyr_jax.space.levels import (
    Candidates,
    Fitness,
    LevelGrid,
    Levels,
    centre_distribution,
    joint_grid,
    kept_units,
    level_grid,
    levels_of,
    step_units,
    uniform_grid,
    values_at,
    worthwhile_grid,
)
from tyr_jax.space.repair import allowed, picked, relaxed, repaired
from tyr_jax.space.shifts import mutate, sparsity_shift
from tyr_jax.space.units import check_multiple, uniform_centres, uniform_split, unit_budget

__all__ = [
    "Budget",
    "Candidates",
    "Fitness",
    "Kind",
    "LevelGrid",
    "Levels",
    "allowed",
    "centre_distribution",
    "check_multiple",
    "joint_grid",
    "kept_units",
    "level_grid",
    "levels_of",
    "mutate",
    "picked",
    "relaxed",
    "repaired",
    "sparsity_shift",
    "step_units",
    "uniform_centres",
    "uniform_grid",
    "uniform_split",
    "unit_budget",
    "values_at",
    "worthwhile_grid",
]
