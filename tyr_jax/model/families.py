"""Llama, Mistral and Qwen2 as data: what each `config.json` key means, and the way back.

Every key of a `config.json` falls into one of three kinds: it is *read*, it is *checked* (only one value
is supported), or it is known not to change the function. Any other key is an error that names it, so a
model can never be loaded as something it is not.

A model whose layers differ is written in the format transformers reserves for it::

    "per_layer_config": {"2": {"intermediate_size": 96, "num_attention_heads": 3,
                               "num_key_value_heads": 1, "skip": ["attention"]}}

Layers that are not listed have the global sizes; `skip` names sublayers (`attention`, `mlp`) that are gone.
As transformers does not build such layers itself, `auto_map` names a file beside the weights that does
(`tyr_jax.io.modeling_pruned`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.model.spec import LayerShape, ModelConfig, RopeScaling

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one family's `config.json` from another's."""

    architecture: str
    defaults: Mapping[str, Any]
    """Optional keys that are read, with the values transformers takes when they are absent."""
    checked: Mapping[str, tuple[Any, ...]]
    """Keys that must have one of these values when present."""
    harmless: frozenset[str] = frozenset()
    """Keys of this family that do not change the function, beside `HARMLESS`."""
    qkv_bias: bool = False
    """Whether query, key and value projections always have biases."""


REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Sizes that no default can stand in for."""

COMMON_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

COMMON_CHECKED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
}

READ = frozenset(
    {"model_type", "architectures", "auto_map", "max_position_embeddings", "layer_types", "per_layer_config"}
    | {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
    | set(REQUIRED)
)
"""Keys with a meaning of their own, read for every family."""

HARMLESS = frozenset(
    # How the model is stored, trained and run, not what it computes.
    {"torch_dtype", "dtype", "transformers_version", "initializer_range", "attention_dropout", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"}
    | {"decoder_start_token_id", "mask_token_id", "tokenizer_class", "prefix", "max_sequence_length"}
    | {"hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_implementation", "attention_probs_dropout_prob"}
    | {"allow_global_per_layer_attribute_access"}
    # What it returns, and classification heads it does not have.
    | {"output_hidden_states", "output_attentions", "output_scores", "return_dict", "return_dict_in_generate"}
    | {"id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"}
    # Generation settings that older versions kept here.
    | {"max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "top_k"}
    | {"num_beam_groups", "diversity_penalty", "temperature", "top_p", "typical_p", "repetition_penalty"}
    | {"length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"}
    | {"num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"}
    | {"exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"}
    # Marks that other tools leave behind.
    | {"torchscript", "use_bfloat16", "tf_legacy_loss", "gradient_checkpointing", "is_llama_config"}
    | {"transformers.js_config", "unsloth_version", "unsloth_fixed", "name_or_path", "model_name"}
)
"""Keys that do not change the function, whatever their values; as are all that start with `_`."""

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults={
            **COMMON_DEFAULTS,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        checked={**COMMON_CHECKED, "sliding_window": (None,)},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={
            **COMMON_DEFAULTS,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        checked={**COMMON_CHECKED, "attention_bias": (False,), "mlp_bias": (False,)},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults={**COMMON_DEFAULTS, "num_key_value_heads": 32, "max_position_embeddings": 32768},
        checked={**COMMON_CHECKED, "use_sliding_window": (False, None)},
        # Without `use_sliding_window` these two are ignored.
        harmless=frozenset({"sliding_window", "max_window_layers"}),
        qkv_bias=True,
    ),
}

MODELING = "modeling_pruned"
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.PrunedConfig",
    "AutoModelForCausalLM": f"{MODELING}.PrunedForCausalLM",
}
"""Where transformers finds the classes of a model whose layers differ."""

LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_TYPES = ("default", "llama3")
SUBLAYERS = ("attention", "mlp")


def _fail(key: str, value: Any, supported: str) -> UserError:
    return UserError(f"config key '{key}' is {value!r}, which is not supported: it must be {supported}")


def _integer(config: Mapping[str, Any], key: str, where: str = "") -> int:
    """A positive integer, or a `UserError` naming the key."""
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive integer")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _fail(where + key, value, "a positive integer")
    return value


def _number(config: Mapping[str, Any], key: str, where: str = "") -> float:
    """A positive number, or a `UserError` naming the key."""
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive number")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise _fail(where + key, value, "a positive number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise _fail(key, value, "true or false")
    return value


def family_of(config: Mapping[str, Any]) -> Family:
    """The family a `config.json` belongs to; raises `UserError` naming any other `model_type`."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise _fail("model_type", model_type, "one of " + ", ".join(FAMILIES))
    return FAMILIES[model_type]


def _check_keys(config: Mapping[str, Any], family: Family) -> None:
    """Raise `UserError` naming the first key that is unknown or has a value that is not supported."""
    known = READ | HARMLESS | family.harmless | set(family.defaults) | set(family.checked)
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    if unknown:
        raise UserError(
            f"config key '{unknown[0]}' (value {config[unknown[0]]!r}) is unknown for a "
            f"{config['model_type']} model, so it might change what the model computes; if not, remove it"
        )
    for key, allowed in family.checked.items():
        if key in config and not any(config[key] == value for value in allowed):
            raise _fail(key, config[key], " or ".join(repr(value) for value in allowed))


def _check_architecture(config: Mapping[str, Any], family: Family) -> None:
    """Only causal language models; `auto_map` is what a model with `per_layer_config` brings along."""
    if config.get("auto_map") and not config.get("per_layer_config"):
        raise _fail("auto_map", config["auto_map"], "absent: custom modelling code is not run")
    names = config.get("architectures")
    if names and not config.get("auto_map") and list(names) != [family.architecture]:
        raise _fail("architectures", names, repr([family.architecture]))


def _window(values: Mapping[str, Any], family: Family) -> int | None:
    """Sliding-window size where the family reads one, with `layer_types` checked against it."""
    given = "sliding_window" in family.defaults and values["sliding_window"] is not None
    window = _integer(values, "sliding_window") if given else None
    kind = "full_attention" if window is None else "sliding_attention"
    types = values.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(name != kind for name in types)):
        raise _fail("layer_types", types, f"{kind!r} in every layer")
    return window


def rope_from_hf(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    Raises `UserError` naming a rope type or key that is not supported, or keys that contradict.
    """
    where, older = "rope_parameters", "rope_scaling"
    if config.get(where) and config.get(older):
        raise UserError(f"config keys '{where}' and '{older}' are both given: keep one")
    if not config.get(where):
        where = older
    nested = config.get(where) or {}
    if not isinstance(nested, dict):
        raise _fail(where, nested, "an object")
    nested = dict(nested)
    outer = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key, value in outer.items():
        if value is not None and nested.setdefault(key, value) != value:
            raise UserError(f"config keys '{key}' ({value}) and '{where}.{key}' ({nested[key]}) contradict")
    return _rope_values(nested, where + ".", config.get("max_position_embeddings"))


def _rope_values(rope: Json, where: str, max_positions: Any) -> tuple[float, RopeScaling | None]:
    kinds = {rope.pop(key) for key in ("rope_type", "type") if key in rope} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in ROPE_TYPES:
        raise _fail(where + "rope_type", kind, " or ".join(ROPE_TYPES))
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial not in (1.0, None):
        raise _fail(where + "partial_rotary_factor", partial, "1.0")
    theta = rope.pop("rope_theta", None)
    theta = 10000.0 if theta is None else _number({"rope_theta": theta}, "rope_theta", where)
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", max_positions)
    unknown = sorted(set(rope) - set(LLAMA3_KEYS if kind == "llama3" else ()))
    if unknown:
        raise UserError(
            f"config key '{where}{unknown[0]}' ({rope[unknown[0]]!r}) is unknown for rope type '{kind}'"
        )
    if kind == "default":
        return theta, None
    factor, low, high = (_number(rope, key, where) for key in LLAMA3_KEYS[:3])
    if high <= low:
        raise _fail(where + "high_freq_factor", high, f"greater than low_freq_factor ({low})")
    return theta, RopeScaling(factor, low, high, _integer(rope, LLAMA3_KEYS[3], where))


def _layer_shape(override: Mapping[str, Any], dense: LayerShape, where: str) -> LayerShape:
    """The shape of one layer, `override` being its entry in `per_layer_config`."""
    known = {"intermediate_size", "num_attention_heads", "num_key_value_heads", "skip"}
    unknown = sorted(set(override) - known)
    if unknown:
        raise UserError(f"config key '{where}{unknown[0]}' is unknown: it can be {', '.join(sorted(known))}")
    skip = override.get("skip", [])
    if not isinstance(skip, list) or not all(name in SUBLAYERS for name in skip):
        raise _fail(where + "skip", skip, f"a list of {' and '.join(SUBLAYERS)}")
    globals_ = {
        "intermediate_size": dense.ffn,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
    }
    sizes = {key: _integer({**globals_, **override}, key, where) for key in globals_}
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if "attention" in skip:
        heads = kv_heads = 0
    elif heads % kv_heads:
        raise _fail(where + "num_attention_heads", heads, f"a multiple of num_key_value_heads ({kv_heads})")
    return LayerShape(heads, kv_heads, 0 if "mlp" in skip else sizes["intermediate_size"])


def _layers(config: Mapping[str, Any], dense: LayerShape, depth: int) -> tuple[LayerShape, ...]:
    per_layer = config.get("per_layer_config") or {}
    if not isinstance(per_layer, dict):
        raise _fail("per_layer_config", per_layer, "an object from layer numbers to sizes")
    names = [str(layer) for layer in range(depth)]
    strangers = [key for key in per_layer if key not in names]
    if strangers:
        raise UserError(f"config key 'per_layer_config.{strangers[0]}' names no layer: there are {depth}")
    for key, override in per_layer.items():
        if not isinstance(override, dict):
            raise _fail(f"per_layer_config.{key}", override, "an object")
    return tuple(_layer_shape(per_layer.get(name, {}), dense, f"per_layer_config.{name}.") for name in names)


def _head_dim(values: Mapping[str, Any], hidden: int, heads: int) -> int:
    if values["head_dim"] is not None:
        head_dim = _integer(values, "head_dim")
    elif hidden % heads:
        raise _fail("num_attention_heads", heads, f"a divisor of hidden_size ({hidden}), or head_dim given")
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise _fail("head_dim", head_dim, "even, for rotary embeddings")
    return head_dim


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """What a `config.json` means.

    Raises `UserError` naming the key when one is unknown, missing, contradictory or has a value that is
    not supported.
    """
    family = family_of(config)
    _check_keys(config, family)
    _check_architecture(config, family)
    values = {**family.defaults, **config}
    hidden, depth, ffn = (
        _integer(values, key) for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads = _integer(values, "num_attention_heads")
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    kv_heads = _integer(values, "num_key_value_heads")
    if heads % kv_heads:
        raise _fail("num_attention_heads", heads, f"a multiple of num_key_value_heads ({kv_heads})")
    theta, scaling = rope_from_hf(values)
    attention_bias = _flag(values, "attention_bias")
    return ModelConfig(
        family=config["model_type"],
        vocab=_integer(values, "vocab_size"),
        hidden=hidden,
        head_dim=_head_dim(values, hidden, heads),
        layers=_layers(config, LayerShape(heads, kv_heads, ffn), depth),
        norm_eps=_number(values, "rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=_integer(values, "max_position_embeddings"),
        window=_window(values, family),
        tied=_flag(values, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias or attention_bias,
        out_bias=attention_bias,
        mlp_bias=_flag(values, "mlp_bias"),
    )


def _global_shape(config: ModelConfig, base: Mapping[str, Any]) -> LayerShape:
    """The sizes to write at the top of a `config.json`.

    Those of the layers when these agree and stock transformers can build them (it insists that heads
    divide the hidden size), so that no `per_layer_config` is needed. Otherwise those `base` has, which
    readers without `per_layer_config` then find contradicted by the weights instead of silently wrong.
    """
    first = config.layers[0]
    if config.uniform and first.heads and first.ffn and config.hidden % first.heads == 0:
        return first
    if all(base.get(key) for key in ("num_attention_heads", "intermediate_size")):
        heads = int(base["num_attention_heads"])
        return LayerShape(
            heads, int(base.get("num_key_value_heads") or heads), int(base["intermediate_size"])
        )
    ffn = max(1, *(layer.ffn for layer in config.layers))
    heads, kv_heads = max((layer.heads, layer.kv_heads) for layer in config.layers)
    return LayerShape(heads or 1, kv_heads or 1, ffn)


def _override(layer: LayerShape, dense: LayerShape) -> Json:
    """One layer's entry of `per_layer_config`; empty where it has the global sizes."""
    entry: Json = {}
    if layer.ffn and layer.ffn != dense.ffn:
        entry["intermediate_size"] = layer.ffn
    if layer.heads and (layer.heads, layer.kv_heads) != (dense.heads, dense.kv_heads):
        entry |= {"num_attention_heads": layer.heads, "num_key_value_heads": layer.kv_heads}
    skip = [name for name, size in (("attention", layer.heads), ("mlp", layer.ffn)) if not size]
    return {**entry, "skip": skip} if skip else entry


def scaling_to_hf(rope: RopeScaling) -> Json:
    """The keys of Llama-3 scaling in a `config.json`."""
    sizes = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_positions)
    return {"rope_type": "llama3", **dict(zip(LLAMA3_KEYS, sizes, strict=True))}


def _rope_to_hf(config: ModelConfig, base: Json) -> Json:
    """Rope keys in the style `base` has, the older one (which every tool reads) if it has none."""
    scaling = scaling_to_hf(config.rope_scaling) if config.rope_scaling is not None else {}
    if base.get("rope_parameters"):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **scaling}}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}


def config_to_hf(config: ModelConfig, base: Mapping[str, Any]) -> Json:
    """The `config.json` of `config`: `base` (the original one, or `{}`) with every size brought up to date.

    Inverse of `config_from_hf`. Raises `ValueError` for a `config` its family has no keys for.
    """
    family = FAMILIES[config.family]
    dense = _global_shape(config, base)
    ropes = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
    result = {key: value for key, value in base.items() if key not in ropes | {"per_layer_config"}}
    result |= {
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": dense.ffn,
        "num_hidden_layers": config.depth,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        **_rope_to_hf(config, dict(base)),
    }
    result.setdefault("architectures", [family.architecture])
    result.setdefault("hidden_act", "silu")
    if "attention_bias" in family.defaults:
        result |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if "sliding_window" in family.defaults:
        result["sliding_window"] = config.window
    entries = {str(layer): _override(shape, dense) for layer, shape in enumerate(config.layers)}
    if any(entries.values()):
        result["per_layer_config"] = {layer: entry for layer, entry in entries.items() if entry}
        result |= {"auto_map": AUTO_MAP, "architectures": ["PrunedForCausalLM"]}
        # Or else transformers cannot even read the configuration to choose a tokenizer's class.
        result["allow_global_per_layer_attribute_access"] = True
    elif "auto_map" in result:
        # The modelling file that read `per_layer_config` has nothing left to read.
        del result["auto_map"]
        result["architectures"] = [family.architecture]
    if config_from_hf(result) != config:
        raise ValueError(f"a {config.family} config.json cannot express {config}")
    return result
