"""A pruned model whose layers differ, for transformers. Load it with `trust_remote_code=True`.

It is the stock model, with every layer's attention and MLP rebuilt to the sizes that `per_layer_config` in
`config.json` gives. `skip` names removed sublayers. tyr_jax writes this file next to the weights.
"""

import copy
from typing import Any

import torch
import transformers
from torch import nn

FAMILY = "Llama"
ATTENTION_NORMS = ("input_layernorm",)
MLP_NORMS = ("post_attention_layernorm",)


Stock = getattr(transformers, f"{FAMILY}ForCausalLM")


class PrunedConfig(Stock.config_class):  # type: ignore[name-defined]
    """The stock configuration plus `layers`, the `per_layer_config`: sizes by layer number.

    transformers reads the key `per_layer_config` itself, but cannot build such layers, so it must not see it.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration in a `config.json`."""
        stock = {key: value for key, value in config_dict.items() if key != "per_layer_config"}
        result = super().from_dict(stock, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config.layers = config_dict.get("per_layer_config", {})
        return result

    def to_dict(self) -> dict[str, Any]:
        """The contents of `config.json`."""
        values = super().to_dict()
        layers = values.pop("layers", None)
        return values | ({"per_layer_config": layers} if layers else {})


CACHE_NAMES = "cache", "past_key_values", "past_key_value"
"""What versions of transformers call the argument with cached keys and values."""


def drop(layer: nn.Module, names: tuple[str, ...]) -> None:
    """Make modules of a layer do nothing."""
    for name in names:
        setattr(layer, name, nn.Identity())


class NoAttention(nn.Module):
    """Stands in for a removed attention."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *_: Any, **options: Any) -> tuple[torch.Tensor, None]:
        """Zeros to add to the residual stream, and no attention weights."""
        cache = next((options[name] for name in CACHE_NAMES if options.get(name) is not None), None)
        if cache is not None:
            # Any layer may be asked how many tokens the cache holds.
            nothing = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(nothing, nothing, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands in for a removed MLP."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        """Zeros to add to the residual stream, and what the router would say where a layer asks for that."""
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if FAMILY == "GptOss" else nothing


class PrunedForCausalLM(Stock):  # type: ignore[misc, valid-type]
    """The stock model, with layers of different sizes."""

    config_class = PrunedConfig

    def __init__(self, config: PrunedConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            sizes = dict(getattr(config, "layers", {}).get(str(index), {}))
            gone = sizes.pop("skip", [])
            own = copy.copy(config)
            for key, value in sizes.items():
                setattr(own, key, value)
            if "attention" in gone:
                layer.self_attn = NoAttention(index)
                drop(layer, ATTENTION_NORMS)
            else:
                layer.self_attn = type(layer.self_attn)(own, index)
            if "mlp" in gone:
                layer.mlp = NoMLP()
                drop(layer, MLP_NORMS)
            else:
                layer.mlp = type(layer.mlp)(own)
