"""Tiny random models of every family, written by transformers in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROPE3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 100.0,
}
GRANITE = {
    "model_type": "granite",
    "attention_multiplier": 0.4,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "head_dim": 12,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
GEMMA2 = {"model_type": "gemma2", "head_dim": 12, "sliding_window": 7}
PHI3 = {"model_type": "phi3", "pad_token_id": 0}
SMOLLM3 = {"model_type": "smollm3", "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 12,
    "intermediate_size": 200,
    "moe_intermediate_size": 48,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "head_dim": 8,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "rope_parameters": YARN | {"truncate": False},
}
CASES: dict[str, dict[str, Any]] = {
    "llama-gqa": {"model_type": "llama"},
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-mqa": {"model_type": "llama", "num_key_value_heads": 1},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 12},
    "llama-rope3": {"model_type": "llama", "rope_parameters": ROPE3},
    "llama-linear": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "llama-yarn": {"model_type": "llama", "head_dim": 16, "rope_parameters": YARN},
    "llama-dynamic": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}},
    "llama-eps-theta": {
        "model_type": "llama",
        "rms_norm_eps": 1e-2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "ministral": {
        "model_type": "ministral",
        "head_dim": 12,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3-biases": {"model_type": "qwen3", "head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-2},
    "qwen3-windows": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "smollm3": SMOLLM3 | {"no_rope_layer_interval": 2},
    "smollm3-windows": SMOLLM3
    | {
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 7,
        "tie_word_embeddings": False,
        "attention_bias": True,
    },
    "granite": GRANITE,
    "granite-tied": GRANITE | {"tie_word_embeddings": True, "attention_bias": True},
    "gemma3": GEMMA3,
    "gemma3-scaled": GEMMA3
    | {
        "query_pre_attn_scalar": 50,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "gemma2": GEMMA2,
    "gemma2-caps": GEMMA2 | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
    "glm4": {"model_type": "glm4", "head_dim": 16, "pad_token_id": 0},
    "exaone4": {
        "model_type": "exaone4",
        "head_dim": 12,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "exaone4-full": {
        "model_type": "exaone4",
        "sliding_window": None,
        "layer_types": ["full_attention"] * 3,
        "tie_word_embeddings": True,
    },
    "olmo2": {"model_type": "olmo2", "pad_token_id": 0},
    "olmo3": {
        "model_type": "olmo3",
        "pad_token_id": 0,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "phi3": PHI3 | {"sliding_window": 7},
    "phi3-longrope": PHI3
    | {
        "original_max_position_embeddings": 96,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 8.0],
            "original_max_position_embeddings": 96,
        },
    },
    "qwen3-moe": QWEN3_MOE,
    "qwen3-moe-normed": QWEN3_MOE | {"norm_topk_prob": True, "attention_bias": True},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 7},
    "olmoe": {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3},
    "gpt-oss": GPT_OSS,
    "gpt-oss-full": GPT_OSS
    | {
        "layer_types": ["full_attention"] * 3,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "phi3-partial": PHI3 | {"partial_rotary_factor": 0.5, "tie_word_embeddings": True},
}
"""Keys of a `config.json` beyond `SIZES`, by what they are to show."""


def torch_model(case: dict[str, Any], seed: int = 0) -> Any:
    """A model in which every parameter matters: biases and norms are random, too, and weights not tiny."""
    config = transformers.AutoConfig.for_model(**(SIZES | case))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def torch_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits `[B, T, V]` of `tokens [B, T]`."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def pruned_in_torch(directory: Path) -> Any:
    """A directory that we wrote, as transformers loads it."""
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
