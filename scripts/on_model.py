"""Options that benchmarks of a model share: the model, and the amount of text."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from tyr_jax.data import DataSpec, Splits, load_splits
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.spec import ModelConfig


@dataclasses.dataclass(frozen=True)
class OnModel:
    """A model."""

    model: str = "builtin"
    """The dense model."""

    def load(self, dtype: DTypeLike = jnp.float32) -> LoadedModel:
        """The model, with weights in `dtype`."""
        return load_model(self.model, dtype)


@dataclasses.dataclass(frozen=True)
class OnBatches(OnModel):
    """A model pruned to a target, on batches of sequences."""

    sparsity: float = 0.5
    """Target."""
    sequence_length: int = 512
    """Tokens of a sequence."""
    batch_tokens: int = 4096
    """Tokens per batch."""


@dataclasses.dataclass(frozen=True)
class OnText(OnModel):
    """A model, and text to prune and search on."""

    calibration: tuple[str, ...] = ("builtin",)
    """Calibration text."""

    def splits(self, model: LoadedModel, length: int, **amounts: Any) -> Splits:
        """The text in sequences of `length` tokens, as much as `amounts` say."""
        data = DataSpec(
            calibration=self.calibration,
            evaluation_windows=1,
            sequence_length=length,
            search_length=length,
            **amounts,
        )
        return load_splits(data, model.tokenizer, 0)


def torch_model(config: ModelConfig, dtype: str = "float32") -> Any:
    """transformers' Llama of the same shape, with random weights in `dtype`. The weights do not affect the
    time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.dense_shape
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=config.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=config.head_dim,
            tie_word_embeddings=True,
        )
    )
    return model.to(getattr(torch, dtype))
