"""A pruned model whose layers differ, for transformers: loaded with `trust_remote_code=True`.

It is the stock model with every layer's attention and MLP rebuilt to the sizes that `per_layer_config` in
`config.json` names; `skip` names sublayers that are gone. tyr_jax puts this file beside the weights.
"""

import copy
from typing import Any

import torch
import transformers
from torch import nn

FAMILY = "Llama"


class PrunedConfig(getattr(transformers, f"{FAMILY}Config")):  # type: ignore[misc]
    """The stock configuration, and `layers`: what `per_layer_config` says of each layer by its number.

    transformers itself reads that key without building such layers, so it is kept from it.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a `config.json` holds."""
        stock = {key: value for key, value in config_dict.items() if key != "per_layer_config"}
        result = super().from_dict(stock, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config.layers = config_dict.get("per_layer_config", {})
        return result

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        values = super().to_dict()
        layers = values.pop("layers", None)
        return values | ({"per_layer_config": layers} if layers else {})


class NoAttention(nn.Module):
    """In place of an attention that is gone."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """Nothing to add to the residual, and no attention weights."""
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """In place of an MLP that is gone."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Nothing to add to the residual."""
        return torch.zeros_like(hidden_states)


class PrunedForCausalLM(getattr(transformers, f"{FAMILY}ForCausalLM")):  # type: ignore[misc]
    """The stock model with layers of their own sizes."""

    config_class = PrunedConfig

    def __init__(self, config: PrunedConfig) -> None:
        super().__init__(config)
        # Caches ask their first layer how much they hold, so layers without attention are not counted.
        cached = 0
        for index, layer in enumerate(self.model.layers):
            sizes = dict(getattr(config, "layers", {}).get(str(index), {}))
            gone = sizes.pop("skip", [])
            own = copy.copy(config)
            for key, value in sizes.items():
                setattr(own, key, value)
            if "attention" in gone:
                layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
            else:
                layer.self_attn = type(layer.self_attn)(own, cached)
                cached += 1
            if "mlp" in gone:
                layer.mlp, layer.post_attention_layernorm = NoMLP(), nn.Identity()
            else:
                layer.mlp = type(layer.mlp)(own)
