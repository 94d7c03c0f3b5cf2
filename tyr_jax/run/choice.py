"""Which of a run's models is written: the uniform one, unless another is surely better.

A search and a reconstruction fit what they find to the text that they see, and a search is only as good as
its estimates. So their models are compared with the uniform one on text that neither pruning, search nor
evaluation uses, by a one-sided paired t-test over its sequences (Student, "The probable error of a mean",
Biometrika 1908).

Axis letters: `B` sequences.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import ttest_rel

from tyr_jax.workspace.records import PRUNED, Choice, Comparison, Name

DOUBT = 0.05
"""A model is surely better than a simpler one if a difference like theirs would be this rare by chance."""


def doubt(ours: np.ndarray, simpler: np.ndarray) -> float:
    """How often chance alone would give divergences `[B]` as much lower than those of a `simpler` model: the
    p-value of the one-sided paired t-test. A model that overflows is never the better one."""
    if not np.isfinite(ours).all():
        return 1.0
    if not np.isfinite(simpler).all():
        return 0.0
    difference = ours - simpler
    if np.ptp(difference) == 0:
        return float(difference[0] >= 0)
    return float(ttest_rel(ours, simpler, alternative="less").pvalue)


def choose(divergences: Mapping[str, np.ndarray]) -> tuple[Name, Choice]:
    """(the model to write, the record of the choice) of models with divergences `[B]` from the dense one, by
    name: begin with the simplest, and take another where it is surely better than what was chosen before."""
    names = [name for name in PRUNED if name in divergences]
    chosen, compared = names[0], []
    for name in names[1:]:
        p = doubt(divergences[name], divergences[chosen])
        compared.append(Comparison(model=name, than=chosen, p=p))
        chosen = name if p < DOUBT else chosen
    kl: dict[str, float | None] = {}
    for name in names:
        mean = float(np.mean(divergences[name]))
        kl[name] = mean if math.isfinite(mean) else None
    return chosen, Choice(sequences=len(divergences[chosen]), kl=kl, compared=compared)
