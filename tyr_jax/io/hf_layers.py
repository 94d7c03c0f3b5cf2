"""Sizes of layers in a `config.json`.

A model whose layers differ is written in the format that transformers reserves for it::

    "per_layer_config": {"2": {"intermediate_size": 96, "num_attention_heads": 3,
                               "num_key_value_heads": 1, "skip": ["attention"]}}

Layers that are not listed have the global sizes. `skip` names removed sublayers (`attention`, `mlp`).
"""

from collections.abc import Mapping
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import LIMITS, Json, integer, unsupported
from tyr_jax.model.spec import LayerShape, ModelConfig

WIDTH = "intermediate_size"
"""The key with the width of an FFN, unless it is a mixture of experts."""

SUBLAYERS = ("attention", "mlp")
"""The sublayers of a layer, as transformers calls them."""


def _layer_shape(override: Mapping[str, Any], dense: LayerShape, width: str, where: str) -> LayerShape:
    """The shape of one layer.

    Args:
        override: its entry in `per_layer_config`, or an empty one.
        dense: the global sizes.
        width: the key with the width of an FFN.
        where: prefix of the entry's keys, for messages.

    Raises:
        UserError: the entry is not understood; names the key.
    """
    known = {width, "num_attention_heads", "num_key_value_heads", "skip"}
    unknown = sorted(set(override) - known)
    if unknown:
        raise UserError(f"config key '{where}{unknown[0]}' is unknown: it can be {', '.join(sorted(known))}")
    skip = override.get("skip", [])
    if not isinstance(skip, list) or not all(name in SUBLAYERS for name in skip):
        raise unsupported(where + "skip", skip, f"a list of {' and '.join(SUBLAYERS)}")
    globals_ = {
        width: dense.ffn,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
    }
    sizes = {key: integer({**globals_, **override}, key, where, LIMITS[key]) for key in globals_}
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if "attention" in skip:
        heads = kv_heads = 0
    elif heads % kv_heads:
        wanted = f"a multiple of num_key_value_heads ({kv_heads})"
        raise unsupported(where + "num_attention_heads", heads, wanted)
    return LayerShape(heads, kv_heads, 0 if "mlp" in skip else sizes[width])


def layers_from_hf(
    config: Mapping[str, Any], dense: LayerShape, depth: int, width: str = WIDTH
) -> tuple[LayerShape, ...]:
    """The shapes of `depth` layers: `dense`, except where a `config.json` gives others. The key `width` is
    that of an FFN's width.

    Raises:
        UserError: an entry is not understood; names the key.
    """
    per_layer = config.get("per_layer_config") or {}
    if not isinstance(per_layer, dict):
        raise unsupported("per_layer_config", per_layer, "an object from layer numbers to sizes")
    names = [str(layer) for layer in range(depth)]
    strangers = sorted(per_layer.keys() - set(names))
    if strangers:
        raise UserError(f"config key 'per_layer_config.{strangers[0]}' names no layer: there are {depth}")
    for key, override in per_layer.items():
        if not isinstance(override, dict):
            raise unsupported(f"per_layer_config.{key}", override, "an object")
    return tuple(
        _layer_shape(per_layer.get(name, {}), dense, width, f"per_layer_config.{name}.") for name in names
    )


def global_shape(config: ModelConfig, base: Mapping[str, Any], width: str = WIDTH) -> LayerShape:
    """The global sizes to write at the top of a `config.json`.

    If all layers agree and stock transformers can build them (the number of heads must divide the hidden
    size), these are the layers' sizes, and no `per_layer_config` is needed. Otherwise they are those of
    `base`: a reader that ignores `per_layer_config` then fails on the weights, instead of being silently
    wrong. If `base` has none, they are the largest sizes of any layer.
    """
    first = config.layers[0]
    if config.uniform and first.heads and first.ffn and config.hidden % first.heads == 0:
        return first
    if all(base.get(key) for key in ("num_attention_heads", width)):
        heads = int(base["num_attention_heads"])
        return LayerShape(heads, int(base.get("num_key_value_heads") or heads), int(base[width]))
    ffn = max(1, *(layer.ffn for layer in config.layers))
    heads, kv_heads = max((layer.heads, layer.kv_heads) for layer in config.layers)
    return LayerShape(heads or 1, kv_heads or 1, ffn)


def layers_to_hf(config: ModelConfig, dense: LayerShape, width: str = WIDTH) -> Json:
    """The `per_layer_config` of a model with global sizes `dense`; empty if all layers have these sizes."""
    entries = {str(layer): _override(shape, dense, width) for layer, shape in enumerate(config.layers)}
    return {layer: entry for layer, entry in entries.items() if entry}


def _override(layer: LayerShape, dense: LayerShape, width: str) -> Json:
    """One layer's entry in `per_layer_config`; empty if it has the global sizes."""
    entry: Json = {}
    if layer.ffn and layer.ffn != dense.ffn:
        entry[width] = layer.ffn
    if layer.heads and (layer.heads, layer.kv_heads) != (dense.heads, dense.kv_heads):
        entry |= {"num_attention_heads": layer.heads, "num_key_value_heads": layer.kv_heads}
    skip = [name for name, size in (("attention", layer.heads), ("mlp", layer.ffn)) if not size]
    return {**entry, "skip": skip} if skip else entry
