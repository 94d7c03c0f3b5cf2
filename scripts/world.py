"""A nested supernet of a model, and text to search on and to judge on: what studies of searches share."""

import dataclasses
from typing import NamedTuple, Self

import numpy as np
from on_model import OnText

from tyr_jax import space
from tyr_jax.errors import require
from tyr_jax.io.origin import Origin
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.scoring import nested, scorer, slopes
from tyr_jax.scoring.objective import KL, Objective, TeacherBatch
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.search.contract import SearchSpace, Sites

OBJECTIVE = KL()


@dataclasses.dataclass(frozen=True)
class OnSupernet(OnText):
    """A model, and how much text its supernet is built, searched and judged on."""

    sequence_length: int = 256
    """Tokens of a sequence."""
    calibration_tokens: int = 16384
    """Tokens that the supernet is built on."""
    search_tokens: int = 32768
    """Tokens that the searches draw from."""
    held_out_tokens: int = 16384
    """Tokens that the results are scored on."""


class World(NamedTuple):
    """A nested supernet, what its fold measured at its sites, and the texts to search on and to judge on."""

    origin: Origin
    config: ModelConfig
    params: Params
    grid: space.LevelGrid
    net: nested.Nested
    sites: Sites
    budget: space.Budget
    pool: TeacherBatch
    held_out: TeacherBatch
    objective: Objective = OBJECTIVE

    def scored_by(self, objective: Objective) -> Self:
        """The same, with candidates scored by another objective."""
        pool = teacher_targets(self.params, np.asarray(self.pool.tokens), self.config, objective)
        return self._replace(pool=pool, objective=objective)

    def space(self) -> SearchSpace:
        """What a search may choose from."""
        return SearchSpace(self.grid.kept, self.grid.exists, self.budget, self.sites, *self.pool.tokens.shape)

    def score(self, candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """Objective `[C]` on sequences of the search text."""
        return scorer.score_population(
            self.net, candidates, self.pool, sequences, self.config, self.objective
        )

    def slopes(self, levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """Slopes `[P, S, L, E]` on parts of sequences of the search text."""
        return slopes.pool_slopes(self.net, levels, self.pool, sequences, self.config, self.objective)

    def judge(self, candidates: np.ndarray, objective: Objective = OBJECTIVE) -> np.ndarray:
        """KL divergence `[C]` on the held-out text, or another objective that needs no hidden states."""
        everything = np.arange(len(self.held_out.tokens))
        return scorer.score_population(
            self.net, candidates, self.held_out, everything, self.config, objective
        )


def make_world(bench: OnSupernet, sparsity: float) -> World:
    """The supernet and the texts for one sparsity.

    Raises:
        UserError: The search text or the held-out text is shorter than a sequence.
    """
    for name in ("search_tokens", "held_out_tokens"):
        flag, least = f"--{name.replace('_', '-')}", bench.sequence_length
        require(getattr(bench, name) >= least, flag, getattr(bench, name), f"at least a sequence of {least}")
    model = bench.load()
    search_tokens = bench.search_tokens + bench.held_out_tokens
    amounts = {"calibration_tokens": bench.calibration_tokens, "search_tokens": search_tokens}
    splits = bench.splits(model, bench.sequence_length, **amounts)
    settings, config = PruningSettings(), model.config
    kinds = settings.kinds(config)
    grid = space.uniform_grid(kinds, config.depth, sparsity, 9, 0.125)
    texts = (splits.calibration, splits.openings)
    supernet = build_supernet(model.params, texts, FoldPlan(config, grid, settings))
    net = nested.nest(model.params, supernet, config)
    held_out = bench.held_out_tokens // bench.sequence_length
    pool, judged = (
        teacher_targets(model.params, tokens, config, OBJECTIVE)
        for tokens in (splits.search[held_out:], splits.search[:held_out])
    )
    sites = Sites(np.asarray(supernet.error), np.asarray(supernet.share), grid.exists)
    centre = space.centre_distribution(grid)
    budget = space.Budget.of_units(grid.kept, space.kept_units(grid, centre).sum(axis=-1))
    return World(model.origin, config, model.params, grid, net, sites, budget, pool, judged)
