"""A tiny model of any shape."""

from typing import Any

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
