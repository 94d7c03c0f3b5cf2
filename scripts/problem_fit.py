"""A tabulated problem fitted to candidates that a model has really scored.

The logarithm of the objective is linear in the tables of a `Problem`: in what every level costs alone, and in
the products of the features of two sites. Ridge regression fits it, first to the mean over sequences, then,
with a stronger penalty, to each sequence's deviation from it.

Axis letters: `n` candidates, `B` sequences, `S` kinds of site, `L` layers, `E` levels, `p` columns.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.problems.problem import Problem
from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import values_at

LEVEL_RIDGE = 0.01
"""Strength of the ridge on levels. A strong one shrinks all costs, and searches then find candidates for
which the tables promise far too much. On SmolLM2, the error is the same from 0.0003 to 0.03."""

PAIR_RIDGE = 30.0
"""Strength of the ridge on pairs. On SmolLM2, the error is nearly the same from 10 to 1000."""

SEQUENCE_RIDGE = 10.0
"""How much stronger the ridge is on what one sequence adds than on the mean."""


class Scores(NamedTuple):
    """Candidates `levels [n, S, L]` with their objective on each sequence of the search text,
    `search [n, B]`, and on the held-out text, `held_out [n]`."""

    levels: np.ndarray
    search: np.ndarray
    held_out: np.ndarray

    def joined(self, other: "Scores") -> "Scores":
        """Both sets of candidates."""
        return Scores(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Columns(NamedTuple):
    """The design of the regression for a space: the level of each site that costs nothing, `origin [S, L]`,
    and the `feature [S, L, E]`."""

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

    def penalty(self) -> np.ndarray:
        """The penalty `[p]` of each column."""
        levels, pairs = np.full(self.feature.size, LEVEL_RIDGE), np.full(len(self.first), PAIR_RIDGE)
        return np.concatenate([[1e-9], levels, pairs])

    @property
    def first(self) -> np.ndarray:
        """The first sites of all pairs."""
        return np.triu_indices(self.origin.size, 1)[0]

    @property
    def second(self) -> np.ndarray:
        """The second sites of all pairs."""
        return np.triu_indices(self.origin.size, 1)[1]


class Fit(NamedTuple):
    """Logarithms of the objective: `base [k]`, `alone [k, S, L, E]` and `pairs [S·L, S·L]` for `k` texts that
    share the pairs."""

    base: np.ndarray
    alone: np.ndarray
    pairs: np.ndarray


def ridge(design: np.ndarray, targets: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Coefficients `[p, k]` of `targets [n, k]` on `design [n, p]`, each with a quadratic `penalty [p]`."""
    gram = design.T @ design + np.diag(penalty)
    return np.linalg.solve(gram, design.T @ targets)


def fitted(columns: Columns, levels: np.ndarray, logs: np.ndarray) -> Fit:
    """The fit to `logs [n, k]` of candidates `levels [n, S, L]`."""
    design, penalty = columns.design(levels), columns.penalty()
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
    """The logarithms `[n, k]` that a fit predicts for candidates `levels [n, S, L]`."""
    alone = np.stack([values_at(table, levels).sum(axis=(1, 2)) for table in fit.alone], axis=1)
    both = columns.of_pairs(levels) @ fit.pairs[columns.first, columns.second]
    return fit.base + alone + both[:, None]


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


def fit_problem(space: SearchSpace, start: np.ndarray, scores: Scores) -> Problem:
    """The problem that predicts `scores`, around the levels to start from, `start [S, L]`."""
    columns = Columns.around(space, start)
    fit = fitted(columns, scores.levels, logs_of(scores))
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
    search = np.log(np.asarray(problem.replace(
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
