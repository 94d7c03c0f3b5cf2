"""Checkpoints that store several of our tensors as one matrix."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import pytest
from io_samples import Arrays

from tyr_jax.errors import UserError
from tyr_jax.io.fused import joined, stored_together
from tyr_jax.io.hf import load_params
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import iter_tensors, random_params

LAYERS = LayerShape(4, 2, 48), LayerShape(0, 0, 8), LayerShape(3, 1, 0)


@pytest.fixture
def config(tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    return dataclasses.replace(tiny_config(), layers=LAYERS, fused=("qkv_proj", "gate_up_proj"))


@pytest.fixture
def checkpoint(config: ModelConfig) -> Arrays:
    params = random_params(config, jax.random.key(0))
    parts = {spec.key: spec.to_checkpoint(np.asarray(array)) for spec, array in iter_tensors(params, config)}
    return Arrays({key: joined(parts[one.key] for one in specs) for key, specs in stored_together(config)})


def test_what_is_joined_is_split_again(config: ModelConfig, checkpoint: Arrays) -> None:
    # 4 + 2 + 2 heads of 8 channels, and twice 48 neurons.
    assert checkpoint.read("model.layers.0.self_attn.qkv_proj.weight").shape == (64, 32)
    assert checkpoint.read("model.layers.0.mlp.gate_up_proj.weight").shape == (96, 32)
    alone = {f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up")}
    assert not {key.rpartition("self_attn.")[2].rpartition("mlp.")[2] for key in checkpoint.arrays} & alone
    expected = random_params(config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, load_params(checkpoint, config), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("model.layers.2.self_attn.qkv_proj.weight"),
            "qkv_proj.weight' is missing",
        ),
        (
            lambda arrays: arrays.update({"model.layers.0.mlp.gate_up_proj.weight": np.zeros((95, 32))}),
            r"gate_up_proj.weight' has shape \[95, 32\], where the config says 96 rows",
        ),
        (
            lambda arrays: arrays.update({"model.layers.1.mlp.up_proj.weight": np.zeros((8, 32))}),
            r"up_proj.weight' by itself, .* is part of '.*gate_up_proj.weight'",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[dict[str, np.ndarray]], object], message: str, config: ModelConfig, checkpoint: Arrays
) -> None:
    change(checkpoint.arrays)
    with pytest.raises(UserError, match=message):
        load_params(checkpoint, config)
