"""A model with adapters next to its weights equals the model with the adapters merged into them."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recovery_samples import DIFFERENT, make_pair, make_rows
from speeds import only_quick
from tiny import make_tiny_config

from tyr_jax.model.decoder import forward
from tyr_jax.model.linear import Adapted, linear
from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import random_params
from tyr_jax.recovery import adapters
from tyr_jax.recovery.adapters import Method

LAYERS = DIFFERENT, (LayerShape(2, 1, 16),) * 3


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((6,), (5,)), ((6,), (2, 3)), ((2, 3), (5,)), ((1, 6), (5,))]
)
def test_a_product_beside_a_change(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, weight, down, up = (
        rng.standard_normal(shape) for shape in ((4, 3, 6), (*inputs, *outputs), (6, 2), (2, *outputs))
    )
    flat = weight.reshape(6, -1) + down @ up.reshape(2, -1)
    expected = (x @ flat).reshape(4, 3, *outputs)
    np.testing.assert_allclose(linear(x, Adapted(weight, down, up)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("extra_tensors")
def test_every_projection_has_changes_of_its_shape() -> None:
    config = make_tiny_config(qkv_bias=True, qk_norm=True)
    params = random_params(config, jax.random.key(0))
    pairs = adapters.trainable(params, config, "lora", 5, 0)
    axes = {tensor.name: (tensor.inputs, tensor.outputs) for tensor in config.tensors if tensor.inputs}
    assert pairs.keys() == axes.keys() > {"q", "down", "both_extra"}
    sizes = {"D": 32, "N": 4, "K": 2, "H": 8, "F": 48}
    for name, (inputs, outputs) in axes.items():
        assert pairs[name]["down"].shape == (3, math.prod(sizes[axis] for axis in inputs), 5)
        assert pairs[name]["up"].shape == (3, 5, *(sizes[axis] for axis in outputs))
    chex.assert_trees_all_equal(adapters.merged(adapters.frozen(params, "lora"), pairs, "lora", 2.0), params)


@pytest.mark.parametrize("layers", only_quick(LAYERS, DIFFERENT))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_begins_with_the_model_as_it_was(method: Method, layers: tuple[LayerShape, ...]) -> None:
    pair = make_pair(layers)
    trained = adapters.trainable(pair.small, pair.small_config, method, 4, 0)
    begun = adapters.merged(adapters.frozen(pair.small, method), trained, method, 2.0)
    chex.assert_trees_all_equal(begun, pair.small)


@pytest.mark.parametrize("layers", only_quick(LAYERS, DIFFERENT))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_written_is_what_was_trained(method: Method, layers: tuple[LayerShape, ...]) -> None:
    pair, tokens = make_pair(layers), make_rows().tokens[0]
    begun = adapters.trainable(pair.small, pair.small_config, method, 4, 0)
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda array: array + 0.1 * rng.standard_normal(array.shape).astype("f4"), begun)
    rest = adapters.frozen(pair.small, method)
    as_trained = forward(adapters.assemble(rest, trained, method, 2.0), tokens, pair.small_config)
    written = adapters.merged(rest, trained, method, 2.0)
    chex.assert_trees_all_equal_shapes(written, pair.small)
    np.testing.assert_allclose(forward(written, tokens, pair.small_config), as_trained, rtol=1e-3, atol=1e-4)
    assert float(jnp.max(jnp.abs(as_trained - forward(pair.small, tokens, pair.small_config)))) > 0.1
