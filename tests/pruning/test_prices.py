"""Prices of levels against the parameter counts of compressed models."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest
from reference import random_supernet
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model.cost import block_flops, unit_counts
from tyr_jax.model.spec import LayerShape, Positions, count_parameters, random_params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.latency import Latencies
from tyr_jax.pruning.prices import (
    blocks_take,
    dearest_heads,
    ffn_price,
    heads_price,
    level_prices,
    sublayer_price,
)
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
    (prices,) = level_prices(config, pruning, grid.kept, np.asarray(supernet.attn_rank))
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
    assert sublayer_price(config, FFN, config.dense_shape, "active-parameters") == dense
    kept = np.array([[[6, 3]] * 2, [[16, 4]] * 2])
    (prices,) = level_prices(config, settings, kept, np.tile(np.arange(6), (2, 1)), ["active-parameters"])
    assert prices[FFN].tolist() == [[dense, dense - 3 * 2 * 32 * 12]] * 2
    assert blocks_take(config, "active-parameters") == prices[..., 0].sum()
    assert blocks_take(config, "parameters") == count_parameters(config)[0]
    limits = target_of(config, settings, 0.3).limits
    assert limits == {"active-parameters": int(0.7 * blocks_take(config, "active-parameters"))}


def test_flops_and_cache_by_hand() -> None:
    config = make_tiny_config(layers=2, shape=LayerShape(6, 2, 48), hidden=32, head_dim=8)
    windowed = dataclasses.replace(config, positions=(Positions(1e4, None, 16), Positions(1e4, None, None)))
    tokens = 2048
    # Products with q, o of six heads, k, v of two, and three matrices of 32 × 48.
    attention, ffn = 2 * 32 * 8 * (6 + 6 + 2 + 2), 2 * 3 * 32 * 48
    scores = 2 * 2 * 6 * 8  # of a query with a key, and of the weighted sum
    everything = sum(range(1, tokens + 1))
    near = sum(min(row + 1, 16) for row in range(tokens))
    price = functools.partial(sublayer_price, windowed, shape=windowed.dense_shape)
    assert price(FFN, resource="flops") == tokens * ffn
    assert price(ATTENTION, resource="flops", layer=1) == tokens * attention + scores * everything
    assert price(ATTENTION, resource="flops", layer=0) == tokens * attention + scores * near
    assert price(ATTENTION, resource="kv-cache", layer=1) == 2 * 2 * 8 * tokens
    assert price(ATTENTION, resource="kv-cache", layer=0) == 2 * 2 * 8 * 16
    assert price(FFN, resource="kv-cache") == 0
    assert blocks_take(windowed, "kv-cache") == 2 * 2 * 8 * (tokens + 16)
    # As the cost model counts them.
    flops = block_flops(config, unit_counts(config), tokens) * tokens
    assert blocks_take(config, "flops") == pytest.approx(flops, rel=1e-9)


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
    assert sublayer_price(config, ATTENTION, config.dense_shape) == 24 * matrix + 576


def test_latencies_are_those_of_the_table_as_it_is_now(tmp_path: Path) -> None:
    config = make_tiny_config(layers=1, shape=LayerShape(4, 2, 8))
    pruning = PruningSettings(budget="latency", latencies=str(tmp_path / "table.json"), neuron_multiple=1)
    for nanoseconds in (1000, 2000):
        second = nanoseconds / 1e9
        table = Latencies(device="none", tokens=1, attention=((4, 2, second),), ffn=((8, second),))
        (tmp_path / "table.json").write_text(table.model_dump_json())
        # Files that are written within a tick of the clock are otherwise the same.
        os.utime(tmp_path / "table.json", ns=(nanoseconds, nanoseconds))
        assert dearest_heads(4, config, "latency", table=pruning.table("latency")) == nanoseconds
        assert ffn_price(8, config, pruning, "latency") == nanoseconds
        assert blocks_take(config, "latency", pruning.table("latency")) == 2 * nanoseconds
    with pytest.raises(UserError, match="a budget of latency needs --latencies FILE"):
        blocks_take(config, "latency", PruningSettings(budget="latency").table("latency"))
