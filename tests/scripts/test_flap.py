"""FLAP: hand-worked scores, and units of constant input, which leave without a trace."""

import dataclasses

import flap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_tiny_config

from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import iter_tensors, random_params


def test_scores_worked_by_hand() -> None:
    weight, variance = np.array([[1.0, 2.0], [0.0, 3.0], [2.0, 0.0], [1.0, 1.0]]), np.array([2.0, 0, 1, 3])
    # Var ‖W‖² is 10, 0, 4, 6: a mean of 5, and a standard deviation of √13.
    expected = np.array([5, -5, -1, 1]) / np.sqrt(13)
    np.testing.assert_allclose(flap.fluctuation(weight, variance, 4), expected)
    np.testing.assert_allclose(flap.fluctuation(weight, variance, 2), [0, 0], atol=1e-12)
    np.testing.assert_array_equal(flap.fluctuation(weight, np.zeros(4), 4), np.zeros(4))


def test_layers_keep_what_stands_out() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [0.5, 2.5, 0.0]])
    assert flap.allocate(scores, 4).tolist() == [[True, True, True], [False, True, False]]
    assert flap.allocate(scores, 0).sum() == 0
    assert flap.allocate(np.zeros((2, 3)), 5).sum() == 5


def test_a_bias_takes_the_place_of_means() -> None:
    weight, mean = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([10.0, 1.0, 2.0])
    moved = flap.compensation(weight, mean, np.array([True, False, False]))
    np.testing.assert_array_equal(moved, [3 + 10, 4 + 12])


@pytest.mark.slow
def test_constant_units_leave_without_a_trace() -> None:
    """Six neurons always put out the same: FLAP finds just these, and the model's outputs do not change."""
    config = make_tiny_config(layers=1, mlp_bias=True)
    params = random_params(config, jax.random.key(0), scale=0.3)
    blocks = dict(params["blocks"])
    constant = np.zeros((1, 48), bool)
    constant[0, [0, 3, 4, 5, 6, 47]] = True
    for name in ("gate", "up"):
        blocks[name] = blocks[name] * ~constant[:, None]
        blocks[f"{name}_bias"] = jnp.where(constant, 1.5, blocks[f"{name}_bias"])
    params |= {"blocks": blocks}
    texts = [
        np.random.default_rng(0).integers(0, 96, (3, 16)),
        np.random.default_rng(1).integers(0, 96, (2, 9)),
    ]
    pruned, biased = flap.prune(params, texts, config, (4, 48), (4, 48 - 6))
    gone = ~np.any(np.asarray(pruned["blocks"]["down"]), axis=-1)
    np.testing.assert_array_equal(gone, constant)
    np.testing.assert_array_equal(pruned["blocks"]["o"], blocks["o"])
    (before,), (after,) = (
        [state.residual for state in decoder.run_model(each, [jnp.asarray(texts[0])], own)]
        for each, own in ((params, config), (pruned, biased))
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    # What is written has all biases.
    written = {spec.name for spec, _ in iter_tensors(pruned, biased)}
    assert written >= {"o_bias", "down_bias", "q_bias", "gate_bias"}


@pytest.mark.slow
def test_channels_that_hardly_vary_are_told_from_constant_ones() -> None:
    """A standard deviation of a ten-thousandth of the mean, which plain sums of squares would lose."""
    config = make_tiny_config(layers=1, mlp_bias=True)
    params = random_params(config, jax.random.key(0), scale=0.3)
    blocks = dict(params["blocks"])
    small = np.full(48, 1e-5)
    blocks["gate"], blocks["gate_bias"] = blocks["gate"] * 0, jnp.full((1, 48), 100.0)
    blocks["up"], blocks["up_bias"] = blocks["up"] * small, jnp.ones((1, 48))
    texts = [np.random.default_rng(0).integers(0, 96, (8, 16))]
    ((_, found),) = flap.measure(params | {"blocks": blocks}, texts, config)
    x = decoder.embed(params, jnp.asarray(texts[0]))
    block = jax.tree.map(lambda array: array[0], blocks)
    x = decoder.add_attention(block, x, decoder.rope_tables(config, 16), config)
    units = np.asarray(decoder.ffn_units(block, x, config), np.float64).reshape(-1, 48)
    np.testing.assert_allclose(found.mean, units.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, units.var(axis=0), rtol=1e-2)


@pytest.mark.slow
def test_statistics_are_those_of_the_dense_model() -> None:
    config = make_tiny_config(layers=2)
    params = random_params(config, jax.random.key(0), scale=0.3)
    texts = [np.random.default_rng(0).integers(0, 96, (3, 16))]
    moments = flap.measure(params, texts, config)
    x = decoder.embed(params, jnp.asarray(texts[0]))
    rope = decoder.rope_tables(config, 16)
    for layer in range(2):
        block = jax.tree.map(lambda array, layer=layer: array[layer], params["blocks"])
        heads = np.asarray(decoder.attention_units(block, x, rope, config)).reshape(48, -1)
        x = decoder.add_attention(block, x, rope, config)
        neurons = np.asarray(decoder.ffn_units(block, x, config)).reshape(48, -1)
        x = decoder.add_ffn(block, x, config)
        for units, found in zip((heads, neurons), moments[layer], strict=True):
            np.testing.assert_allclose(found.mean, units.mean(axis=0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.variance, units.var(axis=0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        make_tiny_config(post_norms=True),
        dataclasses.replace(make_tiny_config(), layers=(LayerShape(4, 2, 16, experts=4),) * 3, routed=2),
        make_tiny_config(family="mistral"),
    ],
    ids=["norms", "experts", "family"],
)
def test_models_without_a_place_for_biases(config: object) -> None:
    with pytest.raises(UserError, match="FLAP needs an output bias in every sublayer"):
        flap.prune({}, [], config, (4, 48), (4, 48))  # type: ignore[arg-type]
