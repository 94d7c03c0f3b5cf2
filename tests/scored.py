"""Shared by tests of what the search scores: a candidate's score is that of the model at full width."""

from typing import Any

import numpy as np
from full_width import score_candidates

from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring import nested, scorer
from tyr_jax.scoring.objective import KL
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.space import LevelGrid


def random_candidates(grid: LevelGrid, count: int) -> np.ndarray:
    """Candidates `[C, S, L]` of levels that exist."""
    rng = np.random.default_rng(1)
    return np.array(
        [[[rng.choice(np.flatnonzero(site)) for site in kind] for kind in grid.exists] for _ in range(count)]
    )


def assert_scored_as_at_full_width(
    params: Params, net: Supernet, candidates: np.ndarray, tokens: Any, config: ModelConfig
) -> None:
    """The search scores `candidates [C, S, L]` on `tokens [B, T]` as the model at full width does."""
    pool, every = teacher_targets(params, tokens, config, KL()), np.arange(len(tokens))
    plain = score_candidates(params, net, candidates, pool, config, KL())
    scores = scorer.score_population(nested.nest(params, net, config), candidates, pool, every, config, KL())
    np.testing.assert_allclose(scores, plain, rtol=1e-4)
