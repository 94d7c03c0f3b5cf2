"""Reading and writing `config.json`.

Every key is of one of three kinds: it is *read*, it is *checked* (only certain values are supported), or it
is known not to change what the model computes. Any other key is an error that names it, so a model can never
be loaded as something it is not. What is particular to a family is in its entry (`tyr_jax.model.families`).

transformers cannot build layers of different sizes. For such a model, `auto_map` names a file next to the
weights that can (`tyr_jax.io.modeling_pruned`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import LIMITS, Json, flag, integer, number, shown, unsupported
from tyr_jax.io.hf_layers import Keys, global_shape, layers_from_hf, layers_to_hf
from tyr_jax.io.hf_positions import positions_from_hf, positions_to_hf, rotary_by_type, rotary_to_hf
from tyr_jax.io.hf_rope import ROPE_KEYS, Rotary
from tyr_jax.model.families import FAMILIES, missing_for
from tyr_jax.model.family import ACTIVATION_KEYS, DEFAULTS, EXPERT_COUNTS, EXPERTS_PER_TOKEN, Experts, Family
from tyr_jax.model.rope import LongRopeScaling
from tyr_jax.model.spec import LayerShape, ModelConfig

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Sizes that must be given, as they have no default."""

CHECKED: dict[str, tuple[Any, ...]] = {
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
"""Keys that must have one of these values when present, for every family."""

READ = frozenset(
    {"model_type", "architectures", "auto_map", "layer_types", "per_layer_config", *REQUIRED, *ROPE_KEYS}
)
"""Keys with a meaning of their own, read for every family."""

HARMLESS = frozenset(
    # How the model is stored, trained and run, which does not affect what it computes.
    {"torch_dtype", "dtype", "transformers_version", "initializer_range", "attention_dropout", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"}
    | {"decoder_start_token_id", "mask_token_id", "tokenizer_class", "prefix", "max_sequence_length"}
    | {"hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_implementation", "attention_probs_dropout_prob"}
    | {"allow_global_per_layer_attribute_access"}
    # What a call returns, and settings of classification heads, which it does not have.
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
"""Keys that do not change what the model computes, whatever their values. The same holds for all keys that
start with `_`."""

MODELING = "modeling_pruned"
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.PrunedConfig",
    "AutoModelForCausalLM": f"{MODELING}.PrunedForCausalLM",
}
"""The `auto_map` by which transformers finds the classes of a model whose layers differ."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a `config.json` belongs to.

    Raises:
        UserError: its `model_type` is not supported; names it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = "one of " + ", ".join(FAMILIES)
        if model_type is None:
            raise UserError(f"config key 'model_type' is missing: it must be {known}")
        if isinstance(model_type, str) and (what := missing_for(model_type)):
            raise UserError(
                f"models with model_type '{model_type}' need {what}, which tyr_jax does not support: choose "
                f"{known}"
            )
        raise unsupported("model_type", model_type, known)
    return FAMILIES[model_type]


def _check_keys(config: Mapping[str, Any], family: Family, ignore_keys: Iterable[str]) -> None:
    """Check that every key is known, and that checked keys have a supported value.

    Raises:
        UserError: a key is unknown and not ignored, or its value is not supported; names the key.
    """
    checked = {**CHECKED, **family.checked}
    known = READ | HARMLESS | {*ignore_keys} | family.read_keys | family.harmless | checked.keys()
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    if unknown:
        raise UserError(
            f"config key '{unknown[0]}' (value {shown(config[unknown[0]])}) is unknown for a "
            f"{config['model_type']} model, so it might change what the model computes; if not, name "
            f"it with --ignore-keys {unknown[0]}"
        )
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict) and quantised.get("quant_method") in family.quantised:
        del checked["quantization_config"]
    for key, allowed in checked.items():
        if key in config and not any(config[key] == value for value in allowed):
            raise unsupported(key, config[key], " or ".join(map(shown, allowed)))


def _check_architecture(config: Mapping[str, Any], family: Family) -> None:
    """Check that the model is a causal language model of its family.

    A model with `per_layer_config` may have an `auto_map`, and then another architecture name.

    Raises:
        UserError: it is not, or has an `auto_map` without `per_layer_config`; names the key.
    """
    code = config.get("auto_map")
    pruned = bool(code and config.get("per_layer_config"))
    if code and not pruned:
        classes = [*code.values()] if isinstance(code, dict) else [code]
        if not all(isinstance(name, str) and name in family.published_code for name in classes):
            raise unsupported("auto_map", code, "absent: custom modelling code is not run")
    names = config.get("architectures")
    if names and not pruned and names != [family.architecture]:
        raise unsupported("architectures", names, repr([family.architecture]))


def _size(values: Mapping[str, Any], key: str) -> int:
    return integer(values, key, most=LIMITS[key])


def _head_dim(values: Mapping[str, Any], hidden: int, heads: int) -> int:
    if values["head_dim"] is not None:
        head_dim = _size(values, "head_dim")
    elif hidden % heads:
        wanted = f"a divisor of hidden_size ({hidden}), or head_dim given"
        raise unsupported("num_attention_heads", heads, wanted)
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise unsupported("head_dim", head_dim, "even, for rotary embeddings")
    return head_dim


def _rotated(head_dim: int, rotary: Rotary) -> int | None:
    """How many channels of a head are rotated by position, None for all.

    Raises:
        UserError: they are not a positive and even number, or the scaling is for another number.
    """
    rotated = int(head_dim * rotary.share)
    if rotated % 2 or rotated == 0:
        wanted = f"an even number of head_dim's {head_dim} channels"
        raise unsupported("partial_rotary_factor", rotary.share, wanted)
    if isinstance(rotary.scaling, LongRopeScaling):
        for key, factors in (("short_factor", rotary.scaling.short), ("long_factor", rotary.scaling.long)):
            if len(factors) != rotated // 2:
                raise unsupported(key, list(factors), f"a list of {rotated // 2} numbers")
    return None if rotated == head_dim else rotated


def _factors(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The multipliers and soft-caps of a model, by field of `ModelConfig`.

    Raises:
        UserError: one is not a positive number; names its key.
    """
    given = {field: number({key: 1.0} | dict(values), key) for field, key in family.multipliers.items()}
    given |= {field: number(values, key) for field, key in family.caps.items() if values.get(key) is not None}
    return given | ({"embed_scale": _size(values, "hidden_size") ** 0.5} if family.embed_by_width else {})


def _expert_count(values: Mapping[str, Any], experts: Experts | None) -> int:
    """The number of experts of a layer, 0 for a model without.

    Raises:
        UserError: it is missing or impossible, or two keys contradict each other; names the key.
    """
    if experts is None:
        return 0
    given = [key for key in EXPERT_COUNTS if values.get(key) is not None] or [experts.count]
    count, *same = [_size(values, key) for key in given]
    if any(other != count for other in same):
        raise unsupported(given[1], same[0], f"{given[0]}, which is {count}")
    return count


def _routing(values: Mapping[str, Any], experts: Experts | None) -> dict[str, Any]:
    """How tokens are sent to experts, by field of `ModelConfig`.

    Raises:
        UserError: a number is missing or impossible; names its key.
    """
    if experts is None:
        return {}
    norm = experts.norm_routing
    return {
        "routed": integer(values, EXPERTS_PER_TOKEN, most=_expert_count(values, experts)),
        "norm_routing": norm is True or flag({norm: False} | dict(values), norm),
    }


def facts(family: Family) -> dict[str, Any]:
    """Fields of `ModelConfig` that all models of a family share."""
    same = ("fused", "neighbours", "pre_norms", "post_norms", "norm_offset", "activation", "packed")
    return {"keys": tuple(family.keys.items()), **{name: getattr(family, name) for name in same}}


def config_from_hf(config: Mapping[str, Any], ignore_keys: Iterable[str] = ()) -> ModelConfig:
    """The model configuration that a `config.json` describes. The user says of `ignore_keys` that they do not
    change what the model computes.

    Raises:
        UserError: a key is unknown, missing, contradictory, or has an unsupported value; names the key.
    """
    family = family_of(config)
    _check_keys(config, family, ignore_keys)
    _check_architecture(config, family)
    values = {**DEFAULTS, **family.defaults, **config}
    hidden, depth, ffn = (_size(values, key) for key in ("hidden_size", "num_hidden_layers", family.width))
    heads = _size(values, "num_attention_heads")
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    kv_heads = _size(values, "num_key_value_heads")
    if heads % kv_heads:
        raise unsupported("num_attention_heads", heads, f"a multiple of num_key_value_heads ({kv_heads})")
    dense = LayerShape(heads, kv_heads, ffn, _expert_count(values, family.experts))
    routing = _routing(values, family.experts)
    rotary, local = rotary_by_type(values, family)
    head_dim = _head_dim(values, hidden, heads)
    present: dict[str, Any] = {name: key is True or flag(values, key) for name, key in family.tensors.items()}
    return ModelConfig(
        family=config["model_type"],
        vocab=_size(values, "vocab_size"),
        hidden=hidden,
        head_dim=head_dim,
        layers=layers_from_hf(config, dense, depth, Keys.of(family, config), routing.get("routed", 0)),
        norm_eps=number(values, "rms_norm_eps"),
        positions=positions_from_hf(values, family, depth, rotary, local),
        rotated=_rotated(head_dim, rotary),
        max_positions=integer(values, "max_position_embeddings"),
        tied=flag(values, "tie_word_embeddings"),
        **facts(family),
        **present,
        **_factors(values, family),
        **routing,
    )


def config_to_hf(config: ModelConfig, base: Mapping[str, Any]) -> Json:
    """The `config.json` of `config`: `base` (the original one, or `{}`) with every size updated.

    Inverse of `config_from_hf`.

    Raises:
        ValueError: the family has no keys that express `config`.
    """
    family = FAMILIES[config.family]
    keys = Keys.of(family, base)
    dense = global_shape(config, base, keys)
    # Weights are written as plain numbers.
    gone = ROPE_KEYS | {"per_layer_config", "quantization_config"}
    result = {key: value for key, value in base.items() if key not in gone}
    result |= {
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        family.width: dense.ffn,
        "num_hidden_layers": config.depth,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        **rotary_to_hf(config, family, base),
        **positions_to_hf(config, family),
    }
    for field, key in family.multipliers.items():
        # Some of them must be integers.
        value = getattr(config, field)
        result[key] = int(value) if value == int(value) else value
    result |= {key: getattr(config, field) for field, key in family.caps.items()}
    result.setdefault("architectures", [family.architecture])
    key, value = ACTIVATION_KEYS[family.activation]
    result.setdefault(key, value)
    result |= {key: getattr(config, name) for name, key in family.tensors.items() if key is not True}
    if family.experts:
        counts = [key for key in EXPERT_COUNTS if base.get(key) is not None] or [family.experts.count]
        result |= dict.fromkeys(counts, dense.experts)
        result[EXPERTS_PER_TOKEN] = config.routed
        if family.experts.norm_routing is not True:
            result[family.experts.norm_routing] = config.norm_routing
    if per_layer := layers_to_hf(config, dense, keys):
        result |= {"per_layer_config": per_layer, "auto_map": AUTO_MAP}
        result["architectures"] = ["PrunedForCausalLM"]
        # Without it, transformers cannot even read the configuration to choose a tokenizer class.
        result["allow_global_per_layer_attribute_access"] = True
    elif "auto_map" in result:
        # Without `per_layer_config`, the stock classes will do.
        del result["auto_map"]
        result["architectures"] = [family.architecture]
    # Keys of the original that no family knows were ignored when it was read.
    if config_from_hf(result, ignore_keys=base) != config:
        raise ValueError(f"a {config.family} config.json cannot express {config}")
    return result
