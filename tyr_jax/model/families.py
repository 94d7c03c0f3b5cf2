"""Families of models as data: how the models of one family differ from those of another.

All families share the decoder of `tyr_jax.model.decoder`. They differ in which of its optional tensors they
have, in the keys of their `config.json`, and in what absent keys stand for. Everything else, from loading to
compressing and writing, depends on the axes of the tensors that a model has (`BLOCK_TENSORS` in
`tyr_jax.model.spec`: a tensor that is new to the decoder gets a row there).

A family from outside the package is one `Family` in a module of your own (for example `examples/family.py`).
`load_family("my_module:FAMILY")` registers it; so does `register_family(FAMILY)`, if you have the object. A
key of `config.json` that no entry mentions is an error that names it. So an entry mentions every key that its
models have beyond the common ones: in `tensors` or `defaults` if it is read, in `checked` if only some values
are supported, in `harmless` if it does not change the function.
"""

import dataclasses

from tyr_jax.errors import UserError
from tyr_jax.model.family import LOCAL_BASE, WINDOW, Experts, Family
from tyr_jax.model.spec import BLOCK_TENSORS
from tyr_jax.plugins import load_object

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    models="Llama 2, 3, 3.1, 3.2 and 3.3, SmolLM, SmolLM2, TinyLlama",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults={"max_position_embeddings": 2048},
    checked={"sliding_window": (None,)},
)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    models="Mistral 7B, Mistral Nemo, Mistral Small (text only)",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    checked={"attention_bias": (False,), "mlp_bias": (False,)},
)

MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    models="Ministral 8B",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    sliding="listed",
)

SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    models="SmolLM3",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "use_sliding_window": False,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    rope=(2000000.0, 1.0),
    sliding="without_rotary",
    # SmolLM3's trainers write both keys; its code reads neither.
    checked={"pretraining_tp": (1, 2, None)},
    harmless=frozenset({"max_window_layers"}),
)

GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    models="Granite 3 (not its mixtures of experts)",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    multipliers={
        "attention_scale": "attention_multiplier",
        "embed_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_divisor": "logits_scaling",
    },
    defaults={"max_position_embeddings": 2048},
)

PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    models="Phi-3, Phi-4",
    fused=("qkv_proj", "gate_up_proj"),
    published_code=frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "sliding_window": None},
    checked={"attention_bias": (False,), "mlp_bias": (False,)},
    # It is read with RoPE type `longrope`, and matters for no other.
    harmless=frozenset({"original_max_position_embeddings"}),
)

GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    models="Gemma 3 270M and 1B",
    tensors={"qk_norm": True},
    keys={"mlp_norm": "pre_feedforward_layernorm.weight"},
    post_norms=True,
    norm_offset=1.0,
    embed_by_width=True,
    activation="gelu_tanh",
    multipliers={"query_scalar": "query_pre_attn_scalar"},
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        LOCAL_BASE: 10000.0,
    },
    rope=(1000000.0, 1.0),
    rope_by_type=True,
    sliding="by_pattern",
    checked={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "hidden_act": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    },
    harmless=frozenset({"cache_implementation"}),
)

GEMMA2 = dataclasses.replace(
    GEMMA3,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    models="Gemma 2",
    tensors={},
    caps={"score_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"},
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
    },
    rope=(10000.0, 1.0),
    rope_by_type=False,
    checked={
        "hidden_activation": ("gelu_pytorch_tanh",),
        # Early files say `gelu` here, which transformers ignored.
        "hidden_act": ("gelu_pytorch_tanh", "gelu"),
        "attention_bias": (False,),
        "use_bidirectional_attention": (False, None),
    },
    harmless=frozenset({"cache_implementation"}),
)

GLM4 = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    models="GLM-4 9B and 32B (0414)",
    tensors={"qkv_bias": "attention_bias"},
    keys={
        "attn_post_norm": "post_self_attn_layernorm.weight",
        "mlp_post_norm": "post_mlp_layernorm.weight",
    },
    fused=("gate_up_proj",),
    neighbours=True,
    post_norms=True,
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 0.00000015625,
        "max_position_embeddings": 131072,
        "attention_bias": True,
    },
    rope=(10000.0, 0.5),
)

EXAONE4 = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    models="EXAONE 4.0",
    tensors={"qk_norm": True},
    pre_norms=False,
    post_norms=True,
    global_rotary=False,
    defaults={
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    sliding="by_pattern",
)

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    models="OLMo 2",
    tensors={"wide_qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    pre_norms=False,
    post_norms=True,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
)

OLMO3 = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    models="OLMo 3",
    tensors={"wide_qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    pre_norms=False,
    post_norms=True,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    rope=(500000.0, 1.0),
    rope_by_type=True,
    sliding="by_pattern",
)

QWEN_WINDOW = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    models="Qwen2, Qwen2.5",
    tensors={"qkv_bias": True},
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, **QWEN_WINDOW},
    sliding="from_max_window_layers",
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    models="Qwen3",
    tensors={"qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        **QWEN_WINDOW,
    },
    sliding="from_max_window_layers",
)

ROUTER_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef"})
"""Keys of mixtures of experts that matter in training alone."""

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    models="Qwen3 mixtures of experts (30B-A3B, 235B-A22B)",
    tensors={"qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, **QWEN_WINDOW},
    experts=Experts(width="moe_intermediate_size", norm_routing="norm_topk_prob"),
    checked={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
    harmless=ROUTER_KEYS,
)

MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    models="Mixtral",
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        WINDOW: None,
    },
    rope=(1e6, 1.0),
    experts=Experts(count="num_local_experts"),
    keys={
        "router": "block_sparse_moe.gate.weight",
        "gate": "block_sparse_moe.experts.w1.weight",
        "up": "block_sparse_moe.experts.w3.weight",
        "down": "block_sparse_moe.experts.w2.weight",
    },
    harmless=ROUTER_KEYS | {"router_jitter_noise"},
)

OLMOE = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    models="OLMoE",
    tensors={"wide_qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    experts=Experts(norm_routing="norm_topk_prob"),
    checked={"clip_qkv": (None,)},
    harmless=ROUTER_KEYS,
)

GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    models="GPT-OSS 20B and 120B",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_bias", "sinks": True, "expert_bias": True},
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "attention_bias": True,
        WINDOW: 128,
        "sliding_window_pattern": 2,
    },
    rope=(150000.0, 1.0),
    rope_given=True,
    sliding="by_pattern",
    experts=Experts(count="num_local_experts"),
    keys={"router": "mlp.router.weight"},
    activation="clamped",
    packed=True,
    quantised=frozenset({"mxfp4"}),
    checked={"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
    harmless=ROUTER_KEYS | {"experts_per_token", "initial_context_length"},
)

BUILT_IN = (
    LLAMA,
    MISTRAL,
    MINISTRAL,
    QWEN2,
    QWEN3,
    SMOLLM3,
    GRANITE,
    PHI3,
    GEMMA3,
    GEMMA2,
    GLM4,
    EXAONE4,
    OLMO2,
    OLMO3,
    QWEN3_MOE,
    MIXTRAL,
    OLMOE,
    GPT_OSS,
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in BUILT_IN}
"""All families that can be read, by `model_type`."""


NOT_FLAGS = frozenset({"", "mixed", "pre_norms", "post_norms", "one_ffn", "experts"})
"""Flags of tensors that `Family.tensors` does not set: they have fields of their own, or none."""

MISSING: dict[str, str] = {
    "shared experts, or another way to route": """qwen2_moe flex_olmo granitemoe granitemoeshared
        phimoe deepseek_v2 deepseek_v3 glm4_moe ernie4_5_moe llama4_text jetmoe dbrx hunyuan_v1_moe minimax
        exaone_moe""",
    "state-space layers or linear attention": """mamba mamba2 falcon_mamba jamba bamba zamba zamba2 falcon_h1
        granitemoehybrid nemotron_h qwen3_next qwen3_5_text lfm2 recurrent_gemma rwkv olmo_hybrid""",
    "image or audio input": """gemma3 gemma3n gemma4 llava llava_next qwen2_vl qwen2_5_vl qwen3_vl qwen3_5
        mistral3 mllama llama4 pixtral internvl idefics2 idefics3 smolvlm paligemma phi4_multimodal glm4v
        qwen2_audio""",
    "LayerNorm (not RMSNorm)": """cohere cohere2 gpt2 gpt_neo gpt_neox gptj opt bloom falcon mpt phi stablelm
        starcoder2 olmo codegen persimmon nemotron""",
    "multi-head latent attention": "minicpm3 longcat_flash",
}
"""What the decoder lacks for families that people may try, by their `model_type`."""


def missing_for(model_type: str) -> str | None:
    """What the decoder lacks for a family; None if it is not known."""
    return next((what for what, types in MISSING.items() if model_type in types.split()), None)


def register_family(family: Family) -> None:
    """Add a family to `FAMILIES`. The same family may be added again.

    Raises:
        UserError: another family has this `model_type`; or this one has tensors that the decoder does not
            know, or a default for a key that is not read.
    """
    name = family.model_type
    if FAMILIES.get(name, family) != family:
        raise UserError(f"there is another family with model_type '{name}': give yours another model_type")
    flags = list(dict.fromkeys(tensor.flag for tensor in BLOCK_TENSORS if tensor.flag not in NOT_FLAGS))
    unknown = [flag for flag in family.tensors if flag not in flags]
    if unknown:
        raise UserError(
            f"family '{name}' has tensors '{unknown[0]}', which the decoder does not know: it knows "
            f"{', '.join(flags)}"
        )
    unread = sorted(family.defaults.keys() - family.read_keys)
    if unread:
        raise UserError(
            f"family '{name}' has a default of '{unread[0]}', which nothing reads: put it into `checked` or "
            "`harmless`"
        )
    FAMILIES[name] = family


def load_family(reference: str) -> Family:
    """Register the family that `reference`, `module:ATTRIBUTE`, names. It may be registered already.

    Raises:
        UserError: the object does not exist, is not a family, or cannot be registered.
    """
    family: Family = load_object(reference, "family", Family)
    register_family(family)
    return family
