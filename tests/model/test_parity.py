"""Logits against transformers in torch, on weights that transformers has initialised, written or read."""

import copy
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from family_samples import CASES, torch_logits, torch_model
from speeds import only_quick

from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.io.hf import SafetensorsSource, load_params
from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model.decoder import forward

TINY = 1e-4
SMOLLM2 = 1e-3


def token_batch(vocab: int, length: int = 70) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocab, (2, length))


def load_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    config = config_from_hf(json.loads((directory / "config.json").read_text()))
    params = load_params(SafetensorsSource(directory), config)
    return np.asarray(forward(params, jnp.asarray(tokens), config))


def assert_same(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert theirs.std() > 0.1
    difference = np.abs(ours - theirs).max()
    print(f"max difference {difference:.2e} of logits with deviation {theirs.std():.2f}")
    assert difference <= tolerance
    second, first = np.sort(theirs, axis=-1)[..., -2:].transpose(2, 0, 1)
    clear = first - second > 2 * tolerance
    assert clear.mean() > 0.9
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


QUICK = (
    "llama-gqa",
    "qwen2-tied",
    "qwen3-windows",
    "granite",
    "gemma3",
    "glm4",
    "olmo2",
    "phi3",
    "mixtral",
    "gpt-oss",
)
"""Families that differ in structure."""


@pytest.mark.parametrize("case", only_quick(CASES, *QUICK))
def test_tiny_logits(case: str, tmp_path: Path) -> None:
    model = torch_model(CASES[case])
    model.save_pretrained(tmp_path)
    tokens = token_batch(96)
    assert_same(load_logits(tmp_path, tokens), torch_logits(model, tokens), TINY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_stored_dtypes_and_shards(dtype: str, shard: str | None, tmp_path: Path) -> None:
    model = torch_model(CASES["llama-gqa"]).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(shard)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = token_batch(96)
    assert_same(load_logits(tmp_path, tokens), torch_logits(reference, tokens), TINY)


def test_layers_that_differ(tmp_path: Path) -> None:
    """The reference is assembled by hand from transformers' own modules, with a config per layer."""
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    model = torch_model(CASES["llama-gqa"])
    narrow = copy.deepcopy(model.config)
    narrow.num_attention_heads, narrow.num_key_value_heads, narrow.intermediate_size = 3, 1, 20
    layers = model.model.layers
    layers[0].self_attn = LlamaAttention(narrow, 0)
    layers[2].mlp = LlamaMLP(narrow)
    layers[1].self_attn = NoAttention()
    layers[2].self_attn = NoAttention()
    layers[1].mlp = NoMlp()
    for index in (1, 2):
        layers[index].input_layernorm = torch.nn.Identity()
    layers[1].post_attention_layernorm = torch.nn.Identity()
    model.config.per_layer_config = None
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["per_layer_config"] = {
        "0": {"num_attention_heads": 3, "num_key_value_heads": 1},
        "1": {"skip": ["attention", "mlp"]},
        "2": {"intermediate_size": 20, "skip": ["attention"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = token_batch(96)
    assert_same(load_logits(tmp_path, tokens), torch_logits(model, tokens), TINY)


class NoAttention(torch.nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMlp(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_logits(smollm2: LoadedModel, smollm2_path: Path) -> None:
    """Compare with the GGUF as transformers reads it, not with our own export."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    text = Path(json.__file__).read_text()
    tokens = np.asarray(smollm2.tokenizer(text).input_ids[:600]).reshape(2, 300)
    ours = np.asarray(forward(smollm2.params, jnp.asarray(tokens), smollm2.config))
    assert_same(ours, torch_logits(model, tokens), SMOLLM2)
