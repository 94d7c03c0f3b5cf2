"""Prices of levels against the parameter counts of compressed models."""

from typing import Any, Literal

import jax
import numpy as np
import pytest
from reference import random_supernet
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.model.spec import LayerShape, count_parameters, random_params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.prices import blocks_price, dearest_heads, heads_price, level_prices, sublayer_parameters
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.target import target_of
from tyr_jax.space import ATTENTION, FFN

EXPERTS = {"routed": 2}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("unit", ["head", "kv_group"])
@pytest.mark.parametrize("options", [{}, BIASES, {"qk_norm": True}, EXPERTS], ids=str)
def test_a_distribution_costs_what_its_compressed_model_has(
    options: dict[str, Any], unit: Literal["head", "kv_group"]
) -> None:
    config = make_tiny_config(layers=3, shape=LayerShape(6, 2, 48, 5 if options == EXPERTS else 0), **options)
    pruning = PruningSettings(attention_unit=unit)
    attention, ffn = pruning.kinds(config)
    centres = np.array([[attention.units // 2] * 3, [24] * 3])
    grid = space.level_grid((attention, ffn), centres, 7, 1 / 6)
    supernet = random_supernet(config, grid, attention.units)
    prices = level_prices(config, pruning, grid.kept, np.asarray(supernet.attn_rank))
    params, rng = random_params(config, jax.random.key(0)), np.random.default_rng(0)
    for _ in range(20):
        present = [[np.flatnonzero(site) for site in kind] for kind in grid.exists]
        levels = np.array([[rng.choice(site) for site in kind] for kind in present])
        _, small = compress(params, supernet, levels, config)
        assert space.values_at(prices, levels).sum() == count_parameters(small)[0]


def test_active_parameters_are_those_of_as_many_experts_as_a_token_uses() -> None:
    config = make_tiny_config(layers=2, shape=LayerShape(6, 2, 16, 5), **EXPERTS)
    settings = PruningSettings(budget="active-parameters", neuron_multiple=1)
    # The router, a norm, and three matrices of two experts.
    dense = 32 * 5 + 32 + 3 * 2 * 32 * 16
    assert sublayer_parameters(config, FFN, config.dense_shape, active=True) == dense
    kept = np.array([[[6, 3]] * 2, [[16, 4]] * 2])
    prices = level_prices(config, settings, kept, np.tile(np.arange(6), (2, 1)))
    assert prices[FFN].tolist() == [[dense, dense - 3 * 2 * 32 * 12]] * 2
    assert blocks_price(config, True) == prices[..., 0].sum()
    assert blocks_price(config, False) == count_parameters(config)[0]
    limit = target_of(config, settings, 0.3).limit
    assert limit == int(0.7 * blocks_price(config, True))


def test_heads_of_smollm2_by_hand() -> None:
    config = make_tiny_config(shape=LayerShape(9, 3, 48), hidden=576, head_dim=64)
    # Two matrices of a head and two of a key/value head, of 576 × 64 each, and a norm of 576.
    matrix = 576 * 64
    assert heads_price(np.arange(9), config) == 24 * matrix + 576
    assert heads_price(np.arange(6), config) == 16 * matrix + 576
    # Heads in groups of 3, 1 and 0: padded to two groups of three.
    assert heads_price(np.array([0, 1, 2, 3]), config) == 16 * matrix + 576
    assert heads_price(np.array([0, 1, 3, 4]), config) == 12 * matrix + 576
    assert heads_price(np.array([], int), config) == 0
    assert dearest_heads(4, config) == 16 * matrix + 576
    assert dearest_heads(8, config) == dearest_heads(9, config) == 24 * matrix + 576
    assert dearest_heads(0, config) == 0
    assert sublayer_parameters(config, ATTENTION, config.dense_shape) == 24 * matrix + 576
