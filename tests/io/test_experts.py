"""Checkpoints that have a matrix for every expert, or pack them all, where we have one tensor."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from family_samples import CASES, torch_model
from io_samples import Arrays
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.io.experts import by_key, dequantised
from tyr_jax.io.hf import load_params
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import iter_tensors, layer_block, random_params

LAYERS = LayerShape(4, 2, 12, 5), LayerShape(0, 0, 5, 5), LayerShape(3, 1, 0)
THIRD = "model.layers.0.mlp.experts.3.up_proj.weight"


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


def quantise(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random MXFP4 blocks and scales of a matrix `[X, O, I]`."""
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(118, 124, blocks.shape[:-1], dtype=np.uint8)


def test_four_bits_by_hand() -> None:
    """The lower half of a byte comes first, and a scale of 128 doubles."""
    blocks = np.zeros((1, 1, 1, 16), np.uint8)
    blocks[0, 0, 0, :3] = 0x21, 0xF7, 0x9A
    found = dequantised(blocks, np.full((1, 1, 1), 128, np.uint8)).astype(np.float32)
    assert found.shape == (1, 1, 32)
    np.testing.assert_array_equal(found[0, 0, :8], [1, 2, 12, -12, -2, -1, 0, 0])


@pytest.fixture
def published(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A GPT-OSS model with experts in MXFP4, as it is published."""
    case = CASES["gpt-oss"] | {"intermediate_size": 32, "vocab_size": 300}
    torch_model(case).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    arrays, rng = load_file(tmp_path / "model.safetensors"), np.random.default_rng(0)
    for layer in range(3):
        for name in ("gate_up_proj", "down_proj"):
            key = f"model.layers.{layer}.mlp.experts.{name}"
            experts, inputs, outputs = arrays.pop(key).shape
            arrays[key + "_blocks"], arrays[key + "_scales"] = quantise(rng, experts, outputs, inputs)
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path


def test_published_experts_of_four_bits(published: Path) -> None:
    """The same numbers as transformers reads."""
    convert = transformers.integrations.mxfp4.convert_moe_packed_tensors
    arrays, block = load_file(published / "model.safetensors"), None
    model = load_model(str(published))
    for layer in range(3):
        block = layer_block(model.params["blocks"], layer)
        key = f"model.layers.{layer}.mlp.experts."
        packed = {
            name: convert(*(torch.from_numpy(arrays[f"{key}{name}_{part}"]) for part in ("blocks", "scales")))
            for name in ("gate_up_proj", "down_proj")
        }
        gate_up, down = (array.float().numpy() for array in packed.values())
        np.testing.assert_array_equal(block["gate"], gate_up[..., ::2].swapaxes(0, 1))
        np.testing.assert_array_equal(block["up"], gate_up[..., 1::2].swapaxes(0, 1))
        np.testing.assert_array_equal(block["down"], down)
        bias = arrays[key + "gate_up_proj_bias"]
        np.testing.assert_array_equal(block["up_bias"], bias[:, 1::2])


def test_four_bits_that_do_not_fit(published: Path) -> None:
    arrays = load_file(published / "model.safetensors")
    key = "model.layers.1.mlp.experts.down_proj"
    for part, change, message in (
        ("_scales", lambda array: array[:, :-1], r"down_proj_blocks' of shape .* does not fit .*_scales'"),
        ("_blocks", lambda array: None, r"'model\.layers\.1\.mlp\.experts\.down_proj' is missing"),
    ):
        changed = arrays | {key + part: change(arrays[key + part])}
        there = {name: np.ascontiguousarray(array) for name, array in changed.items() if array is not None}
        save_file(there, published / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            load_model(str(published))
