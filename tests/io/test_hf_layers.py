"""Sizes of layers in a `config.json`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.io.hf_layers import global_shape, layers_from_hf, layers_to_hf
from tyr_jax.model.spec import LayerShape, ModelConfig

DENSE = LayerShape(4, 2, 48)
BASE = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
PER_LAYER: dict[str, Any] = {
    "0": {"skip": ["attention"]},
    "2": {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1},
}
LAYERS = (LayerShape(0, 0, 48), DENSE, LayerShape(2, 1, 16))

Configs = Callable[..., ModelConfig]


def test_layers_that_differ(tiny_config: Configs) -> None:
    assert layers_from_hf({"per_layer_config": PER_LAYER}, DENSE, 3) == LAYERS
    config = dataclasses.replace(tiny_config(), layers=LAYERS)
    assert global_shape(config, BASE) == DENSE
    assert layers_to_hf(config, DENSE) == PER_LAYER
    assert layers_from_hf({"per_layer_config": {"0": {"skip": ["attention", "mlp"]}}}, DENSE, 2) == (
        LayerShape(0, 0, 0),
        DENSE,
    )


def test_layers_of_one_shape_are_written_once(tiny_config: Configs) -> None:
    config = tiny_config(shape=LayerShape(2, 1, 40))
    assert global_shape(config, BASE) == LayerShape(2, 1, 40)
    assert layers_to_hf(config, LayerShape(2, 1, 40)) == {}


def test_heads_that_do_not_divide_hidden_are_written_per_layer(tiny_config: Configs) -> None:
    # Stock transformers refuses 3 heads of 8 in a hidden size of 32, even with head_dim given.
    config = tiny_config(shape=LayerShape(3, 1, 48))
    assert global_shape(config, BASE) == DENSE
    entry = {"num_attention_heads": 3, "num_key_value_heads": 1}
    assert layers_to_hf(config, DENSE) == {"0": entry, "1": entry, "2": entry}


def test_sizes_where_there_is_no_original(tiny_config: Configs) -> None:
    config = dataclasses.replace(tiny_config(), layers=(LayerShape(3, 3, 0), LayerShape(0, 0, 40)))
    assert global_shape(config, {}) == LayerShape(3, 3, 40)
    nothing = dataclasses.replace(config, layers=(LayerShape(0, 0, 0),))
    assert global_shape(nothing, {}) == LayerShape(1, 1, 1)
    assert layers_to_hf(nothing, LayerShape(1, 1, 1)) == {"0": {"skip": ["attention", "mlp"]}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"per_layer_config": {"3": {}}}, "per_layer_config.3"),
        ({"per_layer_config": {"1": {"skip": ["norm"]}}}, "per_layer_config.1.skip"),
        ({"per_layer_config": {"1": {"sliding_window": 4}}}, "per_layer_config.1.sliding_window"),
        ({"per_layer_config": {"1": {"num_attention_heads": 3}}}, "per_layer_config.1.num_attention_heads"),
        ({"per_layer_config": {"1": {"intermediate_size": 0}}}, "per_layer_config.1.intermediate_size"),
        ({"per_layer_config": {"1": 5}}, "per_layer_config.1"),
        ({"per_layer_config": [1]}, "per_layer_config"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"'?{named}\b"):
        layers_from_hf(changes, DENSE, 3)
