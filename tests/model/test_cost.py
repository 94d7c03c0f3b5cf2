"""FLOPs and bytes, counted by hand and by XLA."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.model.cost import block_flops, cache_bytes, decode_bytes, unit_counts
from tyr_jax.model.linear import linear
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import block_specs

Configs = Callable[..., ModelConfig]
LAYERS = (LayerShape(4, 2, 48), LayerShape(3, 1, 0), LayerShape(0, 0, 16))


def test_flops_by_hand(tiny_config: Configs) -> None:
    config = dataclasses.replace(tiny_config(), layers=LAYERS)
    units = unit_counts(config)
    assert units.tolist() == [[4, 3, 0], [48, 0, 16]]
    # q and o, k and v, gate, up and down; D = 32, H = 8. Of three tokens, a query meets two on average.
    projections = 2 * 32 * (8 * (2 * 4 + 2 * 2 + 2 * 3 + 2 * 1) + 3 * (48 + 16))
    assert block_flops(config, units, 3) == projections + 2 * 2 * 8 * (4 + 3) * 2
    # In chunks of two query rows, the three queries meet 2, 2 and 3 keys.
    assert block_flops(config, units, 3, 2) == pytest.approx(projections + 4 * 8 * 7 * 7 / 3)


def test_parts_of_units(tiny_config: Configs) -> None:
    """Unit counts may be fractions, as a budget is an average. One key/value head is left per query head."""
    config = tiny_config(layers=1)
    assert block_flops(config, np.array([[0.5], [1.5]]), 1) == 2 * 32 * (8 * 4 * 0.5 + 3 * 1.5) + 4 * 8 * 0.5
    full = block_flops(config, unit_counts(config), 5)
    assert block_flops(config, unit_counts(config) * 1.0, 5) == full


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True}, {"qk_norm": True}], ids=str)
def test_products_are_those_of_the_projections(changes: dict[str, bool], tiny_config: Configs) -> None:
    config = tiny_config(layers=1, **changes)
    shapes = [(spec.shape, len(spec.inputs)) for spec in block_specs(config, 0) if spec.inputs]
    found = 0.0
    for shape, inputs in shapes:
        x, weight = jnp.ones((1, int(np.prod(shape[:inputs])))), jnp.ones(shape)
        found += jax.jit(linear).lower(x, weight).cost_analysis()["flops"]
    keys = 4 * config.head_dim * config.dense_shape.heads
    assert block_flops(config, unit_counts(config), 1) == found + keys


@pytest.mark.usefixtures("extra_tensors")
def test_a_further_projection_counts(tiny_config: Configs) -> None:
    config = tiny_config(layers=1)
    plain = 2 * 32 * (8 * 12 + 3 * 48) + 4 * 8 * 4
    assert block_flops(config, unit_counts(config), 1) == plain + 2 * (4 * 2 + 32 * 48)


def test_bytes_by_hand(tiny_config: Configs) -> None:
    config = tiny_config(layers=1, qk_norm=True)
    block = 2 * 32 + 2 * 8 + 32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 48
    assert decode_bytes(config, 4) == 4 * (block + 32 * 96 + 32)
    assert cache_bytes(LAYERS, 8, 2) == 2 * 2 * 8 * (2 + 1)
