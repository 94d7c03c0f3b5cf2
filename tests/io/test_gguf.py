from collections.abc import Callable
from pathlib import Path
from typing import Any

import io_samples
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.io.gguf import (
    ARCHITECTURES,
    GgufSource,
    ggml_names,
    llama3_factors,
    read_hf_config,
)
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model.decoder import forward
from tyr_jax.model.families import FAMILIES
from tyr_jax.model.rope import Llama3Scaling
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import all_specs

Writer = Callable[..., Path]
SIZES: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROPE3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        spec.key: (rng.standard_normal(spec.checkpoint_shape) * 0.2).astype(np.float32)
        for spec in all_specs(config_from_hf(config))
    }


def reference_logits(
    config: dict[str, Any], tensors: dict[str, np.ndarray], tokens: np.ndarray
) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="eager"
    ).eval()
    model.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()}, strict=False)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def our_logits(path: Path, tokens: np.ndarray) -> tuple[np.ndarray, ModelConfig]:
    model = load_model(str(path))
    return np.asarray(forward(model.params, jnp.asarray(tokens), model.config)), model.config


TOKENS = np.random.default_rng(2).integers(0, 300, (2, 40))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 16},
        {"model_type": "qwen3", "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_logits_of_a_tiny_file(changes: dict[str, Any], tmp_path: Path, gguf_writer: Writer) -> None:
    config = SIZES | changes
    tensors = random_tensors(config)
    path = gguf_writer(tmp_path / "m.gguf", config, tensors)
    ours, read = our_logits(path, TOKENS)
    assert read.tied == config.get("tie_word_embeddings", False)
    assert np.abs(ours - reference_logits(config, tensors, TOKENS)).max() <= 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_weights_as_transformers_reads_them(kind: str, tmp_path: Path, gguf_writer: Writer) -> None:
    # transformers does not read the head size from a GGUF, and assumes 128 for Qwen3.
    config = SIZES | {"model_type": kind} | ({"head_dim": 128} if kind == "qwen3" else {})
    path = gguf_writer(tmp_path / "m.gguf", config, random_tensors(config), kind=Kind.Q8_0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").state_dict()
    source = GgufSource(open_gguf(path), path, config_from_hf(config))
    assert source.keys() == set(theirs)
    for key in source.keys():  # noqa: SIM118 - not a mapping
        np.testing.assert_array_equal(source.read(key), theirs[key].float().numpy(), err_msg=key)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Kind.F16, 1e-3), (Kind.BF16, 1e-2), (Kind.Q8_0, 1e-2), (Kind.Q4_1, 0.1), (Kind.Q5_0, 0.1)],
)
def test_stored_types(kind: Kind, error: float, tmp_path: Path, gguf_writer: Writer) -> None:
    tensors = random_tensors(SIZES)
    path = gguf_writer(tmp_path / "m.gguf", SIZES, tensors, kind=kind)
    source = GgufSource(open_gguf(path), path, config_from_hf(SIZES))
    for key, array in tensors.items():
        read = source.read(key)
        assert read.dtype == np.float32
        assert np.abs(read - array).max() <= error


def test_type_that_cannot_be_dequantised(tmp_path: Path, gguf_writer: Writer) -> None:
    tensors = random_tensors(SIZES)
    del tensors["model.norm.weight"]
    extra = {"output_norm.weight": np.ones(32, np.int32)}
    path = gguf_writer(tmp_path / "m.gguf", SIZES, tensors, extra_tensors=extra)
    with pytest.raises(UserError, match=r"'output_norm\.weight' in .*m\.gguf has type I32"):
        load_model(str(path))


def test_unknown_and_missing_tensors(tmp_path: Path, gguf_writer: Writer) -> None:
    tensors = random_tensors(SIZES)
    extra = {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}
    path = gguf_writer(tmp_path / "m.gguf", SIZES, tensors, extra_tensors=extra)
    with pytest.raises(UserError, match=r"'blk\.0\.attn_q_norm\.weight' is in the checkpoint"):
        load_model(str(path))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    path = gguf_writer(tmp_path / "n.gguf", SIZES, tensors)
    with pytest.raises(UserError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load_model(str(path))


def test_llama3_rope(tmp_path: Path, gguf_writer: Writer) -> None:
    """The factor table is recognised. It is made from transformers' own frequencies."""
    config = SIZES | {"head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0}
    scaled = config | {"rope_scaling": ROPE3}
    tensors = random_tensors(config)
    plain = transformers.AutoConfig.for_model(**config)
    table = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](
        transformers.AutoConfig.for_model(**scaled), "cpu"
    )[0]
    frequencies = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = (frequencies / table.numpy()).astype(np.float32)
    assert plain.rope_parameters["rope_theta"] == 500000.0
    np.testing.assert_allclose(factors, llama3_factors(ROPE3, 500000.0, 64), rtol=1e-5)
    metadata = {"llama.rope.freq_base": 500000.0}
    extra = {"rope_freqs.weight": factors}
    path = gguf_writer(tmp_path / "m.gguf", config, tensors, metadata=metadata, extra_tensors=extra)
    ours, read = our_logits(path, TOKENS)
    assert read.positions[0].scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert np.abs(ours - reference_logits(scaled, tensors, TOKENS)).max() <= 1e-4
    factors[20] *= 1.1
    path = gguf_writer(tmp_path / "n.gguf", config, tensors, metadata=metadata, extra_tensors=extra)
    with pytest.raises(UserError, match=r"rope_freqs\.weight.*not the RoPE scaling of Llama 3"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.mystery": 3}, r"'llama\.mystery'.*unknown"),
        ({"mystery.key": 3}, r"'mystery\.key'.*unknown"),
        ({"llama.attention.sliding_window": 9}, r"'llama\.attention\.sliding_window'"),
        ({"llama.attention.head_count": [4, 4]}, r"'llama\.attention\.head_count'.*per layer"),
        ({"llama.feed_forward_length": [64, 64]}, r"'llama\.feed_forward_length'.*per layer"),
        ({"llama.rope.scaling.type": "yarn"}, r"'llama\.rope\.scaling\.type'.*'yarn'"),
        ({"llama.rope.scale_linear": 2.0}, r"'llama\.rope\.scale_linear'.*2\.0"),
        ({"llama.expert_count": 8}, r"'llama\.expert_count'.*8"),
        ({"llama.rope.dimension_count": 4}, r"'llama\.rope\.dimension_count' of .* is 4.*8"),
        ({"llama.embedding_length": None}, r"'llama\.embedding_length' is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon' is missing"),
        ({"llama.context_length": None}, "context_length' is missing"),
        ({"split.count": 3}, "one of 3 pieces"),
        ({"llama.attention.head_count": 0}, r"'llama\.attention\.head_count' of .* is 0"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads"),
        ({"llama.vocab_size": 299}, r"'model\.embed_tokens\.weight'|tokenizer of"),
    ],
)
def test_metadata_errors(metadata: dict[str, Any], message: str, tmp_path: Path, gguf_writer: Writer) -> None:
    path = gguf_writer(tmp_path / "m.gguf", SIZES, random_tensors(SIZES), metadata=metadata)
    with pytest.raises(UserError, match=message):
        load_model(str(path))


def test_other_architecture(tmp_path: Path, gguf_writer: Writer) -> None:
    path = gguf_writer(tmp_path / "m.gguf", SIZES, {}, architecture="gemma2")
    with pytest.raises(
        UserError, match=r"m\.gguf has architecture 'gemma2': only llama, qwen2, qwen3, gemma3 are"
    ):
        load_model(str(path))


def test_vocabulary_size_from_the_embeddings(tmp_path: Path, gguf_writer: Writer) -> None:
    metadata = {"llama.vocab_size": None}
    path = gguf_writer(tmp_path / "m.gguf", SIZES, random_tensors(SIZES), metadata=metadata)
    assert read_hf_config(open_gguf(path), path)["vocab_size"] == 300


def test_epsilon_is_the_decimal_that_was_meant(tmp_path: Path, gguf_writer: Writer) -> None:
    metadata = {"llama.attention.layer_norm_rms_epsilon": 1e-5}
    path = gguf_writer(tmp_path / "m.gguf", SIZES, random_tensors(SIZES), metadata=metadata)
    assert read_hf_config(open_gguf(path), path)["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.99])
def test_truncated_file(share: float, tmp_path: Path, gguf_writer: Writer) -> None:
    path = gguf_writer(tmp_path / "m.gguf", SIZES, random_tensors(SIZES))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(UserError, match=r"m\.gguf is not a GGUF file, or is truncated"):
        load_model(str(path))


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        load_model(str(path))
    with pytest.raises(UserError, match=r"cannot read .*gone\.gguf': No such file"):
        open_gguf(tmp_path / "gone.gguf")


NORMS = {
    "gemma3": {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
}
NORMS["gemma3"] |= {"post_feedforward_layernorm": "post_ffw_norm"}
"""ggml's names of norms that differ from those that `io_samples` writes, by architecture."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_what_can_be_read_has_a_name(architecture: str) -> None:
    """The names are those that `io_samples` writes, according to the `gguf` package's own table."""
    model_type, norms = ARCHITECTURES[architecture].model_type, NORMS.get(architecture, {})
    flags = {key: True for key in FAMILIES[model_type].tensors.values() if key is not True}
    config = config_from_hf(SIZES | {"model_type": model_type} | flags)
    names = ggml_names([spec.key for spec in all_specs(config)], architecture, 2)

    def expected(key: str) -> str:
        module = next((module for module in norms if f".{module}." in key), None)
        return f"blk.{key.split('.')[2]}.{norms[module]}.weight" if module else io_samples.ggml_name(key)

    assert names == {key: expected(key) for key in names}


def test_a_tensor_without_a_name() -> None:
    key = "model.layers.1.self_attn.q_norm.weight"
    assert ggml_names([key], "llama", 2) == {key: None}
