"""A tiny model of any shape."""

from typing import Any

from tyr_jax.model.spec import BlockTensor, LayerShape, ModelConfig

EXTRA_TENSORS = (
    BlockTensor("head_extra", "self_attn.head_extra.weight", "", "HN", "attention"),
    BlockTensor("group_extra", "self_attn.group_extra.weight", "", "DHK", "attention"),
    BlockTensor("both_extra", "self_attn.both_extra.weight", "N", "K", "attention"),
    BlockTensor("neuron_extra", "mlp.neuron_extra.weight", "D", "F", "ffn"),
    BlockTensor("plain_extra", "mlp.plain_extra.weight", "", "D", "ffn"),
)
"""Tensors that no family has, with their unit axis in various places."""

ATTENTION, FFN = 0, 1
"""Rows of the two kinds of site of these models."""

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
