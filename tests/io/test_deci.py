"""GGUF files of models whose layers differ, run by llama.cpp."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import llama_reference
import numpy as np
import pytest
from speeds import only_quick
from transformers import PreTrainedTokenizerFast

from tyr_jax.errors import UserError
from tyr_jax.io import deci
from tyr_jax.model.decoder import forward
from tyr_jax.model.rope import Llama3Scaling, Positions
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params

TOKENS = np.random.default_rng(0).integers(0, 290, 40)
WHOLE, SMALL = LayerShape(4, 2, 48), LayerShape(2, 2, 16)

Tiny = Callable[..., ModelConfig]


def make(tiny_config: Tiny, **changes: Any) -> tuple[ModelConfig, Params]:
    config = dataclasses.replace(tiny_config(vocab=300), **changes)
    return config, random_params(config, jax.random.key(0), scale=0.2)


def ours(config: ModelConfig, params: Params) -> np.ndarray:
    return np.asarray(forward(params, jnp.asarray(TOKENS)[None], config))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"qkv_bias": True},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"positions": (Positions(scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),)},
        {"layers": (WHOLE, LayerShape(3, 1, 40), SMALL)},
        {"layers": (WHOLE, LayerShape(3, 3, 8), SMALL)},
        # Removed sublayers, both where llama.cpp supports that and where it does not.
        {"layers": (WHOLE, LayerShape(0, 0, 40), SMALL)},
        {"layers": (WHOLE, LayerShape(3, 1, 0), SMALL)},
        {"layers": (WHOLE, LayerShape(0, 0, 0), SMALL)},
        {"layers": (LayerShape(0, 0, 40), WHOLE, SMALL)},
        {"layers": (LayerShape(4, 2, 0), WHOLE, SMALL)},
        {"layers": (LayerShape(0, 0, 0), WHOLE, SMALL)},
        {"layers": (WHOLE, SMALL, LayerShape(0, 0, 40))},
        {"layers": (WHOLE, SMALL, LayerShape(4, 2, 0))},
        {"layers": (WHOLE, SMALL, LayerShape(0, 0, 0)), "mlp_bias": True},
        {"layers": (LayerShape(0, 0, 0), LayerShape(0, 0, 0), LayerShape(0, 0, 0))},
    ],
    ids=str,
)
@pytest.mark.parametrize("multiple", only_quick([1, 32], 1))
def test_llama_cpp_computes_the_same(
    changes: dict[str, Any],
    multiple: int,
    tiny_config: Tiny,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    config, params = make(tiny_config, **changes)
    deci.write_gguf(tmp_path / "m.gguf", config, params, tiny_tokenizer, "f32", multiple)
    theirs = llama_reference.logits(tmp_path / "m.gguf", TOKENS)
    np.testing.assert_allclose(ours(config, params), theirs, rtol=0, atol=1e-4)


def test_neurons_of_like_size_lie_side_by_side(tiny_config: Tiny) -> None:
    config, params = make(tiny_config, mlp_bias=True)
    tensors = dict(deci.stored_tensors(params, config))
    sizes = np.linalg.norm(tensors["blk.1.ffn_down.weight"], axis=0)
    assert (np.diff(sizes) <= 0).all()
    # Every neuron moved as a whole.
    block = layer_block(params["blocks"], 1)
    place = {bytes(np.asarray(row)): n for n, row in enumerate(block["down"])}
    order = [place[bytes(column)] for column in tensors["blk.1.ffn_down.weight"].T]
    assert sorted(order) == list(range(config.layers[1].ffn))
    for name, tensor in (("gate", "ffn_gate.weight"), ("up", "ffn_up.weight")):
        np.testing.assert_array_equal(tensors[f"blk.1.{tensor}"], np.asarray(block[name]).T[order])
    for name, tensor in (("gate_bias", "ffn_gate.bias"), ("up_bias", "ffn_up.bias")):
        np.testing.assert_array_equal(tensors[f"blk.1.{tensor}"], np.asarray(block[name])[order])


@pytest.mark.slow
@pytest.mark.usefixtures("extra_tensors")
def test_neurons_of_a_further_tensor_move_too(tiny_config: Tiny) -> None:
    config, params = make(tiny_config)
    block = layer_block(params["blocks"], 1)
    moved = deci.sorted_neurons(block, config)
    order = np.argsort(-np.linalg.norm(block["down"], axis=1))
    np.testing.assert_array_equal(moved["neuron_extra"], block["neuron_extra"][:, order])
    for name in ("plain_extra", "head_extra", "q"):
        np.testing.assert_array_equal(moved[name], block[name])


def test_a_tensor_that_llama_cpp_has_no_place_for(
    tiny_config: Tiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config, params = make(tiny_config, family="qwen3", qk_norm=True)
    message = r"qwen3 model cannot be .* GGUF file: .*'deci'.* 'model\.layers\.0\.self_attn\.q_norm\.weight'"
    with pytest.raises(UserError, match=message):
        deci.write_gguf(tmp_path / "m.gguf", config, params, tiny_tokenizer, "f32")
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_insists_on_takes_the_place_of_nothing() -> None:
    nothing = LayerShape(0, 0, 0)
    assert deci.stored_shape(nothing, True, False, 1) == LayerShape(1, 1, 1)
    assert deci.stored_shape(nothing, False, False, 32) == nothing
    assert deci.stored_shape(nothing, False, True, 32) == LayerShape(0, 0, 32)
    assert deci.stored_shape(LayerShape(4, 2, 0), False, False, 8) == LayerShape(4, 2, 8)
    assert deci.stored_shape(LayerShape(4, 2, 40), False, True, 32) == LayerShape(4, 2, 64)
    assert deci.stored_shape(LayerShape(0, 0, 40), False, False, 1) == LayerShape(0, 0, 40)


@pytest.mark.parametrize(
    ("kind", "error"), [("f16", 0.002), ("bf16", 0.02), ("q8_0", 0.05), ("q5_1", 0.4), ("q4_0", 0.7)]
)
def test_types(
    kind: str, error: float, tiny_config: Tiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config, params = make(tiny_config, layers=(WHOLE, LayerShape(3, 1, 40), SMALL))
    deci.write_gguf(tmp_path / "m.gguf", config, params, tiny_tokenizer, kind)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types["blk.1.ffn_down.weight"] == types["token_embd.weight"] == kind
    # Three heads of 8 do not fill a block of 32.
    quantised = kind not in ("f16", "bf16")
    assert types["blk.1.attn_output.weight"] == ("f16" if quantised else kind)
    assert types["blk.1.ffn_norm.weight"] == "f32"
    widths = reader.fields["deci.feed_forward_length"].contents()
    assert widths == ([64, 64, 32] if quantised else [48, 40, 16])
    exact = ours(config, params)
    theirs = llama_reference.logits(tmp_path / "m.gguf", TOKENS)
    assert 0 < np.linalg.norm(exact - theirs) / np.linalg.norm(exact) < error


def test_a_window_becomes_the_context(
    tiny_config: Tiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for window, context in ((32, 32), (None, 128)):
        config, params = make(tiny_config, family="mistral", positions=(Positions(window=window),))
        deci.write_gguf(tmp_path / "m.gguf", config, params, tiny_tokenizer, "f32")
        fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
        assert fields["deci.context_length"].contents() == context


def test_what_float16_cannot_hold(
    tiny_config: Tiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config, params = make(tiny_config)
    params["blocks"]["up"] = params["blocks"]["up"].at[1, 0, 0].set(1e6)
    with pytest.raises(UserError, match=r"'blk.1.ffn_up.weight' has values too large for f16.*--quantize"):
        deci.write_gguf(tmp_path / "m.gguf", config, params, tiny_tokenizer, "f16")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38, 3.4e38, 1e5, 7e4])
def test_weights_beyond_a_type(
    kind: str, value: float, tiny_config: Tiny, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Either the weight is named and refused before anything is written, or all values are finite."""
    config, params = make(tiny_config)
    params["embed"] = params["embed"].at[5, 7].set(value)
    path = tmp_path / "m.gguf"
    try:
        deci.write_gguf(path, config, params, tiny_tokenizer, kind)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        for tensor in gguf.GGUFReader(path).tensors:
            assert np.isfinite(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).all()
    assert not message or ("'token_embd.weight'" in message and not path.exists())
    assert message or kind in ("f32", "bf16")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"max_positions": 2**32}, "deci.context_length"),
        ({"positions": (Positions(1e39),)}, "deci.rope.freq_base"),
        ({"positions": (Positions(float("nan")),)}, "deci.rope.freq_base"),
        ({"norm_eps": float("inf")}, "layer_norm_rms_epsilon"),
    ],
)
def test_metadata_beyond_a_file(
    changes: dict[str, Any],
    key: str,
    tiny_config: Tiny,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    config, params = make(tiny_config)
    with pytest.raises(UserError, match=rf"a GGUF file cannot hold '.*{key}' "):
        deci.write_gguf(
            tmp_path / "m.gguf", dataclasses.replace(config, **changes), params, tiny_tokenizer, "f32"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["a\0b", "\ud800", [], ["a", "\0"], [2**31], [-1], -1, 2**32, [1e39], 1e39])
def test_values_beyond_a_file(value: Any) -> None:
    deci.check_metadata({"fine": 1, "also": [1.0], "text": "x", "flag": True})
    with pytest.raises(UserError, match=r"cannot hold 'my\.key'"):
        deci.check_metadata({"fine": 1, "my.key": value})


def test_a_file_that_is_not_what_was_written(
    tiny_config: Tiny,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, params = make(tiny_config)
    path = tmp_path / "m.gguf"
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda self: None)
    with pytest.raises(UserError, match=r"m\.gguf is not a GGUF file, or is truncated"):
        deci.write_gguf(path, config, params, tiny_tokenizer, "f32")
    monkeypatch.undo()
    deci.write_gguf(path, config, params, tiny_tokenizer, "f32")
    deci.check_written(path, {"deci.block_count": 3}, tensors := written(path))
    with pytest.raises(UserError, match=r"'deci\.block_count' as it was written"):
        deci.check_written(path, {"deci.block_count": 4}, tensors)
    with pytest.raises(UserError, match=r"'output\.weight' as it was written"):
        deci.check_written(
            path, {}, tensors | {"output.weight": deci.Written((1,), gguf.GGMLQuantizationType.F32)}
        )
    with pytest.raises(UserError, match=r"'more' as it was written"):
        deci.check_written(path, {}, tensors | {"more": tensors["output.weight"]})


def written(path: Path) -> dict[str, deci.Written]:
    return {
        tensor.name: deci.Written(tuple(map(int, tensor.shape[::-1])), tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
