"""The forward against float64 numpy in cases that torch parity does not cover.

These are long sequences, windows, chunks, and absent sublayers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import layer_outputs64, logits64
from speeds import only_quick

from tyr_jax.model import decoder
from tyr_jax.model.attention import QUERY_CHUNK
from tyr_jax.model.decoder import forward
from tyr_jax.model.rope import Llama3Scaling, Positions
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import random_params
from tyr_jax.runtime.offload import Scratch
from tyr_jax.scoring.objective import HiddenKL

Configs = Callable[..., ModelConfig]


@pytest.mark.parametrize("window", [None, 5])
def test_the_future_is_invisible_and_so_is_what_left_the_window(
    window: int | None, tiny_config: Configs
) -> None:
    config = tiny_config(layers=1, family="mistral", positions=(Positions(window=window),))
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, 96, (1, 24))
    base = np.asarray(forward(params, tokens, config))
    changed = tokens.copy()
    changed[0, 10] = (changed[0, 10] + 1) % 96
    moved = np.abs(np.asarray(forward(params, changed, config)) - base).max(axis=-1)[0]
    last = 23 if window is None else 10 + window - 1
    assert (moved[10 : last + 1] > 1e-4).all()
    assert (moved[:10] == 0).all()
    assert (moved[last + 1 :] == 0).all()


MIXED = (Positions(window=40), Positions(None), Positions(500.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": (Positions(500.0, window=40),)},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": True},
        {"qk_norm": True, "qkv_bias": True, "head_dim": 12},
        {"layers": (LayerShape(4, 2, 48), LayerShape(0, 0, 20), LayerShape(3, 1, 0), LayerShape(0, 0, 0))},
        {"positions": MIXED},
        {"positions": MIXED, "layers": (LayerShape(4, 2, 48), LayerShape(0, 0, 20), LayerShape(3, 1, 0))},
    ],
    ids=str,
)
def test_whole_models_equal_the_naive_one(changes: dict[str, Any], tiny_config: Configs) -> None:
    config = dataclasses.replace(tiny_config(), **changes)
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, 96, (1, QUERY_CHUNK + 5))
    ours = np.asarray(forward(params, tokens, config))
    exact = logits64(params, tokens, config)
    assert exact.std() > 0.1
    assert np.abs(ours - exact).max() < 1e-4


def test_sequences_of_a_batch_do_not_mix(tiny_config: Configs) -> None:
    config = tiny_config()
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, 96, (3, 16))
    together = np.asarray(forward(params, tokens, config))
    for row, logits in zip(tokens, together, strict=True):
        np.testing.assert_allclose(np.asarray(forward(params, row[None], config))[0], logits, atol=1e-5)


def test_absent_sublayers_add_nothing(tiny_config: Configs) -> None:
    config = tiny_config(layers=1)
    params = random_params(config, jax.random.key(0), scale=0.2)
    block = {name: array[0] for name, array in params["blocks"].items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 32)), jnp.float32)
    rope = decoder.rope_tables(config, 6)
    attention = {name: block[name] for name in ("attn_norm", "q", "k", "v", "o")}
    ffn = {name: block[name] for name in ("mlp_norm", "gate", "up", "down")}
    np.testing.assert_array_equal(decoder.apply_block({}, x, rope, config), x)
    halfway = decoder.apply_block(attention, x, rope, config)
    whole = decoder.apply_block(ffn, halfway, rope, config)
    np.testing.assert_array_equal(whole, decoder.apply_block(block, x, rope, config))
    assert np.abs(np.asarray(halfway - x)).max() > 0.01
    assert np.abs(np.asarray(whole - halfway)).max() > 0.01
    zeroed = block | {"o": 0 * block["o"], "down": 0 * block["down"]}
    np.testing.assert_array_equal(decoder.apply_block(zeroed, x, rope, config), x)


# Original context 8192, factor 8, low 1, high 4: wavelengths beyond 8192 are slowed, below 2048 untouched.
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("wavelength", "stretch"),
    [
        (10.0, 1.0),
        (2000.0, 1.0),
        (8193.0, 8.0),
        (500_000.0, 8.0),
        # Halfway between 1 and 4 turns in the context (2.5): the mean of both frequencies.
        (8192 / 2.5, 1 / (0.5 + 0.5 / 8)),
        (8192 / 2.0, 1 / (1 / 3 + 2 / 3 / 8)),
    ],
)
def test_llama3_frequencies_by_hand(wavelength: float, stretch: float) -> None:
    frequency = 2 * math.pi / wavelength
    scaled = SCALING.scaled(jnp.asarray([frequency]), 500_000.0)
    assert float(scaled[0]) == pytest.approx(frequency / stretch, rel=1e-4)


def test_llama3_frequencies_never_rise_with_the_dimension(tiny_config: Configs) -> None:
    config = tiny_config(head_dim=128, positions=(Positions(500_000.0, SCALING),))
    plain = tiny_config(head_dim=128, positions=(Positions(500_000.0),))
    angles, dense = (
        np.arctan2(*(np.asarray(t)[1] for t in decoder.rope_tables(c, 2)[::-1])) for c in (config, plain)
    )
    assert (np.diff(angles) < 0).all()
    np.testing.assert_allclose(angles[:28], dense[:28], rtol=1e-5)
    np.testing.assert_allclose(angles[-20:], dense[-20:] / 8, rtol=1e-5)


def test_rotation_depends_on_distance_alone(tiny_config: Configs) -> None:
    config = tiny_config()
    rope = decoder.rope_tables(config, 40)
    assert rope.cos.shape == rope.sin.shape == (40, 4)
    q, k = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    turned = [
        np.asarray(decoder.rotate(jnp.broadcast_to(jnp.asarray(x), (1, 40, 1, 8)), rope))[0, :, 0]
        for x in (q, k)
    ]
    scores = turned[0] @ turned[1].T
    for distance in (0, 3, 20):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores[0, 0], q @ k, rtol=1e-5)


@pytest.mark.parametrize("stays", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("depth", only_quick([1, 3], 1))
def test_observed_layers_of_several_texts(depth: int, stays: bool, tiny_config: Configs) -> None:
    config = tiny_config(layers=depth)
    params = random_params(config, jax.random.key(0), scale=0.2)
    texts = [np.random.default_rng(seed).integers(0, config.vocab, (2, 6 + seed)) for seed in range(3)]
    observed = HiddenKL().observed_layers(depth)
    weights = params | {"blocks": Scratch().keep(params["blocks"])} if stays else params
    states = list(decoder.run_model(weights, map(jnp.asarray, texts), config, observed))
    for tokens, state in zip(texts, states, strict=True):
        outputs = layer_outputs64(params, tokens, config)
        expected = np.stack([outputs[layer] for layer in observed], axis=1)
        np.testing.assert_allclose(state.outputs, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.residual, outputs[-1], rtol=1e-4, atol=1e-5)
    (plain, *_) = decoder.run_model(weights, map(jnp.asarray, texts), config)
    assert plain.outputs.shape == (2, 0, 6, config.hidden)
