"""What benchmarks of a model have in common: which one, and how much text."""

import dataclasses
from typing import Any

from tyr_jax.data import DataSpec, Splits, load_splits
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.spec import ModelConfig


@dataclasses.dataclass(frozen=True)
class OnModel:
    """A model."""

    model: str = "builtin"
    """The dense model."""

    def load(self) -> LoadedModel:
        """The model."""
        return load_model(self.model)


@dataclasses.dataclass(frozen=True)
class OnBatches(OnModel):
    """A model pruned to a target, on batches of sequences."""

    sparsity: float = 0.5
    """Target."""
    sequence_length: int = 512
    """Tokens of a sequence."""
    batch_tokens: int = 4096
    """Tokens that run at a time."""


@dataclasses.dataclass(frozen=True)
class OnText(OnModel):
    """A model, and text to prune and to search it on."""

    calibration: tuple[str, ...] = ("builtin",)
    """Text."""

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


def torch_model(config: ModelConfig) -> Any:
    """transformers' Llama of the same shape (random weights: the time does not depend on them)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.dense_shape
    return LlamaForCausalLM(
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
