"""Units that all sites of a kind keep together, and how a uniform model divides them (method §2).

Axis letters: `S` kinds of site, `L` layers.
"""

from collections.abc import Sequence

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.space.kinds import Kind


def check_multiple(kind: Kind) -> None:
    """Refuse a multiple that is larger than a layer's number of units.

    Raises:
        UserError: names both numbers.
    """
    if kind.units < kind.multiple:
        raise UserError(
            f"a layer has {kind.units} {kind.name} units, but must keep a multiple of "
            f"{kind.multiple}; lower --neuron-multiple, or set `fine=False` in a kind of your own"
        )


def unit_budget(kind: Kind, depth: int, sparsity: float, whole: int = 0) -> int:
    """Units that all `depth` sites of a kind keep together. Of these sites, `whole` keep all their units;
    what the others keep is a multiple of `kind.multiple`.

    Raises:
        UserError: the sparsity, in whole units, would leave the kind intact or remove it altogether, or the
            `whole` sites alone keep more; or as `check_multiple`.
    """
    total, fixed = depth * kind.units, whole * kind.units
    budget = fixed + round(((1 - sparsity) * total - fixed) / kind.multiple) * kind.multiple
    # If a width is not a multiple, a layer can keep at most the multiple below it.
    most = fixed + (depth - whole) * (kind.units // kind.multiple) * kind.multiple
    most = min(most, total - kind.multiple)
    check_multiple(kind)
    if whole and budget < fixed:
        raise UserError(
            f"sparsity {sparsity:g} would keep only {budget} of {total} {kind.name} units, but the "
            f"layers that stay whole have {fixed}; list fewer layers in --keep-heads or --keep-neurons, or "
            "lower --sparsity"
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
    shares = np.arange(depth + 1) * (budget // kind.multiple) // max(depth, 1)
    return np.diff(shares) * kind.multiple


def uniform_centres(kinds: Sequence[Kind], budgets: Sequence[int], whole: np.ndarray) -> np.ndarray:
    """Units kept `[S, L]` when the sites of a kind keep equal shares of its budget, except those that are to
    stay `whole [S, L]`, as all do in layers that lack the kind."""
    kept = np.stack([kind.most(whole.shape[1]) for kind in kinds])
    for row, stays, kind, budget in zip(kept, whole, kinds, budgets, strict=True):
        row[~stays] = uniform_split(kind, int((~stays).sum()), budget - int(row[stays].sum()))
    return kept
