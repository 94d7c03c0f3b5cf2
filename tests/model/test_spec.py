"""The table of tensors: names, layouts and counts against published models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tyr_jax.io.hf import SafetensorsSource, load_params
from tyr_jax.model.spec import BlockTensor, LayerShape, ModelConfig, Sublayer
from tyr_jax.model.tensors import (
    TensorSpec,
    all_specs,
    block_specs,
    build_params,
    count_parameters,
    iter_tensors,
    layer_block,
    model_specs,
    random_params,
)

Configs = Callable[..., ModelConfig]
HETEROGENEOUS = (LayerShape(4, 2, 48), LayerShape(0, 0, 20), LayerShape(3, 1, 0), LayerShape(0, 0, 0))


def published(
    vocab: int, hidden: int, head_dim: int, layers: tuple[int, int, int, int], **changes: Any
) -> ModelConfig:
    depth, *shape = layers
    return ModelConfig("llama", vocab, hidden, head_dim, (LayerShape(*shape),) * depth, **changes)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (published(49152, 576, 64, (30, 9, 3, 1536), tied=True), 134_515_008),  # SmolLM2-135M
        (published(128256, 4096, 128, (32, 32, 8, 14336)), 8_030_261_248),  # Llama-3.1-8B
        (published(151936, 896, 64, (24, 14, 2, 4864), tied=True, qkv_bias=True), 494_032_768),  # Qwen2-0.5B
        (published(151936, 1024, 128, (28, 16, 8, 3072), tied=True, qk_norm=True), 596_049_920),  # Qwen3-0.6B
    ],
    ids=["SmolLM2-135M", "Llama-3.1-8B", "Qwen2-0.5B", "Qwen3-0.6B"],
)
def test_published_parameter_counts(config: ModelConfig, total: int) -> None:
    inside, everything = count_parameters(config)
    assert everything == total
    embeddings = config.vocab * config.hidden * (1 if config.tied else 2)
    assert inside == total - embeddings - config.hidden


def test_checkpoint_names_and_shapes(tiny_config: Configs) -> None:
    config = tiny_config(qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True)
    table = {spec.key: (spec.axes, spec.shape, spec.checkpoint_shape) for spec in block_specs(config, 2)}
    prefix = "model.layers.2."
    assert table == {
        prefix + "input_layernorm.weight": ("D", (32,), (32,)),
        prefix + "self_attn.q_proj.weight": ("DNH", (32, 4, 8), (32, 32)),
        prefix + "self_attn.k_proj.weight": ("DKH", (32, 2, 8), (16, 32)),
        prefix + "self_attn.v_proj.weight": ("DKH", (32, 2, 8), (16, 32)),
        prefix + "self_attn.o_proj.weight": ("NHD", (4, 8, 32), (32, 32)),
        prefix + "self_attn.q_proj.bias": ("NH", (4, 8), (32,)),
        prefix + "self_attn.k_proj.bias": ("KH", (2, 8), (16,)),
        prefix + "self_attn.v_proj.bias": ("KH", (2, 8), (16,)),
        prefix + "self_attn.o_proj.bias": ("D", (32,), (32,)),
        prefix + "self_attn.q_norm.weight": ("H", (8,), (8,)),
        prefix + "self_attn.k_norm.weight": ("H", (8,), (8,)),
        prefix + "post_attention_layernorm.weight": ("D", (32,), (32,)),
        prefix + "mlp.gate_proj.weight": ("DF", (32, 48), (48, 32)),
        prefix + "mlp.up_proj.weight": ("DF", (32, 48), (48, 32)),
        prefix + "mlp.down_proj.weight": ("FD", (48, 32), (32, 48)),
        prefix + "mlp.gate_proj.bias": ("F", (48,), (48,)),
        prefix + "mlp.up_proj.bias": ("F", (48,), (48,)),
        prefix + "mlp.down_proj.bias": ("D", (32,), (32,)),
    }
    outside = {spec.key: spec.checkpoint_shape for spec in model_specs(config)}
    assert outside == {
        "model.embed_tokens.weight": (96, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (96, 32),
    }
    assert "lm_head.weight" not in {spec.key for spec in model_specs(tiny_config(tied=True))}


@pytest.mark.parametrize(
    ("sublayer", "inputs", "outputs", "axis"),
    [("attention", "D", "F", "F"), ("ffn", "", "NH", "N"), ("ffn", "F", "E", "E"), ("ffn", "F", "F", "F")],
)
def test_an_axis_that_nothing_handles(sublayer: Sublayer, inputs: str, outputs: str, axis: str) -> None:
    with pytest.raises(ValueError, match=rf"tensor 'extra' has axis {axis}: one of the {sublayer}"):
        BlockTensor("extra", "extra.weight", inputs, outputs, sublayer)


@pytest.mark.usefixtures("extra_tensors")
def test_a_further_tensor_is_one_row(tiny_config: Configs, tmp_path: Path) -> None:
    """It is created, counted, written and read, in the layers that have its sublayer."""
    config = ModelConfig(**{**vars(tiny_config(vocab=300)), "layers": HETEROGENEOUS})
    params = random_params(config, jax.random.key(0))
    assert params["blocks"][0]["both_extra"].shape == (4, 2)
    assert set(params["blocks"][1]) == {"mlp_norm", "gate", "up", "down", "neuron_extra", "plain_extra"}
    assert sum(array.size for array in jax.tree.leaves(params)) == count_parameters(config)[1]
    arrays = {spec.key: spec.to_checkpoint(np.asarray(array)) for spec, array in iter_tensors(params, config)}
    save_file(arrays, tmp_path / "model.safetensors")
    assert arrays["model.layers.2.self_attn.both_extra.weight"].shape == (1, 3)
    chex.assert_trees_all_equal(load_params(SafetensorsSource(tmp_path), config), params)


def test_layouts_mean_what_they_say(tiny_config: Configs) -> None:
    rng = np.random.default_rng(0)
    specs = {spec.name: spec for spec in all_specs(tiny_config(layers=1))}
    stored = {name: rng.standard_normal(spec.checkpoint_shape) for name, spec in specs.items()}
    ours = {name: spec.from_checkpoint(stored[name]) for name, spec in specs.items()}
    # Row n·H + h of a stored projection is channel h of head n.
    assert ours["q"][5, 3, 2] == stored["q"][3 * 8 + 2, 5]
    assert ours["k"][5, 1, 7] == stored["k"][1 * 8 + 7, 5]
    assert ours["o"][3, 2, 5] == stored["o"][5, 3 * 8 + 2]
    assert ours["down"][40, 5] == stored["down"][5, 40]
    assert ours["gate"][5, 40] == stored["gate"][40, 5]
    assert ours["embed"][90, 5] == stored["embed"][90, 5]


@pytest.mark.parametrize(
    "changes",
    [{}, {"layers": HETEROGENEOUS}, {"tied": True}, {"qkv_bias": True, "out_bias": True, "mlp_bias": True}],
    ids=str,
)
def test_round_trip_of_every_tensor(changes: dict[str, Any], tiny_config: Configs) -> None:
    config = ModelConfig(**{**vars(tiny_config()), **changes})
    rng = np.random.default_rng(1)
    for spec in all_specs(config):
        array = rng.standard_normal(spec.shape)
        stored = spec.to_checkpoint(array)
        assert stored.shape == spec.checkpoint_shape
        assert stored.flags.c_contiguous
        np.testing.assert_array_equal(spec.from_checkpoint(stored), array)


@pytest.mark.parametrize("layers", [(LayerShape(4, 2, 48),) * 4, HETEROGENEOUS], ids=["uniform", "unequal"])
def test_params_follow_the_table(layers: tuple[LayerShape, ...], tiny_config: Configs) -> None:
    config = tiny_config()
    config = ModelConfig(**{**vars(config), "layers": layers})
    made: list[str] = []

    def make(spec: TensorSpec) -> np.ndarray:
        made.append(spec.key)
        return np.full(spec.shape, len(made), np.float32)

    params = build_params(config, make)
    keys = [spec.key for spec in all_specs(config)]
    assert sorted(made) == sorted(keys)
    pairs = list(iter_tensors(params, config))
    assert [spec.key for spec, _ in pairs] == keys
    for spec, array in pairs:
        assert array.shape == spec.shape
        assert np.asarray(array).reshape(-1)[0] == made.index(spec.key) + 1
    assert isinstance(params["blocks"], dict) == config.uniform
    assert sum(array.size for array in jax.tree.leaves(params)) == count_parameters(config)[1]
    block = layer_block(params["blocks"], 2)
    assert set(block) == {spec.name for spec in block_specs(config, 2)}


def test_absent_sublayers_have_no_tensors(tiny_config: Configs) -> None:
    biases = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
    config = ModelConfig(**{**vars(tiny_config(**biases)), "layers": HETEROGENEOUS})
    names = [{spec.name for spec in block_specs(config, layer)} for layer in range(4)]
    attention = {"attn_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias"}
    ffn = {"mlp_norm", "gate", "up", "down", "gate_bias", "up_bias", "down_bias"}
    assert names == [attention | ffn, ffn, attention, set()]


def test_layers_of_one_shape_are_uniform(tiny_config: Configs) -> None:
    config = tiny_config()
    assert (config.depth, config.uniform, config.dense_shape) == (3, True, LayerShape(4, 2, 48))
    unequal = ModelConfig(**{**vars(config), "layers": HETEROGENEOUS})
    assert (unequal.depth, unequal.uniform) == (4, False)
    with pytest.raises(ValueError, match="layers of this model differ"):
        _ = unequal.dense_shape
    assert hash(config) == hash(tiny_config())


def test_random_params_repeat(tiny_config: Configs) -> None:
    config = tiny_config()
    first, again, other = (random_params(config, jax.random.key(seed), scale=0.1) for seed in (0, 0, 1))
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()
    assert abs(float(np.mean(first["final_norm"])) - 1.0) < 0.1
    assert abs(float(np.std(first["embed"])) - 0.1) < 0.01
    assert not np.array_equal(first["blocks"]["q"][0], first["blocks"]["q"][1])
