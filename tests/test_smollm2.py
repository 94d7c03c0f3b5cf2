"""The method on a real model, SmolLM2-135M, at small budgets."""

import jax.numpy as jnp
import numpy as np
import pytest
from smollm2_run import Found

from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import count_parameters
from tyr_jax.pipeline import Pruned

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]


def mean_kl(pruned: Pruned) -> float:
    return float(np.mean([quality.kl for quality in pruned.quality.values()]))


def test_searching_beats_uniform_on_held_out_text(smollm2_found: Found) -> None:
    outcome = smollm2_found.outcome
    assert outcome.searched is not None
    assert mean_kl(outcome.searched) < 0.95 * mean_kl(outcome.uniform)


def test_budgets_are_exact(smollm2_found: Found) -> None:
    outcome = smollm2_found.outcome
    # Half of 30 × 9 heads and of 30 × 1536 neurons.
    assert outcome.target.budgets == (135, 23040)
    for pruned in (outcome.uniform, outcome.final):
        assert pruned.kept.sum(axis=1).tolist() == [135, 23040]
        assert [layer.ffn for layer in pruned.config.layers] == pruned.kept[1].tolist()
    for record in outcome.rounds:
        assert sum(record["kept"]["attention"]) == 135
        assert sum(record["kept"]["ffn"]) == 23040


def test_the_compressed_model_is_the_masked_one(smollm2_found: Found) -> None:
    dense, final = smollm2_found.outcome.dense, smollm2_found.outcome.final
    tokens = jnp.asarray(next(iter(dense.splits.evaluation.values()))[:1, :256])
    small = np.asarray(forward(final.params, tokens, final.config))
    full = np.asarray(forward(smollm2_found.masked, tokens, dense.model.config))
    np.testing.assert_allclose(small, full, rtol=0, atol=1e-3)
    blocks, _ = count_parameters(final.config)
    assert blocks < 0.6 * count_parameters(dense.model.config)[0]
