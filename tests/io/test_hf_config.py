"""Keys of a `config.json`: reading them, and writing them again."""

import dataclasses
import itertools
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from io_samples import BAD_VALUES, refusal

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import LIMITS
from tyr_jax.io.hf_config import CHECKED, HARMLESS, READ, config_from_hf, config_to_hf, facts
from tyr_jax.model.families import FAMILIES, MISSING
from tyr_jax.model.family import WINDOW, Family
from tyr_jax.model.rope import LinearScaling, Llama3Scaling, Positions
from tyr_jax.model.spec import LayerShape, ModelConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 256,
}
MOE = {key: value for key, value in LLAMA.items() if key != "architectures"} | {
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
SLIDING = ["sliding_attention", "full_attention", "full_attention"]
WINDOW_ON = {"use_sliding_window": True, "sliding_window": 8}


def llama(**changes: Any) -> dict[str, Any]:
    merged = LLAMA | changes
    return {key: value for key, value in merged.items() if value != "absent"}


@st.composite
def layers_positions(draw: st.DrawFn, family: Family, rotary: Positions, depth: int) -> tuple[Positions, ...]:
    """Any way in which the layers of a family can treat positions."""
    window = draw(st.none() | st.integers(1, 4096)) if WINDOW in family.defaults else None

    # Only some families have rotary embeddings of their own for layers with a window.
    nearby = rotary
    if family.rope_by_type:
        nearby = Positions(draw(st.floats(100, 1e7)), draw(st.none() | st.just(LinearScaling(2.0))))

    def layer() -> Positions:
        local = window is not None and (family.sliding == "all" or draw(st.booleans()))
        turns = "no_rope_layers" not in family.defaults or draw(st.booleans())
        turns = turns and (local or window is None or family.global_rotary)
        own = (nearby if local else rotary) if turns else Positions(None)
        return dataclasses.replace(own, window=window if local else None)

    layers = tuple(layer() for _ in range(depth))
    if not any(one.window for one in layers) and not family.global_rotary:
        layers = (rotary,) * depth
    return layers if len(set(layers)) > 1 else layers[:1]


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    family = draw(st.sampled_from(sorted(FAMILIES)))

    def layer() -> LayerShape:
        kv_heads = draw(st.integers(0, 4))
        ffn = draw(st.integers(0, 64))
        experts = draw(st.integers(1, 6)) if ffn and FAMILIES[family].experts else 0
        return LayerShape(kv_heads * draw(st.integers(1, 3)), kv_heads, ffn, experts)

    depth = draw(st.integers(1, 4))
    layers = [layer() for _ in range(depth)] if draw(st.booleans()) else [layer()] * depth
    scaling = Llama3Scaling(
        draw(st.floats(1, 64)), draw(st.floats(0.5, 2)), draw(st.floats(3, 8)), draw(st.integers(1, 8192))
    )
    rotary = Positions(draw(st.floats(100, 1e7)), draw(st.none() | st.just(scaling)))
    known = FAMILIES[family]
    positions = draw(layers_positions(known, rotary, depth))
    factors: dict[str, Any] = {field: draw(st.floats(0.01, 100)) for field in known.multipliers}
    hidden = draw(st.integers(1, 64))
    if known.embed_by_width:
        factors["embed_scale"] = hidden**0.5
    if known.experts:
        most = max(layer.experts for layer in layers)
        factors["routed"] = draw(st.integers(1, max(1, most)))
        factors["norm_routing"] = known.experts.norm_routing is True or draw(st.booleans())
    said = {key: draw(st.booleans()) for key in FAMILIES[family].tensors.values()}
    tensors = {flag: key is True or said[key] for flag, key in FAMILIES[family].tensors.items()}
    return ModelConfig(
        family=family,
        vocab=draw(st.integers(1, 1000)),
        hidden=hidden,
        head_dim=2 * draw(st.integers(1, 16)),
        layers=tuple(layers),
        norm_eps=draw(st.floats(1e-8, 1e-3)),
        positions=positions,
        max_positions=draw(st.integers(1, 1 << 17)),
        tied=draw(st.booleans()),
        **facts(known),
        **tensors,
        **factors,
    )


@settings(max_examples=200)
@given(config=model_configs(), new_style=st.booleans(), data=st.data())
def test_config_round_trip(config: ModelConfig, new_style: bool, data: st.DataObject) -> None:
    base: dict[str, Any] = {"model_type": config.family, "_note": "kept", "torch_dtype": "bfloat16"}
    if new_style:
        base["rope_parameters"] = {"rope_type": "default", "rope_theta": 5.0}
    if data.draw(st.booleans()):
        base |= {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 40}
        base["per_layer_config"] = {"7": {"intermediate_size": 1}}
    written = json.loads(json.dumps(config_to_hf(config, base)))
    assert config_from_hf(written) == config
    assert written["_note"] == "kept"
    assert written["torch_dtype"] == "bfloat16"
    # The older style has one base for all layers, or one more for those with a window.
    family = FAMILIES[config.family]
    assert ("rope_parameters" in written) >= new_style
    assert new_style or family.rope_by_type or family.rope_given or "rope_parameters" not in written
    assert config_from_hf(config_to_hf(config, written)) == config


def test_uniform_model_needs_no_per_layer_config() -> None:
    config = config_from_hf(LLAMA)
    smaller = config_to_hf(ModelConfig(**{**vars(config), "layers": (LayerShape(2, 1, 40),) * 3}), LLAMA)
    assert "per_layer_config" not in smaller
    assert (smaller["num_attention_heads"], smaller["num_key_value_heads"]) == (2, 1)
    assert (smaller["intermediate_size"], smaller["head_dim"]) == (40, 8)


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for name, family in FAMILIES.items():
        defaults = getattr(transformers, family.architecture).config_class()
        full = config_from_hf(defaults.to_dict())
        required = {key: defaults.to_dict()[key] for key in ("vocab_size", "hidden_size")}
        required |= {key: getattr(defaults, key) for key in ("intermediate_size", "num_hidden_layers")}
        required["num_attention_heads"] = defaults.num_attention_heads
        if family.experts:
            keys = family.experts.count, family.experts.width, "num_experts_per_tok"
            required |= {key: getattr(defaults, key) for key in keys}
        if family.rope_given:
            with pytest.raises(UserError, match=r"'rope_parameters' is null, .*an object with a `rope_type`"):
                config_from_hf({"model_type": name, **required})
            required["rope_parameters"] = defaults.rope_parameters
        assert config_from_hf({"model_type": name, **required}) == full


def test_smollm2_config_as_published() -> None:
    config = config_from_hf(
        llama(
            **{
                "transformers.js_config": {"kv_cache_dtype": {}},
                "_name_or_path": "x",
                "is_llama_config": True,
            },
            rope_interleaved=False,
            pretraining_tp=1,
            attention_bias=False,
            torch_dtype="bfloat16",
        )
    )
    assert config.layers[0] == LayerShape(4, 2, 48)


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("deepseek_v3", "shared experts"),
        ("cohere2", "LayerNorm"),
        ("mamba2", "state-space"),
        ("gemma3", "image or audio"),
    ],
)
def test_a_refusal_says_what_is_missing(model_type: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"'{model_type}' need .*{what}.*choose one of llama"):
        config_from_hf(llama(model_type=model_type))


def test_an_unknown_key_can_be_named() -> None:
    config = config_from_hf(llama(frobnicate=3), ["frobnicate"])
    # Of another model, nothing was said.
    with pytest.raises(UserError, match=r"'frobnicate'.*--ignore-keys frobnicate"):
        config_from_hf(llama(frobnicate=3))
    assert config == config_from_hf(llama())
    assert config_to_hf(config, llama(frobnicate=3))["frobnicate"] == 3


def test_code_that_a_family_was_published_with() -> None:
    phi = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    code = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    config = config_from_hf(llama(**phi, auto_map=code))
    assert "auto_map" not in config_to_hf(config, llama(**phi, auto_map=code))
    for other in (code | {"AutoModel": "modeling_x.Y"}, ["x"], {"AutoModel": {}}):
        with pytest.raises(UserError, match="'auto_map'"):
            config_from_hf(llama(**phi, auto_map=other))
    with pytest.raises(UserError, match="'auto_map'"):
        config_from_hf(llama(auto_map=code))


def test_nothing_is_missing_for_what_works() -> None:
    assert not {one for types in MISSING.values() for one in types.split()} & FAMILIES.keys()


def test_what_qwen3_has() -> None:
    config = config_from_hf(llama(model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=12))
    assert (config.qk_norm, config.qkv_bias, config.out_bias, config.mlp_bias) == (True, False, False, False)
    assert config.head_dim == 12
    biased = config_from_hf(llama(model_type="qwen3", architectures=None, attention_bias=True))
    assert (biased.qk_norm, biased.qkv_bias, biased.out_bias) == (True, True, True)
    assert biased.head_dim == 128
    assert config_to_hf(biased, {})["attention_bias"] is True


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"frobnicate": 3}, "frobnicate"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"original_max_position_embeddings": 64}, "original_max_position_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map"),
        ({"sliding_window": 5}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"vocab_size": "absent"}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 34}, "head_dim"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"model_type": "qwen2", "architectures": None, "use_sliding_window": "yes"}, "use_sliding_window"),
        ({"model_type": "qwen2", "architectures": None, "layer_types": SLIDING}, "layer_types"),
        ({"model_type": "mistral", "architectures": None, "layer_types": SLIDING}, "layer_types"),
        ({"model_type": "smollm3", "architectures": None, "no_rope_layers": [1]}, "no_rope_layers"),
        ({"model_type": "smollm3", "architectures": None, "no_rope_layers": [1, 2, 1]}, "no_rope_layers"),
        ({"model_type": "granite", "architectures": None, "logits_scaling": 0}, "logits_scaling"),
        (
            {"model_type": "phi3", "architectures": None, "partial_rotary_factor": 0.9},
            "partial_rotary_factor",
        ),
        ({"model_type": "qwen2", "architectures": None, "layer_types": ["x"] * 3}, "layer_types"),
        ({"model_type": "mistral", "architectures": None, "sliding_window": 0}, "sliding_window"),
        ({"model_type": "mistral", "architectures": None, "attention_bias": True}, "attention_bias"),
        (
            {"model_type": "qwen3", "architectures": None, "max_window_layers": -1} | WINDOW_ON,
            "max_window_layers",
        ),
        ({"model_type": "qwen3", "architectures": None, "attention_bias": "no"}, "attention_bias"),
        ({"model_type": "qwen3", "architectures": None, "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "qwen3"}, "architectures"),
        # One case for each part that has tests of its own.
        ({"rope_scaling": {"type": "ntk", "factor": 4.0}}, "rope_scaling.rope_type"),
        ({"per_layer_config": {"1": {"skip": ["norm"]}}}, "per_layer_config.1.skip"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"'?{named}\b"):
        config_from_hf(llama(**changes))


@pytest.mark.slow
def test_every_key_with_every_kind_of_value() -> None:
    """An accepted value can be written again. Any other is refused in a short sentence that names a key."""
    rope = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "rope_theta")
    rope += ("original_max_position_embeddings", "partial_rotary_factor", "x")
    layer = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "skip", "x")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for name, family in FAMILIES.items():
        base = llama(model_type=name, architectures=None)
        keys = READ | HARMLESS | CHECKED.keys() | family.read_keys | family.checked.keys() | {"x", "_x"}
        for key, value in itertools.product(sorted(keys), BAD_VALUES):
            taken_or_refused(base | {key: value}, key)
        for key, value in itertools.product(rope, BAD_VALUES):
            taken_or_refused(base | {"rope_scaling": scaling | {key: value}}, "rope")
            taken_or_refused(base | {"rope_parameters": {key: value}}, "rope")
        for key, value in itertools.product(layer, BAD_VALUES):
            taken_or_refused(base | {"per_layer_config": {"1": {key: value}}}, "per_layer_config")


def taken_or_refused(values: dict[str, Any], named: str) -> None:
    message = refusal(lambda: config_from_hf(values))
    if not message:
        config = config_from_hf(values)
        assert config_from_hf(config_to_hf(config, values)) == config
    # If two sizes contradict each other, the message may name either.
    assert not message or named in message or "must be" in message
    assert len(message) < 1000


@pytest.mark.parametrize("key", LIMITS)
def test_sizes_beyond_any_model_are_refused_at_once(key: str) -> None:
    for value in (LIMITS[key] + 1, 10**9, 10**300):
        base = MOE if "expert" in key or "moe" in key else LLAMA
        with pytest.raises(UserError, match=rf"'{key}' is .*at most {LIMITS[key]}"):
            config_from_hf(base | {key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 5}, "'num_local_experts' is 5.*must be num_experts, which is 6"),
        ({"num_experts_per_tok": 7}, "'num_experts_per_tok' is 7.*at most 6"),
        ({"num_experts": None}, "'num_experts' is missing"),
        ({"mlp_only_layers": [1]}, r"'mlp_only_layers' is \[1\]"),
        ({"shared_expert_intermediate_size": 8}, "'shared_expert_intermediate_size'.*is unknown"),
        (
            {"per_layer_config": {"1": {"num_experts": 1, "num_experts_per_tok": 2}}},
            r"'per_layer_config\.1\.num_experts_per_tok' is 2.*must be 1",
        ),
        (
            {"per_layer_config": {"1": {"intermediate_size": 8}}},
            r"per_layer_config\.1\.intermediate_size' is unk",
        ),
    ],
)
def test_experts_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_hf(MOE | change)


def test_experts_by_either_key() -> None:
    """Of the two keys, the one that a checkpoint came with is written again."""
    config = config_from_hf(MOE)
    assert config.layers == (LayerShape(4, 2, 8, 6),) * 3
    assert (config.routed, config.norm_routing) == (2, False)
    saved = {key: value for key, value in MOE.items() if key != "num_experts"} | {"num_local_experts": 6}
    assert config_from_hf(saved | {"norm_topk_prob": True}).norm_routing
    assert config_from_hf(saved) == config
    fewer = dataclasses.replace(config, layers=(LayerShape(4, 2, 8, 3),) * 3)
    for base, key in ((MOE, "num_experts"), (saved, "num_local_experts")):
        written = config_to_hf(fewer, base)
        assert written[key] == 3
        assert {"num_experts", "num_local_experts"} & written.keys() == {key}
        assert written["intermediate_size"] == 48


def test_a_million_layers_of_their_own() -> None:
    layers = {str(number): {} for number in range(300_000)}
    with pytest.raises(UserError, match=r"'per_layer_config\.10\d*' names no layer: there are 10000"):
        config_from_hf(llama(num_hidden_layers=10_000, per_layer_config=layers))


def test_config_that_a_family_cannot_express() -> None:
    config = config_from_hf(LLAMA)
    with pytest.raises(ValueError, match="cannot express"):
        config_to_hf(ModelConfig(**{**vars(config), "positions": (Positions(window=8),)}), LLAMA)
