"""Directories that we wrote, loaded in transformers with the modelling file that they contain."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from speeds import only_quick
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.rope import Positions
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import random_params

pytestmark = pytest.mark.usefixtures("modules")

TOKENS = np.random.default_rng(0).integers(0, 290, (2, 40))
WHOLE, SMALL, NOTHING = LayerShape(4, 2, 48), LayerShape(2, 2, 16), LayerShape(0, 0, 0)
GLOBAL = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CASES: list[dict[str, Any]] = [
    {"layers": (WHOLE, LayerShape(3, 1, 40), SMALL)},
    {"layers": (WHOLE, LayerShape(3, 3, 40), NOTHING), "tied": True},
    {"layers": (LayerShape(0, 0, 40), WHOLE, LayerShape(3, 3, 0)), "family": "qwen2", "qkv_bias": True},
    {
        "layers": (NOTHING, WHOLE, LayerShape(0, 0, 16)),
        "family": "mistral",
        "positions": (Positions(window=24),),
    },
    {"layers": (LayerShape(4, 2, 0), SMALL, WHOLE), "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    {"layers": (WHOLE, LayerShape(3, 1, 40), NOTHING), "family": "qwen3", "qk_norm": True, "head_dim": 12},
    {
        "layers": (LayerShape(0, 0, 40), WHOLE, LayerShape(3, 3, 0)),
        "family": "qwen3",
        **dict.fromkeys(("qk_norm", "qkv_bias", "out_bias", "tied"), True),
    },
    # Equal layers whose sizes divide the hidden size in another way than transformers assumes.
    {"layers": (LayerShape(3, 1, 40),) * 3},
]

Save = Callable[..., tuple[Path, ModelConfig, Params]]


@pytest.fixture
def save(tiny_config: Callable[..., ModelConfig], tiny_tokenizer: Any, tmp_path: Path) -> Save:
    """Write a random model with some fields of its configuration changed."""

    def save(**changes: Any) -> tuple[Path, ModelConfig, Params]:
        layers = changes.pop("layers")
        uniform = tiny_config(vocab=300, **changes)
        config = type(uniform)(**{**uniform.__dict__, "layers": layers})
        params = random_params(config, jax.random.key(0), scale=0.2)
        directory = tmp_path / "written"
        directory.mkdir()
        base = {"model_type": config.family, **GLOBAL}
        save_model(directory, LoadedModel(config, params, tiny_tokenizer, base, {"eos_token_id": 2}))
        return directory, config, params

    return save


def in_torch(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("changes", only_quick(CASES, CASES[0]), ids=str)
def test_transformers_computes_the_same(changes: dict[str, Any], save: Save, tmp_path: Path) -> None:
    directory, config, params = save(**changes)
    model = in_torch(directory)
    ours = np.asarray(forward(params, jnp.asarray(TOKENS), config))
    theirs = logits(model)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    # Both transformers and we can read what it saves.
    model.save_pretrained(tmp_path / "again")
    again = in_torch(tmp_path / "again")
    np.testing.assert_array_equal(logits(again), theirs)
    load_tokenizer(directory).save_pretrained(tmp_path / "again")
    assert load_model(str(tmp_path / "again")).config.layers == config.layers


@pytest.mark.parametrize("changes", only_quick(CASES, CASES[0]), ids=str)
def test_generation_with_a_cache(changes: dict[str, Any], save: Save) -> None:
    """Generate past the window, and with beam search, which reorders the cache."""
    model = in_torch(save(**changes)[0])
    prompt = torch.from_numpy(TOKENS[:, :10])
    options = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    for beams in (1, 3):
        cached, plain = (
            model.generate(prompt, use_cache=cache, num_beams=beams, **options).numpy()
            for cache in (True, False)
        )
        assert cached.shape == (2, 30)
        np.testing.assert_array_equal(cached, plain)


def load_tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


def test_the_tokenizer_needs_no_trust(save: Save, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    directory, _, _ = save(**CASES[0])
    text = "the cat and the hat"
    assert load_tokenizer(directory)(text).input_ids == tiny_tokenizer(text).input_ids


def test_layers_of_one_shape_need_no_modelling_file(save: Save) -> None:
    directory, config, params = save(layers=(SMALL,) * 3)
    assert not (directory / "modeling_pruned.py").exists()
    assert "auto_map" not in json.loads((directory / "config.json").read_text())
    stock = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert type(stock).__name__ == "LlamaForCausalLM"
    ours = np.asarray(forward(params, jnp.asarray(TOKENS), config))
    np.testing.assert_allclose(logits(stock), ours, rtol=0, atol=1e-4)
