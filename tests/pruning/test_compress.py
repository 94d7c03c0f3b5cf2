"""Compressed models: layouts by hand and by brute force, and the same outputs as the masked model."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from reference import logits64, random_supernet, select
from tiny import ATTENTION, FFN
from transformers import PreTrainedTokenizerFast

from tyr_jax import space
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import block_specs, count_parameters, iter_tensors, random_params
from tyr_jax.pruning.compress import compress, kept_masks, mask
from tyr_jax.pruning.cut import head_layout
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.kinds import GROUPS, NEURONS
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet

Configs = Callable[..., ModelConfig]
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_ = None

# (kept heads, group size, kv heads read, heads of every group); a group of g costs g + 1.
LAYOUTS: list[tuple[list[int], int, list[int], list[tuple[int | None, ...]]]] = [
    # Counts 3 and 1: padding to 3 costs 2·4, duplication 4·2: a tie, fewer key/value heads win.
    ([0, 1, 2, 3], 3, [0, 1], [(0, 1, 2), (3, _, _)]),
    # Counts 2, 2, 1: groups of 2 cost 3·3, duplication 5·2.
    ([0, 1, 3, 5, 7], 3, [0, 1, 2], [(0, 1), (3, 5), (7, _)]),
    # Counts 1, 1, 1: nothing to pad.
    ([2, 3, 7], 3, [0, 1, 2], [(2,), (3,), (7,)]),
    # Counts 3, 1, 1: padding 3·4, groups of 2 4·3, duplication 5·2.
    ([0, 1, 2, 4, 8], 3, [0, 0, 0, 1, 2], [(0,), (1,), (2,), (4,), (8,)]),
    # Counts 3, 2, 1 (the nine heads of SmolLM2): all three cost 12.
    ([0, 1, 2, 3, 4, 6], 3, [0, 1, 2], [(0, 1, 2), (3, 4, _), (6, _, _)]),
    # Counts 4, 2: groups of 2 cost 3·3, padding 2·5, duplication 6·2: a key/value head twice.
    ([0, 1, 2, 3, 5, 6], 4, [0, 0, 1], [(0, 1), (2, 3), (5, 6)]),
    # A whole group is removed, together with its key/value head.
    ([3, 5], 3, [1], [(3, 5)]),
    # Dense.
    (list(range(9)), 3, [0, 1, 2], [(0, 1, 2), (3, 4, 5), (6, 7, 8)]),
    # One key/value head for all, and one for each.
    ([1, 4, 6], 8, [0], [(1, 4, 6)]),
    ([0, 2, 3], 1, [0, 2, 3], [(0,), (2,), (3,)]),
]


@pytest.mark.parametrize(("kept", "group", "kv", "heads"), LAYOUTS, ids=str)
def test_layouts_by_hand(kept: list[int], group: int, kv: list[int], heads: list[tuple]) -> None:
    layout = head_layout(np.array(kept), group)
    assert list(layout.kv_source) == kv
    assert list(layout.heads) == heads


@settings(max_examples=200)
@given(group=st.integers(1, 8), kv_heads=st.integers(1, 6), data=st.data())
def test_layouts_are_the_cheapest_regular_ones(group: int, kv_heads: int, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, group * kv_heads - 1), min_size=1)))
    layout = head_layout(np.array(kept), group)
    assert len(layout.kv_source) == len(layout.heads)
    (size,) = {len(heads) for heads in layout.heads}
    real = [(kv, head) for kv, heads in zip(*dataclasses.astuple(layout), strict=True) for head in heads]
    assert sorted(head for _, head in real if head is not None) == kept
    assert all(head // group == kv for kv, head in real if head is not None)
    assert all(any(head is not None for head in heads) for heads in layout.heads)
    counts = [sum(head // group == kv for head in kept) for kv in range(kv_heads)]

    def cost(g: int) -> int:
        return sum(math.ceil(count / g) for count in counts) * (g + 1)

    costs = {g: cost(g) for g in range(1, group + 1)}
    assert len(layout.heads) * (size + 1) == min(costs.values())


def make(
    config: ModelConfig, heads: list[int], neurons: list[int], unit: Any = "head", seed: int = 0
) -> tuple[Params, Supernet, np.ndarray]:
    """(dense params, supernet, distribution) whose layers keep `heads` (units) and `neurons`."""
    kinds = PruningSettings(units=(unit,)).kinds(config)
    grid = space.level_grid(kinds, np.array([heads, neurons]), 3, 0.25)
    net = random_supernet(config, grid, kinds[ATTENTION].units, seed)
    return random_params(config, jax.random.key(seed), scale=0.2), net, space.centre_distribution(grid)


def check(
    config: ModelConfig, params: Params, net: Supernet, levels: np.ndarray
) -> tuple[Params, ModelConfig]:
    """Compress, and compare with the masked model in float64; shapes and counts agree with the config."""
    small, shape = compress(params, net, levels, config)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (2, 9))
    masked = select(params, net, levels)
    np.testing.assert_allclose(
        logits64(small, tokens, shape), logits64(masked, tokens, config), rtol=1e-9, atol=1e-9
    )
    zeros = mask(params, net, levels, config)
    np.testing.assert_allclose(
        logits64(zeros, tokens, config), logits64(masked, tokens, config), rtol=1e-9, atol=1e-9
    )
    for spec, array in iter_tensors(small, shape):
        assert array.shape == spec.shape, spec.key
    leaves = jax.tree.leaves(small)
    assert sum(array.size for array in leaves) == count_parameters(shape)[1]
    assert all(isinstance(array, jax.Array) and array.dtype == jnp.float32 for array in leaves)
    return small, shape


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], list[int], list[int], str, int]:
    kv_heads, group = draw(st.sampled_from([(2, 2), (3, 3), (1, 4), (4, 1)]))
    unit = draw(st.sampled_from(["head", "kv_group"]))
    units = kv_heads * group if unit == "head" else kv_heads
    bias = draw(st.booleans())
    changes = {
        "shape": LayerShape(kv_heads * group, kv_heads, 24),
        "layers": 2,
        "tied": draw(st.booleans()),
        "qkv_bias": bias or draw(st.booleans()),
        "out_bias": bias,
        "mlp_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
    }
    heads = draw(st.lists(st.integers(0, units), min_size=2, max_size=2))
    neurons = draw(st.lists(st.sampled_from([0, 8, 16, 24]), min_size=2, max_size=2))
    return changes, heads, neurons, unit, draw(st.integers(0, 99))


@pytest.mark.slow
@settings(max_examples=20)
@given(problem=problems())
def test_compressed_and_masked_models_are_one_function(problem: Any, tiny_config: Configs) -> None:
    changes, heads, neurons, unit, seed = problem
    config = tiny_config(**changes)
    params, net, levels = make(config, heads, neurons, unit, seed)
    _, shape = check(config, params, net, levels)
    per_unit = config.dense_shape.heads // net.ranks["attention"].shape[1]
    for layer, kept in enumerate(heads):
        assert shape.layers[layer].heads >= kept * per_unit
        if unit == "kv_group" and kept:
            assert shape.layers[layer].heads == kept * per_unit
            assert shape.layers[layer].kv_heads == kept
        if not config.mlp_bias:
            assert shape.layers[layer].ffn == neurons[layer]


@pytest.mark.parametrize("changes", [BIASES, {"tied": True, "qkv_bias": True}], ids=str)
def test_forwards_agree(changes: dict[str, Any], tiny_config: Configs) -> None:
    config = tiny_config(**changes)
    params, net, levels = make(config, [3, 0, 2], [16, 48, 0])
    small, shape = check(config, params, net, levels)
    assert isinstance(small["blocks"], tuple)
    tokens = np.random.default_rng(1).integers(0, config.vocab, (2, 16))
    ours = forward(small, tokens, shape)
    masked = forward(select(params, net, levels), tokens, config)
    assert np.abs(np.asarray(ours - masked)).max() <= 1e-4
    assert np.std(masked) > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("extra_tensors")
def test_a_further_tensor_is_cut_along_its_axes(tiny_config: Configs) -> None:
    config = tiny_config(layers=1, shape=LayerShape(6, 2, 24))
    params, net, _ = make(config, [4], [8])
    # Three heads of the first group and one of the second: the second is padded.
    net = net.replace(ranks=net.ranks | {"attention": jnp.asarray([[0, 1, 2, 3, 4, 5]])})
    levels = np.array([[1], [1]])
    small, shape = compress(params, net, levels, config)
    assert shape.layers == (LayerShape(6, 2, 8),)
    dense, cut = (
        {name: np.asarray(array[0]) for name, array in model["blocks"].items()} for model in (params, small)
    )
    heads, neurons = [0, 1, 2, 3, 0, 0], np.flatnonzero(np.asarray(net.ranks["ffn"][0]) < 8)
    real = np.array([1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(cut["head_extra"], dense["head_extra"][:, heads] * real)
    np.testing.assert_array_equal(cut["group_extra"], dense["group_extra"])
    np.testing.assert_array_equal(cut["both_extra"], dense["both_extra"][heads] * real[:, None])
    np.testing.assert_array_equal(cut["neuron_extra"], dense["neuron_extra"][:, neurons])
    np.testing.assert_array_equal(cut["plain_extra"], dense["plain_extra"])
    zeros = mask(params, net, levels, config)["blocks"]
    assert np.abs(zeros["head_extra"][0]).sum(axis=0).astype(bool).tolist() == [True] * 4 + [False] * 2
    # One head of the second group, now without the first group.
    last = {"attention": jnp.asarray([[1, 2, 3, 4, 5, 0]])}
    net = net.replace(ranks=net.ranks | last, kept=net.kept.at[ATTENTION].set(1))
    cut, _ = compress(params, net, levels, config)
    np.testing.assert_array_equal(cut["blocks"]["both_extra"][0], dense["both_extra"][5:, 1:])
    np.testing.assert_array_equal(cut["blocks"]["group_extra"][0], dense["group_extra"][..., 1:])


def test_a_tensor_that_is_in_no_table_is_not_dropped(tiny_config: Configs) -> None:
    config = tiny_config(layers=1)
    params, net, levels = make(config, [4], [8])
    params["blocks"]["stranger"] = jnp.ones((1, 3))
    with pytest.raises(KeyError, match="stranger"):
        compress(params, net, levels, config)


def test_carriers_may_be_more_than_the_dense_neurons(tiny_config: Configs) -> None:
    config = tiny_config(layers=1, shape=LayerShape(4, 2, 4), mlp_bias=True)
    params, net, levels = make(config, [4], [0])
    check(config, params, net, levels)


def test_empty_sublayers_have_no_tensors(tiny_config: Configs) -> None:
    config = tiny_config()
    params, net, levels = make(config, [0, 4, 0], [48, 0, 0])
    small, shape = check(config, params, net, levels)
    assert shape.layers == (LayerShape(0, 0, 48), LayerShape(4, 2, 0), LayerShape(0, 0, 0))
    names = [set(block) for block in small["blocks"]]
    assert names == [{"mlp_norm", "gate", "up", "down"}, {"attn_norm", "q", "k", "v", "o"}, set()]


def test_output_biases_outlive_their_units(tiny_config: Configs) -> None:
    config = tiny_config(**BIASES)
    params, net, levels = make(config, [0, 1, 4], [48, 0, 8])
    small, shape = check(config, params, net, levels)
    assert shape.layers == (LayerShape(1, 1, 48), LayerShape(1, 1, 8), LayerShape(4, 2, 8))
    for block, name, dense in ((small["blocks"][0], "o", 0), (small["blocks"][1], "down", 1)):
        assert not np.asarray(block[name]).any()
        kept = np.asarray(block[f"{name}_bias"])
        np.testing.assert_array_equal(kept, params["blocks"][f"{name}_bias"][dense])
    wide, wider = compress(params, net, levels, config, neuron_multiple=16)
    assert wider.layers[1].ffn == 16
    assert wide["blocks"][1]["down"].shape == (16, config.hidden)


def test_query_biases_of_padded_heads_are_gone(tiny_config: Configs) -> None:
    config = tiny_config(shape=LayerShape(6, 2, 24), layers=1, qkv_bias=True)
    params, net, _ = make(config, [4], [24])
    # Three heads of the first group and one of the second: the second is padded.
    net = net.replace(ranks=net.ranks | {"attention": jnp.asarray([[0, 1, 2, 3, 4, 5]])})
    real = (np.arange(6) < 4)[:, None, None]
    heads = jnp.asarray(np.broadcast_to(real, net.weights["attention"].shape) * 0.3)
    net = net.replace(weights=net.weights | {"attention": heads})
    small, shape = check(config, params, net, np.array([[1], [1]]))
    assert shape.layers == (LayerShape(6, 2, 24),)
    blocks = small["blocks"]
    for name, axis in (("q", 1), ("o", 0), ("q_bias", 0)):
        heads = np.moveaxis(np.asarray(blocks[name][0]), axis, 0).reshape(6, -1)
        assert np.abs(heads).sum(axis=1).astype(bool).tolist() == [True] * 4 + [False] * 2


def test_a_uniform_result_stays_stacked(tiny_config: Configs) -> None:
    config = tiny_config(layers=2)
    params, net, levels = make(config, [2, 2], [16, 16], unit="head", seed=3)
    net = net.replace(ranks=net.ranks | {"attention": jnp.asarray([[0, 1, 2, 3], [3, 2, 1, 0]])})
    kept = (np.asarray(net.ranks["attention"]) < 2)[:, None, :, None, None]
    net = net.replace(weights=net.weights | {"attention": net.weights["attention"] * 0 + 0.1 * kept})
    small, shape = check(config, params, net, levels)
    assert shape.layers == (LayerShape(2, 1, 16),) * 2
    assert isinstance(small["blocks"], dict)
    assert small["blocks"]["q"].shape == (2, 32, 2, 8)
    np.testing.assert_array_equal(small["blocks"]["k"][1], params["blocks"]["k"][1, :, 1:])


def test_masks_of_kept_heads_and_neurons(tiny_config: Configs) -> None:
    config = tiny_config(layers=2, shape=LayerShape(6, 3, 4))
    ranks = {"attention": jnp.array([[2, 0, 1], [1, 2, 0]]), "ffn": jnp.array([[3, 0, 2, 1]] * 2)}
    kept = jnp.array([[[0, 1, 2]] * 2, [[1, 2, 3]] * 2])
    net = Supernet({}, ranks, kept, None, None, None, None, kinds=(GROUPS, NEURONS))
    heads, neurons = kept_masks(net, np.array([[1, 2], [0, 2]]), config).values()
    # One group of the first layer is kept, two of the second, of two heads each.
    assert heads.astype(int).tolist() == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1]]
    assert neurons.astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 1]]


def test_a_mask_leaves_nothing_of_removed_units(tiny_config: Configs) -> None:
    config = tiny_config(**BIASES)
    params, net, levels = make(config, [2, 0, 1], [16, 48, 0])
    heads, neurons = kept_masks(net, levels, config).values()
    kv = np.stack([heads[:, :2].any(axis=1), heads[:, 2:].any(axis=1)], axis=1)
    zeros = mask(params, net, levels, config)
    for letter, kept, count in (("N", heads, 3), ("K", kv, 4), ("F", neurons, 5)):
        specs = [spec for spec in block_specs(config, 0) if letter in spec.axes]
        assert len(specs) == count
        for spec in specs:
            array = np.moveaxis(np.asarray(zeros["blocks"][spec.name]), 1 + spec.axes.index(letter), 1)
            present = np.abs(array).reshape(*kept.shape, -1).sum(axis=2) > 0
            np.testing.assert_array_equal(present, kept, err_msg=spec.name)
    for name in ("attn_norm", "mlp_norm", "o_bias", "down_bias"):
        np.testing.assert_array_equal(zeros["blocks"][name], params["blocks"][name])


def test_what_is_kept_are_the_tensors_of_the_dense_model(tiny_config: Configs) -> None:
    config = tiny_config()
    params, net, levels = make(config, [1, 2, 3], [8, 16, 24], seed=5)
    small, _ = check(config, params, net, levels)
    heads, neurons = kept_masks(net, levels, config).values()
    assert heads.sum(axis=1).tolist() == [1, 2, 3]
    assert neurons.sum(axis=1).tolist() == [8, 16, 24]
    for layer, block in enumerate(small["blocks"]):
        dense = {name: array[layer] for name, array in params["blocks"].items()}
        np.testing.assert_array_equal(block["up"], dense["up"][:, neurons[layer]])
        np.testing.assert_array_equal(block["gate"], dense["gate"][:, neurons[layer]])
        np.testing.assert_array_equal(block["down"], net.weights["ffn"][layer, 1][neurons[layer]])
        np.testing.assert_array_equal(block["mlp_norm"], dense["mlp_norm"])
        np.testing.assert_array_equal(block["attn_norm"], dense["attn_norm"])
        for name in ("k", "v"):
            for group in range(block[name].shape[1]):
                same = [np.array_equal(block[name][:, group], dense[name][:, kv]) for kv in range(2)]
                assert any(same)
    for name in ("embed", "final_norm", "unembed"):
        assert small[name] is params[name]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"family": "qwen3", "qk_norm": True, "head_dim": 12}], ids=str)
def test_a_pruned_model_survives_the_way_through_a_directory(
    changes: dict[str, Any], tiny_config: Configs, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The whole path: supernet, an uneven distribution, compress, save, load."""
    config = tiny_config(vocab=300, **changes)
    params = random_params(config, jax.random.key(0), scale=0.2)
    pruning = PruningSettings(neuron_chunk=4)
    grid = space.level_grid(pruning.kinds(config), np.array([[1, 2, 3], [16, 32, 8]]), 5, 0.2)
    tokens = np.random.default_rng(0).integers(0, 300, (3, 16))
    net = build_supernet(params, [tokens], FoldPlan(config, grid, pruning))
    levels = np.array([[1, 1, 3], [2, 4, 1]])
    units = space.kept_units(grid, levels)
    assert units.tolist() == [[0, 1, 4], [16, 48, 0]]
    small, shape = check(config, params, net, levels)
    save_model(tmp_path, LoadedModel(shape, small, tiny_tokenizer, {"model_type": config.family}))
    loaded = load_model(str(tmp_path))
    assert loaded.config == shape
    assert [layer.ffn for layer in shape.layers] == units[FFN].tolist()
    before, after = (forward(p, tokens, shape) for p in (small, loaded.params))
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
