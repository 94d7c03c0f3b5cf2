"""The method on a real model, SmolLM2-135M, at small budgets."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax import pipeline
from tyr_jax.config import Rounds, Settings
from tyr_jax.data import DataSpec
from tyr_jax.io.output import EventLog
from tyr_jax.io.progress import Progress
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import Params, count_parameters
from tyr_jax.pipeline import Outcome, Pruned
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.supernet import Supernet, select
from tyr_jax.search.evolve import EvolutionSettings

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]

SETTINGS = Settings(
    sparsity=(0.5,),
    data=DataSpec(
        sequence_length=256,
        search_length=512,
        calibration_tokens=8192,
        search_tokens=4096,
        evaluation_length=256,
        evaluation_windows=6,
    ),
    rounds=Rounds(rounds=1),
    search=EvolutionSettings(generations=3, offspring=8, survivors=(3, 1), stage_tokens=(512, 1024)),
)
"""A small part of what a preset spends: enough to show the direction."""


class Found(NamedTuple):
    """A run's outcome, and its final model at full width, pruned weights zero."""

    outcome: Outcome
    masked: Params


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A run at 50 %, measured on text that neither calibration nor search saw."""
    masked: list[Params] = []

    def compress_and_keep(params: Params, supernet: Supernet, levels: np.ndarray, *rest: Any) -> Any:
        masked.append(select(params, supernet, jnp.asarray(levels)))
        return compress(params, supernet, levels, *rest)

    events = tmp_path_factory.mktemp("run") / "events.jsonl"
    with pytest.MonkeyPatch.context() as patch, EventLog(events) as log, Progress() as progress:
        patch.setattr(pipeline, "compress", compress_and_keep)
        (outcome,) = pipeline.prune_model(SETTINGS, progress, log)
    return Found(outcome, masked[-1])


def mean_kl(pruned: Pruned) -> float:
    return float(np.mean([quality.kl for quality in pruned.quality.values()]))


def test_searching_beats_uniform_on_held_out_text(found: Found) -> None:
    outcome = found.outcome
    assert outcome.searched is not None
    assert mean_kl(outcome.searched) < 0.95 * mean_kl(outcome.uniform)


def test_budgets_are_exact(found: Found) -> None:
    outcome = found.outcome
    # Half of 30 × 9 heads and of 30 × 1536 neurons.
    assert outcome.target.budgets == (135, 23040)
    for pruned in (outcome.uniform, outcome.final):
        assert pruned.kept.sum(axis=1).tolist() == [135, 23040]
        assert [layer.ffn for layer in pruned.config.layers] == pruned.kept[1].tolist()
    for record in outcome.rounds:
        assert sum(record["kept"]["attention"]) == 135
        assert sum(record["kept"]["ffn"]) == 23040


def test_the_compressed_model_is_the_masked_one(found: Found) -> None:
    dense, final = found.outcome.dense, found.outcome.final
    tokens = jnp.asarray(next(iter(dense.splits.evaluation.values()))[:1, :256])
    small = np.asarray(forward(final.params, tokens, final.config))
    full = np.asarray(forward(found.masked, tokens, dense.model.config))
    np.testing.assert_allclose(small, full, rtol=0, atol=1e-3)
    blocks, _ = count_parameters(final.config)
    assert blocks < 0.6 * count_parameters(dense.model.config)[0]
