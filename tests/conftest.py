"""Fixtures for all tests: tiny models of any shape, and the embedded SmolLM2."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tyr_jax.io.builtin import builtin_model
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.spec import LayerShape, ModelConfig

TINY = LayerShape(heads=4, kv_heads=2, ffn=48)


def make_tiny_config(layers: int = 3, shape: LayerShape = TINY, **overrides: Any) -> ModelConfig:
    """A small grouped-query Llama; `layers` and `shape`, or any field of `ModelConfig`, can be set."""
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab": 96,
        "hidden": 32,
        "head_dim": 8,
        "layers": (shape,) * layers,
        "max_positions": 128,
    }
    return ModelConfig(**(fields | overrides))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    return make_tiny_config


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 290 tokens, with special tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat and the other thing"] * 9, trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    return result


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return builtin_model()


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    return load_model("builtin")
