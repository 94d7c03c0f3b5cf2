"""The Fisher metric of outputs against the exact Fisher information of a tiny model, over all labels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_tiny_config

from tyr_jax.model import decoder
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import fisher
from tyr_jax.pruning.kinds import HEADS, NEURONS
from tyr_jax.runtime.offload import Scratch, Stack

KINDS = HEADS, NEURONS
CONFIG = make_tiny_config(layers=2, shape=LayerShape(2, 1, 12), vocab=11, hidden=8, head_dim=4)


def predict(params: Params, changes: jax.Array, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits `[T, V]` of `tokens [T]`, with `changes [L, 2, T, D]` added to the outputs of the sites."""
    x, rope = decoder.embed(params, tokens[None]), decoder.rope_tables(config, len(tokens))
    for layer in range(config.depth):
        block = layer_block(params["blocks"], layer)
        x = decoder.add_attention(block, x, rope, config) + changes[layer, 0]
        x = decoder.add_ffn(block, x, config) + changes[layer, 1]
    return decoder.logits(decoder.head(params), decoder.final_hidden(params, x, config))[0]


def exact(params: Params, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Σ over positions of E[g gᵀ] / T, over all labels, `[L, S, D, D]`."""
    none = jnp.zeros((config.depth, 2, len(tokens), config.hidden))
    read = jnp.asarray(tokens)
    slopes = np.asarray(jax.jacobian(lambda changes: predict(params, changes, read, config))(none), float)
    chances = np.asarray(jax.nn.softmax(predict(params, none, read, config)), float)
    # Labels are drawn independently at each position, so the covariance of the sum is the sum of covariances.
    spread = np.einsum("tv,vw->tvw", chances, np.eye(config.vocab)) - np.einsum(
        "tv,tw->tvw", chances, chances
    )
    return np.einsum("tvlkpd,tvw,twlkpe->lkde", slopes, spread, slopes) / len(tokens)


def shrunk(metrics: np.ndarray) -> np.ndarray:
    """The metrics, shrunk towards multiples of the identity as `finish` does it."""
    size = metrics.shape[-1]
    level = np.trace(metrics, axis1=-2, axis2=-1)[..., None, None] / size
    return (1 - fisher.SHRINKAGE) * metrics + fisher.SHRINKAGE * level * np.eye(size)


@pytest.mark.slow
def test_the_mean_over_draws_is_the_fisher_information(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "BATCH_TOKENS", 9000)
    params = random_params(CONFIG, jax.random.key(1), scale=0.5)
    tokens = np.array([3, 7, 1], np.int32)
    told: list[int] = []
    many = np.repeat(tokens[None], 6000, axis=0)
    ours = fisher.output_metrics(params, many, CONFIG, KINDS, 0, on_tokens=told.append)
    assert told == [9000, 9000]
    wanted = shrunk(exact(params, tokens, CONFIG))
    for site, truth in zip(np.asarray(ours).reshape(-1, 8, 8), wanted.reshape(-1, 8, 8), strict=True):
        np.testing.assert_array_equal(site, site.T)
        assert np.linalg.norm(site - truth) < 0.06 * np.linalg.norm(truth)


def test_layers_on_disk_give_the_same(tmp_path: Path) -> None:
    config = make_tiny_config(layers=3, qkv_bias=True)
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (5, 8)).astype(np.int32)
    here = np.asarray(fisher.output_metrics(params, tokens, config, KINDS, 3))
    blocks = {
        name: Stack(len(array), array.shape[1:], np.asarray(array).dtype, np.asarray(array).__getitem__)
        for name, array in params["blocks"].items()
    }
    told: list[int] = []
    there = fisher.output_metrics(
        params | {"blocks": blocks},
        tokens,
        config,
        KINDS,
        3,
        scratch=Scratch(tmp_path),
        on_tokens=told.append,
    )
    assert isinstance(there, np.memmap)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5 * np.abs(here).max())
    assert not np.array_equal(here, np.asarray(fisher.output_metrics(params, tokens, config, KINDS, 4)))


@pytest.mark.slow
def test_a_batch_is_filled_up_with_what_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_tiny_config()
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (5, 8)).astype(np.int32)
    whole = np.asarray(fisher.output_metrics(params, tokens, config, KINDS, 0))
    monkeypatch.setattr(fisher, "BATCH_TOKENS", 16)
    parts = np.asarray(fisher.output_metrics(params, tokens, config, KINDS, 0))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
