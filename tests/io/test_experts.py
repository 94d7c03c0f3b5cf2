"""Checkpoints that have a matrix for every expert, where we have one tensor."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
import pytest

from tyr_jax.errors import UserError
from tyr_jax.io.experts import by_key
from tyr_jax.io.hf import load_params
from tyr_jax.model.spec import LayerShape, ModelConfig, iter_tensors, random_params

LAYERS = LayerShape(4, 2, 12, 5), LayerShape(0, 0, 5, 5), LayerShape(3, 1, 0)
THIRD = "model.layers.0.mlp.experts.3.up_proj.weight"


class Arrays:
    """A checkpoint in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def keys(self) -> set[str]:
        return set(self.arrays)

    def read(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def dtype(self, key: str) -> np.dtype:
        return self.arrays[key].dtype


@pytest.fixture
def config(tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    return dataclasses.replace(tiny_config(), layers=LAYERS, routed=2)


@pytest.fixture
def checkpoint(config: ModelConfig) -> Arrays:
    arrays: dict[str, np.ndarray] = {}
    for spec, array in iter_tensors(random_params(config, jax.random.key(0)), config):
        whole = spec.to_checkpoint(np.asarray(array))
        arrays |= dict(by_key(spec, whole)) if "XF" in spec.axes else {spec.key: whole}
    return Arrays(arrays)


def test_every_expert_has_its_own_matrices(config: ModelConfig, checkpoint: Arrays) -> None:
    params = random_params(config, jax.random.key(0))
    first = params["blocks"][0]
    for name, axis in (("gate", 1), ("up", 1), ("down", 0)):
        for expert in range(5):
            stored = checkpoint.read(f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight")
            np.testing.assert_array_equal(stored.T, np.take(np.asarray(first[name]), expert, axis=axis))
    assert checkpoint.read("model.layers.0.mlp.gate.weight").shape == (5, 32)
    assert not [key for key in checkpoint.arrays if ".layers.2.mlp" in key]
    jax.tree.map(np.testing.assert_array_equal, load_params(checkpoint, config), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop(THIRD), rf"'{THIRD}' is missing.*has those of 4 other experts"),
        (
            lambda arrays: [arrays.pop(key) for key in list(arrays) if "layers.1.mlp.experts" in key],
            r"'model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight' and 2 more are missing",
        ),
        (
            lambda arrays: arrays.update({THIRD.replace("3", "5"): arrays[THIRD]}),
            r"experts\.5\.up_proj\.weight' is in the checkpoint but not in a llama model of this config",
        ),
        (
            lambda arrays: arrays.update({THIRD: arrays[THIRD][:-1]}),
            rf"'{THIRD}' has shape \[11, 32\], while that of expert 0 has \[12, 32\]",
        ),
        (
            lambda arrays: arrays.update(
                {key: array[:-1] for key, array in arrays.items() if "experts" in key and "up" in key}
            ),
            r"up_proj\.weight' has shape \[55, 32\], where the config says \[60, 32\]",
        ),
    ],
)
def test_what_is_not_there_or_does_not_fit(
    change: Callable[[dict[str, np.ndarray]], object], message: str, config: ModelConfig, checkpoint: Arrays
) -> None:
    change(checkpoint.arrays)
    with pytest.raises(UserError, match=message):
        load_params(checkpoint, config)
