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
from speeds import only_quick
from tiny import FFN, make_tiny_config

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model.cost import block_flops, unit_counts
from tyr_jax.model.spec import LayerShape, Positions
from tyr_jax.model.tensors import count_parameters, random_params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.kinds import EXPERT_NEURONS, HEADS, NEURONS
from tyr_jax.pruning.latency import Latencies
from tyr_jax.pruning.prices import Pricing, level_prices, sublayer_price
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.target import target_of

EXPERTS = {"routed": 2}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("unit", only_quick(["head", "kv_group"], "head"))
@pytest.mark.parametrize("options", only_quick([{}, BIASES, {"qk_norm": True}, EXPERTS], BIASES), ids=str)
def test_a_distribution_costs_what_its_compressed_model_has(
    options: dict[str, Any], unit: Literal["head", "kv_group"]
) -> None:
    config = make_tiny_config(layers=3, shape=LayerShape(6, 2, 48, 5 if options == EXPERTS else 0), **options)
    pruning = PruningSettings(units=(unit,))
    attention, ffn = pruning.kinds(config)
    centres = np.array([[attention.units // 2] * 3, [24] * 3])
    grid = space.level_grid((attention, ffn), centres, 7, 1 / 6)
    supernet = random_supernet(config, grid, attention.units)
    (prices,) = level_prices(config, pruning, grid.kept, supernet.ranks)
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
    pricing = Pricing.of(config, settings, "active-parameters")
    assert pricing.sublayer(EXPERT_NEURONS, config.dense_shape) == dense
    kept = np.array([[[6, 3]] * 2, [[16, 4]] * 2])
    ranks = {"attention": np.tile(np.arange(6), (2, 1))}
    (prices,) = level_prices(config, settings, kept, ranks, ["active-parameters"])
    assert prices[FFN].tolist() == [[dense, dense - 3 * 2 * 32 * 12]] * 2
    assert pricing.blocks() == prices[..., 0].sum()
    assert Pricing.of(config, PruningSettings(), "parameters").blocks() == count_parameters(config)[0]
    limits = target_of(config, settings, 0.3).limits
    assert limits == {"active-parameters": int(0.7 * pricing.blocks())}


def test_flops_and_cache_by_hand() -> None:
    config = make_tiny_config(layers=2, shape=LayerShape(6, 2, 48), hidden=32, head_dim=8)
    windowed = dataclasses.replace(config, positions=(Positions(1e4, None, 16), Positions(1e4, None, None)))
    tokens = 2048
    # Products with q, o of six heads, k, v of two, and three matrices of 32 × 48.
    attention, ffn = 2 * 32 * 8 * (6 + 6 + 2 + 2), 2 * 3 * 32 * 48
    scores = 2 * 2 * 6 * 8  # of a query with a key, and of the weighted sum
    everything = sum(range(1, tokens + 1))
    near = sum(min(row + 1, 16) for row in range(tokens))
    price = functools.partial(sublayer_price, config=windowed, shape=windowed.dense_shape)
    assert price(NEURONS, resource="flops") == tokens * ffn
    assert price(HEADS, resource="flops", layer=1) == tokens * attention + scores * everything
    assert price(HEADS, resource="flops", layer=0) == tokens * attention + scores * near
    assert price(HEADS, resource="kv-cache", layer=1) == 2 * 2 * 8 * tokens
    assert price(HEADS, resource="kv-cache", layer=0) == 2 * 2 * 8 * 16
    assert price(NEURONS, resource="kv-cache") == 0
    assert Pricing.of(windowed, PruningSettings(), "kv-cache").blocks() == 2 * 2 * 8 * (tokens + 16)
    # As the cost model counts them.
    flops = block_flops(config, unit_counts(config), tokens) * tokens
    assert Pricing.of(config, PruningSettings(), "flops").blocks() == pytest.approx(flops, rel=1e-9)


def test_heads_of_smollm2_by_hand() -> None:
    config = make_tiny_config(shape=LayerShape(9, 3, 48), hidden=576, head_dim=64)
    # Two matrices of a head and two of a key/value head, of 576 × 64 each, and a norm of 576.
    matrix = 576 * 64
    pricing = Pricing.of(config, PruningSettings())
    price = functools.partial(pricing.entries, HEADS)
    assert price(np.arange(9)) == 24 * matrix + 576
    assert price(np.arange(6)) == 16 * matrix + 576
    # Heads in groups of 3, 1 and 0: padded to two groups of three.
    assert price(np.array([0, 1, 2, 3])) == 16 * matrix + 576
    assert price(np.array([0, 1, 3, 4])) == 12 * matrix + 576
    assert price(np.array([], int)) == 0
    dearest = functools.partial(pricing.dearest, HEADS)
    assert dearest(4) == 16 * matrix + 576
    assert dearest(8) == dearest(9) == 24 * matrix + 576
    assert dearest(0) == 0
    assert pricing.sublayer(HEADS, config.dense_shape) == 24 * matrix + 576


def test_latencies_are_those_of_the_table_as_it_is_now(tmp_path: Path) -> None:
    config = make_tiny_config(layers=1, shape=LayerShape(4, 2, 8))
    pruning = PruningSettings(budget="latency", latencies=str(tmp_path / "table.json"), neuron_multiple=1)
    for nanoseconds in (1000, 2000):
        second = nanoseconds / 1e9
        table = Latencies(device="none", tokens=1, attention=((4, 2, second),), ffn=((8, second),))
        (tmp_path / "table.json").write_text(table.model_dump_json())
        # Files that are written within a tick of the clock are otherwise the same.
        os.utime(tmp_path / "table.json", ns=(nanoseconds, nanoseconds))
        pricing = Pricing.of(config, pruning, "latency")
        assert pricing.dearest(HEADS, 4) == nanoseconds
        assert pricing.level(NEURONS, 8) == nanoseconds
        assert pricing.blocks() == 2 * nanoseconds
    with pytest.raises(UserError, match="a budget of latency needs --latencies FILE"):
        Pricing.of(config, PruningSettings(budget="latency"), "latency").blocks()
