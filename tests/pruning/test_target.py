"""Targets: how much the uniform model keeps for a sparsity, in units and in parameters."""

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import ATTENTION, FFN, make_tiny_config

from tyr_jax.errors import UserError
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import count_parameters
from tyr_jax.pruning.kinds import NEURONS
from tyr_jax.pruning.prices import Pricing
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.target import target_of
from tyr_jax.space import Budget

SMOLLM2 = ModelConfig("llama", 49152, 576, 64, (LayerShape(9, 3, 1536),) * 30)


def test_smollm2_in_parameters_keeps_attention_whole() -> None:
    target = target_of(SMOLLM2, PruningSettings(), 0.5)
    assert target.limits == {"parameters": 53_101_440}
    assert target.name == "0.5"
    assert (target.kept[ATTENTION] == 9).all()
    # 53,101,440 less attention, 26,559,360 - 17,280 of it norms: 26,559,360, 1,728 a neuron, in eights.
    assert target.kept[FFN].sum() == 8 * ((53_101_440 - 30 * (24 * 576 * 64 + 2 * 576)) // (8 * 3 * 576))
    assert np.ptp(target.kept[FFN]) == 8


def test_smollm2_in_units_loses_the_same_share_of_both() -> None:
    target = target_of(SMOLLM2, PruningSettings(budget="units"), 0.5)
    assert target.limits == {}
    assert target.kept.sum(axis=1).tolist() == [135, 23040]
    budget = target.budget(np.full((2, 30, 3), 9), np.zeros((2, 30, 3), int))
    assert budget.limit.tolist() == [135, 23040]
    assert budget.exact


@pytest.mark.parametrize("sparsity", [0.65, 0.75, 0.9, 0.98])
def test_heads_go_where_neurons_alone_would_be_too_few(sparsity: float) -> None:
    kept = target_of(SMOLLM2, PruningSettings(), sparsity).kept
    assert kept[ATTENTION].sum() < 270
    assert kept[FFN].sum() >= (1 - sparsity) / 2 * 30 * 1536 - 8


@pytest.mark.parametrize("sparsity", [0.75, 0.9])
def test_whole_groups_are_kept_as_many_as_fit(sparsity: float) -> None:
    """A model that keeps one more eight of neurons, or one more group, is beyond the limit."""
    pruning = PruningSettings(units=("kv_group",))
    target = target_of(SMOLLM2, pruning, sparsity)
    groups, neurons = target.kept.sum(axis=1).tolist()
    # Of a group of three query heads: queries, keys, values and outputs; then two norms a layer.
    group, neuron, norms = (3 + 1 + 1 + 3) * 64 * 576, 3 * 576, 30 * 2 * 576
    assert 0 < groups < 90
    spent = groups * group + neurons * neuron + norms
    assert spent <= target.limits["parameters"] < spent + 8 * neuron


@settings(max_examples=100)
@given(
    shape=st.sampled_from([(4, 2, 48), (6, 6, 40), (9, 3, 100)]),
    sparsity=st.floats(0.01, 0.97),
    multiple=st.sampled_from([1, 8]),
    biases=st.booleans(),
    heads=st.sampled_from([(), (0,), (0, 3)]),
    neurons=st.sampled_from([(), (1,)]),
)
def test_a_uniform_model_is_just_within_its_limit(
    shape: tuple[int, int, int],
    sparsity: float,
    multiple: int,
    biases: bool,
    heads: tuple[int, ...],
    neurons: tuple[int, ...],
) -> None:
    config = make_tiny_config(layers=4, shape=LayerShape(*shape), qkv_bias=biases, mlp_bias=biases)
    pruning = PruningSettings(neuron_multiple=multiple, keep_heads=heads, keep_neurons=neurons)
    try:
        target = target_of(config, pruning, sparsity)
    except UserError:
        return
    limit, kept = target.limits["parameters"], target.kept
    pricing = Pricing.of(config, pruning)
    rows = zip(pricing.kinds, kept.tolist(), strict=True)
    spent = sum(pricing.dearest(kind, count) for kind, row in rows for count in row)
    assert spent <= limit
    assert (kept[ATTENTION, list(heads)] == shape[0]).all()
    assert (kept[FFN, list(neurons)] == shape[2]).all()
    movable = np.delete(kept[FFN], neurons)
    assert (movable % multiple == 0).all()
    # One more step would exceed the budget, unless a layer is full, or has lost all neurons and its norm.
    if movable.max() < shape[2] // multiple * multiple and movable.min() > 0:
        one = dataclasses.replace(pruning, neuron_multiple=1)
        own = Pricing.of(config, one)
        neuron = own.level(NEURONS, 2) - own.level(NEURONS, 1)
        assert spent + neuron > limit - (multiple - 1) * neuron


def test_a_further_limit_takes_heads_from_the_uniform_model() -> None:
    """Half of the cache of multi-head attention is half of the heads; neurons then fill up the budget."""
    config = ModelConfig("llama", 1000, 64, 16, (LayerShape(4, 4, 256),) * 2)
    free = target_of(config, PruningSettings(), 0.3)
    target = target_of(config, PruningSettings(at_most=("kv-cache=0.5",)), 0.3)
    assert free.kept[ATTENTION].tolist() == [4, 4]
    assert target.kept[ATTENTION].tolist() == [2, 2]
    assert list(target.limits) == ["parameters", "kv-cache"]
    assert (target.kept[FFN] > free.kept[FFN]).all()
    flops = target_of(config, PruningSettings(budget="flops"), 0.3)
    # Scores count too, so that a share of the FLOPs is not that of the parameters.
    assert flops.limits["flops"] == math.floor(0.7 * Pricing.of(config, PruningSettings(), "flops").blocks())
    assert flops.kept[FFN].sum() < free.kept[FFN].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"at_most": ("cache=0.5",)},
            r"--at-most is cache=0\.5, but must be RESOURCE=SHARE",
        ),
        ({"at_most": ("kv-cache",)}, "--at-most is kv-cache, but must be RESOURCE=SHARE"),
        ({"at_most": ("kv-cache=1.5",)}, "--at-most is kv-cache=1.5, but must be RESOURCE=SHARE"),
        ({"at_most": ("kv-cache=0.5", "kv-cache=0.4")}, "--at-most is kv-cache=0.4, but must be one limit"),
        ({"at_most": ("parameters=0.5",)}, "and none for that of --budget"),
        ({"at_most": ("kv-cache=0.5",), "budget": "units"}, "left out with --budget units"),
        (
            {"at_most": ("kv-cache=0.001",)},
            r"--at-most kv-cache would keep [\d,]+ of [\d,]+ KV-cache entries",
        ),
    ],
)
def test_a_limit_that_is_none(options: dict[str, Any], message: str) -> None:
    pruning = PruningSettings(**options, keep_heads=(0,))

    def target() -> None:
        assert pruning.resources
        target_of(SMOLLM2, pruning, 0.5)

    with pytest.raises(UserError, match=message):
        target()


def test_a_budget_of_parameters_serves_all_levels() -> None:
    target = target_of(SMOLLM2, PruningSettings(), 0.5)
    prices = np.broadcast_to(np.array([0, 576_000, 1_152_000]), (1, 2, 30, 3))
    budget = target.budget(np.zeros((2, 30, 3), int), prices)
    assert isinstance(budget, Budget)
    assert budget.limit.tolist() == [53_101_440 // 576_000]


@pytest.mark.parametrize(
    ("sparsity", "options", "message"),
    [
        (
            0.0001,
            {},
            r"sparsity 0\.0001 is too small .* 8 FFN neurons, has 14,\d+ parameters, but only 10,\d+ of",
        ),
        (
            0.9999,
            {},
            r"would keep 10,6\d\d of 106,\d+,\d+ parameters of the blocks, fewer than a model needs",
        ),
        (
            0.5,
            {"keep_neurons": tuple(range(30))},
            "fewer than a model needs; choose a lower sparsity, or list",
        ),
        (0.5, {"neuron_multiple": 2000}, "1536 ffn units, but must keep a multiple of 2000"),
        (0.5, {"keep_heads": (30,)}, "--keep-heads names layer 30"),
    ],
)
def test_impossible_targets(sparsity: float, options: dict, message: str) -> None:
    assert count_parameters(SMOLLM2)[0] == 106_202_880
    with pytest.raises(UserError, match=message):
        target_of(SMOLLM2, PruningSettings(**options), sparsity)
