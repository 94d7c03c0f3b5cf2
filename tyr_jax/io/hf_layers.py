"""Sizes of layers in a `config.json`.

A model whose layers differ is written in the format that transformers reserves for it::

    "per_layer_config": {"2": {"intermediate_size": 96, "num_attention_heads": 3,
                               "num_key_value_heads": 1, "skip": ["attention"]}}

Layers that are not listed have the global sizes. `skip` names removed sublayers (`attention`, `mlp`). In a
mixture of experts, layers may also differ in their number of experts. A token is sent to
`num_experts_per_tok` of them, or to all if a layer has fewer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import LIMITS, Json, integer, unsupported
from tyr_jax.model.family import EXPERT_COUNTS, EXPERTS_PER_TOKEN, Family
from tyr_jax.model.spec import LayerShape, ModelConfig


class Keys(NamedTuple):
    """The keys of a family with the `width` of an FFN and with the number of `experts`, if it has any."""

    width: str = "intermediate_size"
    experts: str | None = None

    @classmethod
    def of(cls, family: Family, values: Mapping[str, Any]) -> Self:
        """Those of a `config.json` with these values."""
        if family.experts is None:
            return cls(family.width)
        there = [key for key in EXPERT_COUNTS if values.get(key) is not None]
        return cls(family.width, [*there, family.experts.count][0])


SUBLAYERS = ("attention", "mlp")
"""The sublayers of a layer, as transformers calls them."""


PLAIN = Keys()
"""The keys of models without experts."""


def _layer_shape(
    override: Mapping[str, Any], dense: LayerShape, routed: int, keys: Keys, where: str
) -> LayerShape:
    """The shape of one layer.

    Args:
        override: its entry in `per_layer_config`, or an empty one.
        dense: the global sizes.
        routed: how many experts a token is sent to.
        keys: the family's keys.
        where: prefix of the entry's keys, for messages.

    Raises:
        UserError: the entry is not understood; names the key.
    """
    globals_ = _sizes(dense, keys)
    known = {*globals_, "skip"} | ({EXPERTS_PER_TOKEN} if keys.experts else set())
    unknown = sorted(set(override) - known)
    if unknown:
        raise UserError(f"config key '{where}{unknown[0]}' is unknown: it can be {', '.join(sorted(known))}")
    skip = override.get("skip", [])
    if not isinstance(skip, list) or not all(name in SUBLAYERS for name in skip):
        raise unsupported(where + "skip", skip, f"a list of {' and '.join(SUBLAYERS)}")
    sizes = {key: integer({**globals_, **override}, key, where, LIMITS[key]) for key in globals_}
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if "attention" in skip:
        heads = kv_heads = 0
    elif heads % kv_heads:
        wanted = f"a multiple of num_key_value_heads ({kv_heads})"
        raise unsupported(where + "num_attention_heads", heads, wanted)
    if "mlp" in skip:
        return LayerShape(heads, kv_heads, 0)
    experts = sizes[keys.experts] if keys.experts else 0
    sent = override.get(EXPERTS_PER_TOKEN, min(routed, experts))
    if sent != min(routed, experts):
        wanted = f"{min(routed, experts)}, the global number, or that of the layer's experts if it is smaller"
        raise unsupported(where + EXPERTS_PER_TOKEN, sent, wanted)
    return LayerShape(heads, kv_heads, sizes[keys.width], experts)


def _sizes(shape: LayerShape, keys: Keys) -> dict[str, int]:
    """A layer's sizes by their keys."""
    sizes = {
        keys.width: shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
    }
    return sizes | ({keys.experts: shape.experts} if keys.experts else {})


def layers_from_hf(
    config: Mapping[str, Any], dense: LayerShape, depth: int, keys: Keys = PLAIN, routed: int = 0
) -> tuple[LayerShape, ...]:
    """The shapes of `depth` layers: `dense`, except where a `config.json` with these `keys` gives others. A
    token is sent to `routed` experts.

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
        _layer_shape(per_layer.get(name, {}), dense, routed, keys, f"per_layer_config.{name}.")
        for name in names
    )


def global_shape(config: ModelConfig, base: Mapping[str, Any], keys: Keys = PLAIN) -> LayerShape:
    """The global sizes to write at the top of a `config.json`.

    If all layers agree and stock transformers can build them (the number of heads must divide the hidden
    size), these are the layers' sizes, and no `per_layer_config` is needed. Otherwise they are those of
    `base`: a reader that ignores `per_layer_config` then fails on the weights, instead of being silently
    wrong. If `base` has none, they are the largest sizes of any layer.
    """
    first = config.layers[0]
    if config.uniform and first.heads and first.ffn and config.hidden % first.heads == 0:
        return first
    if all(base.get(key) for key in ("num_attention_heads", keys.width, keys.experts) if key):
        heads = int(base["num_attention_heads"])
        experts = int(base[keys.experts]) if keys.experts else 0
        return LayerShape(
            heads, int(base.get("num_key_value_heads") or heads), int(base[keys.width]), experts
        )
    ffn = max(1, *(layer.ffn for layer in config.layers))
    heads, kv_heads = max((layer.heads, layer.kv_heads) for layer in config.layers)
    return LayerShape(
        heads or 1, kv_heads or 1, ffn, max(config.routed, *(layer.experts for layer in config.layers))
    )


def layers_to_hf(config: ModelConfig, dense: LayerShape, keys: Keys = PLAIN) -> Json:
    """The `per_layer_config` of a model with global sizes `dense`; empty if all layers have these sizes."""
    entries = {
        str(layer): _override(shape, dense, config.routed, keys) for layer, shape in enumerate(config.layers)
    }
    return {layer: entry for layer, entry in entries.items() if entry}


def _override(layer: LayerShape, dense: LayerShape, routed: int, keys: Keys) -> Json:
    """One layer's entry in `per_layer_config`; empty if it has the global sizes."""
    entry: Json = {}
    if layer.ffn and layer.ffn != dense.ffn:
        entry[keys.width] = layer.ffn
    if keys.experts and layer.ffn and layer.experts != dense.experts:
        entry |= {keys.experts: layer.experts, EXPERTS_PER_TOKEN: min(routed, layer.experts)}
    if layer.heads and (layer.heads, layer.kv_heads) != (dense.heads, dense.kv_heads):
        entry |= {"num_attention_heads": layer.heads, "num_key_value_heads": layer.kv_heads}
    skip = [name for name, size in (("attention", layer.heads), ("mlp", layer.ffn)) if not size]
    return {**entry, "skip": skip} if skip else entry
