"""Writing GGUF files of models whose layers differ, in llama.cpp's architecture `deci`.

`deci` is Llama with sizes per layer. It is the only such architecture of stock llama.cpp that covers all of
this project's families. A layer may lack its attention or its FFN, with three exceptions: llama.cpp does not
run attention without an FFN, the first layer must have attention, and the last layer must have an FFN. In
these cases a head or some neurons with zero weights, which have no effect, are written instead.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import PreTrainedTokenizerFast

from tyr_jax import __version__
from tyr_jax.data.encoding import is_unicode
from tyr_jax.errors import UserError
from tyr_jax.io.config_values import LARGEST_NUMBER, shown
from tyr_jax.io.gguf import ROPE_FACTORS, ggml_names, permute
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.vocabulary import gguf_vocabulary
from tyr_jax.model.rope import Positions, amplitudes, frequencies
from tyr_jax.model.spec import Block, LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import TensorSpec, all_specs, along, block_specs, layer_block, model_specs

ARCHITECTURE = "deci"

OWN_KEY = "tyr_jax.version"
"""The metadata key that marks a file as written by this package."""

HEAD_BYTES = 4096
"""The key is within this many bytes from the start of a file."""

TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
"""Types in which matrices can be written (norms and biases stay float32), and ggml's file type for each."""


class Written(NamedTuple):
    """A tensor in a file: its shape and stored type."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType


STILL = 1e-30
"""Frequency, in radians per token, that stands for zero."""

LARGEST_F16 = float(np.finfo(np.float16).max)
LARGEST = {GGMLQuantizationType.BF16: float(jnp.finfo(jnp.bfloat16).max)}
"""The largest weight that a type can hold, where it is not the largest float16."""


def stored_shape(shape: LayerShape, first: bool, last: bool, multiple: int) -> LayerShape:
    """A layer's sizes in the file: with what llama.cpp requires, and neurons padded to a `multiple`."""
    heads, kv_heads = (1, 1) if first and not shape.heads else (shape.heads, shape.kv_heads)
    neurons = max(shape.ffn, 1 if heads or last else 0)
    return LayerShape(heads, kv_heads, -(-neurons // multiple) * multiple)


def stored_config(config: ModelConfig, multiple: int) -> ModelConfig:
    """`config` with the layers' sizes in the file (see `stored_shape`)."""
    shapes = [
        stored_shape(shape, layer == 0, layer == config.depth - 1, multiple)
        for layer, shape in enumerate(config.layers)
    ]
    return dataclasses.replace(config, layers=tuple(shapes))


def filled(spec: TensorSpec, array: np.ndarray | None) -> np.ndarray:
    """`array` padded with zeros to the shape of `spec`. A missing array becomes zeros, or ones for a norm."""
    if array is None:
        return np.full(spec.shape, 1.0 if spec.is_norm else 0.0, np.float32)
    pairs = zip(spec.shape, array.shape, strict=True)
    return np.pad(array.astype(np.float32), [(0, new - old) for new, old in pairs])


def sorted_neurons(block: Block, config: ModelConfig) -> Block:
    """`block` with its neurons sorted by the norm of their output weights, largest first.

    The order does not matter to the model. But quantised types share a scale among 32 neighbouring weights,
    and llama.cpp does so among activations, so neighbours should be of similar size.
    """
    if "down" not in block:
        return block
    order = jnp.argsort(-jnp.linalg.norm(block["down"].astype(jnp.float32), axis=1), stable=True)
    axes = {tensor.name: tensor.axes for tensor in config.tensors if "F" in tensor.axes}
    return block | {name: jnp.take(block[name], order, axes[name].index("F")) for name in axes}


def stored_names(config: ModelConfig) -> dict[str, str]:
    """Names of tensors in the file, by their names in a Hugging Face checkpoint.

    Raises:
        UserError: the architecture has no tensor for one of them, or lacks what the model computes; names it.
    """
    lacking = {"GELU": config.activation != "silu", "sublayers without a pre-norm": not config.pre_norms}
    lacking |= {"experts": config.experts, "soft-caps": bool(config.score_cap or config.logit_cap)}
    for what in [what for what, needed in lacking.items() if needed]:
        raise UserError(
            f"a {config.family} model cannot be written as a GGUF file: llama.cpp's architecture "
            f"'{ARCHITECTURE}', which has sizes per layer, has no {what}; run it with transformers or "
            "`python -m tyr_jax.generate`"
        )
    stored = {}
    keys = [spec.key for spec in all_specs(config)]
    for key, name in ggml_names(keys, ARCHITECTURE, config.depth).items():
        if name is None:
            raise UserError(
                f"a {config.family} model cannot be written as a GGUF file: llama.cpp's architecture "
                f"'{ARCHITECTURE}', which has sizes per layer, has no tensor '{key}'; run it with "
                "transformers or `python -m tyr_jax.generate`"
            )
        stored[key] = name
    return stored


def check(config: ModelConfig) -> None:
    """Check that a model of this configuration can be written as a GGUF file.

    Raises:
        UserError: the architecture has no tensor for one of its tensors, or lacks what it computes; names it.
    """
    stored_names(config)
    shared_positions(config)


def stored_tensors(params: Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of every tensor of the file, with the sizes of `config` (see `stored_config`).

    Raises:
        UserError: the architecture has no tensor for one of them; names it.
    """
    names, sizes = stored_names(config), (config.head_dim, config.rotated or config.head_dim)
    larger = np.tile(np.asarray(amplitudes(shared_positions(config), *sizes)), 2)
    for spec in model_specs(config):
        yield names[spec.key], np.asarray(params[spec.name], np.float32)
    for layer in range(config.depth):
        block = sorted_neurons(layer_block(params["blocks"], layer), config)
        for spec in block_specs(config, layer):
            array = np.asarray(block[spec.name]) if spec.name in block else None
            # In our order and scale: `deci` knows neither partial rotary embeddings nor multipliers.
            plain, array = dataclasses.replace(spec, channels=(), offset=0.0, scale=1.0), filled(spec, array)
            if spec.rotary:
                array = array * along("H", larger, spec.axes)
            array = plain.to_checkpoint(array)
            yield names[spec.key], permute(array, config.head_dim) if spec.rotary else array


def shared_positions(config: ModelConfig) -> Positions:
    """How all layers treat positions, windows aside.

    Raises:
        UserError: they have different rotary embeddings.
    """
    first, *others = {dataclasses.replace(each, window=None) for each in config.layer_types}
    if others:
        raise UserError(
            f"this {config.family} model cannot be written as a GGUF file: its layers differ in their rotary "
            f"embeddings, and llama.cpp's architecture '{ARCHITECTURE}', which has sizes per layer, has the "
            "same in all layers; run it with transformers or `python -m tyr_jax.generate`"
        )
    return first


def rope_base(config: ModelConfig) -> float:
    """Base of the rotary frequencies, of which `frequency_divisors` makes the model's.

    Raises:
        UserError: the layers have different rotary embeddings.
    """
    return shared_positions(config).theta or 10000.0


def frequency_divisors(config: ModelConfig) -> np.ndarray:
    """What llama.cpp divides the plain rotary frequencies by, `[H/2]`: scaling as GGUF stores it.

    Raises:
        UserError: the layers have different rotary embeddings.
    """
    positions = shared_positions(config)
    plain = frequencies(Positions(rope_base(config)), config.head_dim, config.head_dim)
    own = frequencies(positions, config.head_dim, config.rotated or config.head_dim)
    # Channels that are not rotated get a frequency too low to matter.
    return np.asarray(plain / jnp.maximum(own, STILL), np.float32)


def metadata(config: ModelConfig) -> dict[str, Any]:
    """The metadata that llama.cpp needs of the model, by key."""
    sizes = {
        "block_count": config.depth,
        # `deci` has no sliding window. In a context no longer than the window, that makes no difference.
        "context_length": min([config.context, *(each.window for each in config.layer_types if each.window)]),
        "embedding_length": config.hidden,
        "vocab_size": config.vocab,
        "feed_forward_length": [shape.ffn for shape in config.layers],
        "attention.head_count": [shape.heads for shape in config.layers],
        "attention.head_count_kv": [shape.kv_heads for shape in config.layers],
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": rope_base(config),
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in sizes.items()}


def check_metadata(values: dict[str, Any]) -> None:
    """Check that a GGUF file can hold the `values`, and that llama.cpp reads them as they are meant.

    Raises:
        UserError: one cannot be held; names the key.
    """
    for key, value in values.items():
        several = isinstance(value, list)
        for each in value if several else [value]:
            if isinstance(each, str):
                right, wanted = "\0" not in each and is_unicode(each), "text without NUL"
            elif isinstance(each, float):
                # False for NaN as well.
                right, wanted = abs(each) <= LARGEST_NUMBER, "a number that float32 can hold"
            else:
                right, wanted = 0 <= each < 2 ** (31 if several else 32), "a number of at most 32 bits"
            if not right:
                raise UserError(f"a GGUF file cannot hold '{key}' {shown(each)}: it must be {wanted}")
        if several and not value:
            raise UserError(f"a GGUF file cannot hold '{key}': its list is empty")


def add(writer: GGUFWriter, values: dict[str, Any]) -> None:
    """Add metadata `values` to the file, each with the GGUF type for its Python type."""
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def quantised(name: str, array: np.ndarray, kind: str) -> tuple[np.ndarray, GGMLQuantizationType]:
    """(stored array, type) of the tensor `name`.

    A matrix is stored as `kind`, or as float16 if its rows are not a multiple of the type's block. Other
    tensors are stored as float32.

    Raises:
        UserError: a weight is not finite, or is too large for the type.
    """
    stored = GGMLQuantizationType[kind.upper()]
    if array.ndim < 2:
        stored = GGMLQuantizationType.F32
    elif array.shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
        stored = GGMLQuantizationType.F16
    largest = float(np.abs(array).max(initial=0))
    if not np.isfinite(largest):
        raise UserError(f"tensor '{name}' holds NaN or infinity")
    # Block types store their scales and offsets in float16.
    if stored != GGMLQuantizationType.F32 and largest > LARGEST.get(stored, LARGEST_F16):
        wider = "f32" if stored in LARGEST else "bf16 or f32"
        raise UserError(
            f"tensor '{name}' has values too large for {stored.name.lower()}; choose {wider} with --quantize"
        )
    return gguf.quants.quantize(np.ascontiguousarray(array), stored), stored


def is_ours(path: Path) -> bool:
    """Whether this package wrote the file, and it is a GGUF file."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return head.startswith(b"GGUF") and OWN_KEY.encode() in head


def write_gguf(
    path: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    kind: str,
    multiple: int = 1,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a model as a GGUF file that stock llama.cpp loads.

    Args:
        path: the file to write.
        config: the model's configuration.
        params: its weights.
        tokenizer: its tokenizer, including the chat template.
        kind: type of the matrices, one of `TYPES`.
        multiple: FFN widths are padded with zeros to a multiple of this and of the type's block size.
        on_tensor: called with the name of each tensor when it is ready.

    Raises:
        UserError: the architecture, a metadata value, the tokenizer or a weight cannot be written in this
            format, or the file does not read back as written.
    """
    block = int(gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]][0])
    stored = stored_config(config, int(np.lcm(multiple, block)))
    values = {OWN_KEY: __version__} | metadata(stored) | gguf_vocabulary(tokenizer, config.vocab)
    check_metadata(values)
    writer = GGUFWriter(path, ARCHITECTURE)
    add(writer, values)
    writer.add_file_type(TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tensors: dict[str, Written] = {}
    for name, array in stored_tensors(params, stored):
        data, data_type = quantised(name, array, kind)
        writer.add_tensor(name, data, raw_dtype=data_type)
        tensors[name] = Written(array.shape, data_type)
        on_tensor(name)
    factors = frequency_divisors(config)
    if (factors != 1).any():
        writer.add_tensor(ROPE_FACTORS, factors.astype(np.float32))
        tensors[ROPE_FACTORS] = Written(factors.shape, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_written(path, values, tensors)


def check_written(path: Path, values: dict[str, Any], tensors: dict[str, Written]) -> None:
    """Read back a file's metadata and the shapes and types of its tensors, and compare them.

    Raises:
        UserError: one differs from what was written; names it.
    """
    file = open_gguf(path)
    found = {tensor.name: Written(tensor.shape[::-1], tensor.kind) for tensor in file.tensors}
    different = [key for key, value in values.items() if file.values.get(key) != _rounded(value)]
    different += [name for name in tensors.keys() | found.keys() if found.get(name) != tensors.get(name)]
    if different:
        raise UserError(f"{path} does not hold '{different[0]}' as it was written; check the disk, try again")


def _rounded(value: Any) -> Any:
    """A value as it is read from a file: floats rounded to float32."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(np.float32(value)) if isinstance(value, float) else value
