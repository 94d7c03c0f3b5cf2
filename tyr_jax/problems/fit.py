"""A tabulated problem fitted to candidates that a model has really scored.

The logarithm of the objective is linear in the tables of a `Problem`: in what every level costs alone, and in
the products of the features of two sites. Ridge regression fits it, first to the mean over sequences, then,
with a stronger penalty, to each sequence's deviation from it.

Searches go where the tables promise too much. So the penalties are those with which the tables predict best
what searches have proposed: each set of such candidates is left out in turn. Candidates drawn at random
from all sets would be near others that were not left out, and penalties would be far too weak.

Axis letters: `n` candidates, `S` sequences, `L` layers, `E` levels, `p` columns.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.problems.problem import Problem
from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import values_at

LEVEL_RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Strengths of the ridge on levels that are tried."""

PAIR_RIDGES = (1.0, 10.0, 100.0, 1000.0)
"""Strengths of the ridge on pairs that are tried."""

CAUTIOUS = (1.0, 1000.0)
"""Ridges on levels and on pairs as long as searches have proposed less than two sets of candidates."""

SEQUENCE_RIDGE = 10.0
"""How much stronger the ridge is on what one sequence adds than on the mean."""


class Scores(NamedTuple):
    """Candidates `levels [n, 2, L]` with their objective on each sequence of the search text,
    `search [n, S]`, and on the held-out text, `held_out [n]`."""

    levels: np.ndarray
    search: np.ndarray
    held_out: np.ndarray

    def joined(self, other: "Scores") -> "Scores":
        """Both sets of candidates."""
        return Scores(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Columns(NamedTuple):
    """The design of the regression for a space: the level of each site that costs nothing, `origin [2, L]`,
    and the `feature [2, L, E]`."""

    origin: np.ndarray
    feature: np.ndarray

    @classmethod
    def around(cls, space: SearchSpace, origin: np.ndarray) -> "Columns":
        """Features rise with the level error of a site, from 0 at the origin to at most 1 away from it."""
        exists = np.asarray(space.exists)
        root = np.sqrt(np.maximum(np.asarray(space.sites.error, float), 0))
        away = np.where(exists, root - values_at(root, origin)[..., None], 0)
        most = np.abs(away).max(axis=-1, keepdims=True)
        return cls(origin, away / np.where(most > 0, most, 1))

    def of_levels(self, levels: np.ndarray) -> np.ndarray:
        """One column for every level of a site but that of the origin, `[n, p]`."""
        count = self.feature.shape[-1]
        chosen = (np.arange(count) == levels[..., None]) & (np.arange(count) != self.origin[..., None])
        return chosen.reshape(len(levels), -1).astype(float)

    def of_pairs(self, levels: np.ndarray) -> np.ndarray:
        """One column for every pair of sites, `[n, p]`."""
        features = values_at(self.feature, levels).reshape(len(levels), -1)
        return features[:, self.first] * features[:, self.second]

    def design(self, levels: np.ndarray) -> np.ndarray:
        """All columns `[n, p]`: a constant, those of levels, and those of pairs."""
        return np.concatenate(
            [np.ones((len(levels), 1)), self.of_levels(levels), self.of_pairs(levels)], axis=1
        )

    def penalty(self, ridges: tuple[float, float]) -> np.ndarray:
        """The penalty `[p]` of each column, with `ridges` on levels and on pairs."""
        counts = self.feature.size, len(self.first)
        return np.concatenate([[1e-9], *(np.full(*pair) for pair in zip(counts, ridges, strict=True))])

    @property
    def first(self) -> np.ndarray:
        """The first sites of all pairs."""
        return np.triu_indices(self.origin.size, 1)[0]

    @property
    def second(self) -> np.ndarray:
        """The second sites of all pairs."""
        return np.triu_indices(self.origin.size, 1)[1]


class Fit(NamedTuple):
    """Logarithms of the objective: `base [k]`, `alone [k, 2, L, E]` and `pairs [2·L, 2·L]` for `k` texts that
    share the pairs."""

    base: np.ndarray
    alone: np.ndarray
    pairs: np.ndarray


def ridge(design: np.ndarray, targets: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Coefficients `[p, k]` of `targets [n, k]` on `design [n, p]`, each with a quadratic `penalty [p]`."""
    gram = design.T @ design + np.diag(penalty)
    return np.linalg.solve(gram, design.T @ targets)


def fitted(columns: Columns, levels: np.ndarray, logs: np.ndarray, ridges: tuple[float, float]) -> Fit:
    """The fit to `logs [n, k]` of candidates `levels [n, 2, L]`, with `ridges` on levels and on pairs."""
    design, penalty = columns.design(levels), columns.penalty(ridges)
    mean = logs.mean(axis=1, keepdims=True)
    found, rest = ridge(design, mean, penalty), logs - mean
    single = design[:, : 1 + columns.feature.size]
    own = ridge(single, rest, penalty[: single.shape[1]] * SEQUENCE_RIDGE + 1e-9)
    each = found[: single.shape[1]] + own
    sites = columns.origin.size
    table = np.zeros((sites, sites))
    table[columns.first, columns.second] = table[columns.second, columns.first] = found[single.shape[1] :, 0]
    alone = each[1:].T.reshape(-1, *columns.feature.shape)
    return Fit(each[0], alone, table)


def predicted(columns: Columns, fit: Fit, levels: np.ndarray) -> np.ndarray:
    """The logarithms `[n, k]` that a fit predicts for candidates `levels [n, 2, L]`."""
    alone = np.stack([values_at(table, levels).sum(axis=(1, 2)) for table in fit.alone], axis=1)
    both = columns.of_pairs(levels) @ fit.pairs[columns.first, columns.second]
    return fit.base + alone + both[:, None]


def best_ridges(columns: Columns, sets: Sequence[Scores]) -> tuple[float, float]:
    """The ridges on levels and on pairs with which each set but the first is predicted best from all others:
    with the least squared error of the mean logarithm. With less than two others, they are `CAUTIOUS`."""
    if len(sets) < 3:
        return CAUTIOUS
    designs = [columns.design(each.levels) for each in sets]
    means = [logs_of(each).mean(axis=1) for each in sets]
    grams = [design.T @ design for design in designs]
    targets = [design.T @ mean for design, mean in zip(designs, means, strict=True)]
    gram, target = np.sum(grams, axis=0), np.sum(targets, axis=0)

    def error(ridges: tuple[float, float]) -> float:
        penalty = np.diag(columns.penalty(ridges))
        lost = 0.0
        for out in range(1, len(sets)):
            found = np.linalg.solve(gram - grams[out] + penalty, target - targets[out])
            lost += float(np.sum((designs[out] @ found - means[out]) ** 2))
        return lost

    return min(itertools.product(LEVEL_RIDGES, PAIR_RIDGES), key=error)


def logs_of(scores: Scores) -> np.ndarray:
    """Logarithms of the objective `[n, S + 1]`: on each sequence of the search text, and on held-out text.

    Raises:
        UserError: a score has no logarithm.
    """
    every = np.column_stack([scores.search, scores.held_out])
    bad = int(np.sum(~(np.isfinite(every) & (every > 0)).all(axis=1)))
    if bad:
        raise UserError(f"{bad} of {len(every)} candidates have scores that are not finite and above zero")
    return np.log(every)


def fit_problem(space: SearchSpace, start: np.ndarray, sets: Sequence[Scores]) -> Problem:
    """The problem that predicts `sets` of scores, around the levels to start from, `start [2, L]`. The first
    set is spread over the space, the others are what searches have proposed."""
    columns, scores = Columns.around(space, start), functools.reduce(Scores.joined, sets)
    fit = fitted(columns, scores.levels, logs_of(scores), best_ridges(columns, sets))
    return Problem(
        space=space,
        start=jnp.asarray(start),
        base=jnp.asarray(fit.base[:-1], jnp.float32),
        alone=jnp.asarray(fit.alone[:-1], jnp.float32),
        feature=jnp.asarray(columns.feature, jnp.float32),
        pairs=jnp.asarray(fit.pairs, jnp.float32),
        held_out_base=jnp.float32(fit.base[-1]),
        held_out_alone=jnp.asarray(fit.alone[-1], jnp.float32),
        optimum=jnp.float32(jnp.nan),
        link="exp",
    )


def errors_of(problem: Problem, scores: Scores) -> dict[str, float]:
    """How well a problem predicts candidates that it was not fitted to: the root mean square error of the
    logarithm of the objective, the share of its variance that is explained, and the rank correlation. On the
    search text, it is the mean of the sequences' logarithms that is predicted."""
    search = np.log(np.asarray(problem.replace(  # type: ignore[attr-defined]
        held_out_base=problem.base.mean(), held_out_alone=problem.alone.mean(axis=0)
    ).held_out(scores.levels)))  # fmt: skip
    told = {"search": (search, np.log(scores.search).mean(axis=1))}
    told["held-out"] = np.log(np.asarray(problem.held_out(scores.levels))), np.log(scores.held_out)
    found = {}
    for text, (prediction, truth) in told.items():
        ranks = [np.argsort(np.argsort(values)) for values in (prediction, truth)]
        found[f"{text} rms error of log"] = float(np.sqrt(np.mean((prediction - truth) ** 2)))
        found[f"{text} R²"] = float(1 - np.mean((prediction - truth) ** 2) / np.var(truth))
        found[f"{text} rank correlation"] = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return found
