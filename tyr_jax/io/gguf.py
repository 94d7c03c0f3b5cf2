"""Reading GGUF files: metadata as a Hugging Face `config.json`, tensors dequantised under Hugging Face names.

GGUF's peculiarities are converted here, in both directions, so that everything else sees one layout: ggml's
tensor names; the row order of `q` and `k` in files of architecture `llama`, which rotate neighbouring pairs
instead of halves; and Llama-3 RoPE scaling, which GGUF stores as a table of factors.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from gguf.quants import dequantize

from tyr_jax.errors import UserError, first_line
from tyr_jax.io.config_values import LARGEST_NUMBER, shown
from tyr_jax.io.gguf_header import GgufFile, Tensor
from tyr_jax.io.hf import DTYPES
from tyr_jax.model.families import FAMILIES
from tyr_jax.model.family import ACTIVATION_KEYS
from tyr_jax.model.spec import BLOCK_TENSORS, ModelConfig
from tyr_jax.model.tensors import all_specs


class Architecture(NamedTuple):
    """An architecture of llama.cpp: the `model_type` that it is in a `config.json`, and metadata keys that it
    must have beyond those of all architectures, with their `config.json` keys."""

    model_type: str
    keys: Mapping[str, str] = {}


ARCHITECTURES = {
    "llama": Architecture("llama"),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3": Architecture("gemma3_text", {"attention.sliding_window": "sliding_window"}),
}
"""Architectures that can be read. `llama` files also hold Mistral models, which differ only in name."""

READ = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""Metadata keys under the architecture's prefix that are read, and their `config.json` keys."""

NUMBERS = ("rms_norm_eps", "rope_theta")
"""The `config.json` keys among them whose values need not be integers."""

GEMMA_27B_LAYERS = 62

REQUIRED = (
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "context_length",
)

CHECKED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.layer_norm_epsilon": (),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}
"""Metadata keys that must have one of these values when present."""

SIZED = ("rope.dimension_count", "attention.value_length")
"""Metadata keys that must equal the head dimension when present."""

HARMLESS_PREFIXES = ("GGUF.", "general.", "tokenizer.", "quantize.")

ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""RoPE scaling of every Llama 3.1, 3.2 and 3.3 model; only `factor` differs between them."""


def metadata(file: GgufFile) -> dict[str, Any]:
    """Metadata values by key: all that are not arrays."""
    return {key: value for key, value in file.values.items() if not isinstance(value, list)}


def ggml_names(keys: Iterable[str], architecture: str, depth: int) -> dict[str, str | None]:
    """ggml's tensor names by Hugging Face's names `keys`, for files of `architecture` with `depth` layers.

    The name is None if the architecture has no such tensor.
    """
    (kind,) = (kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(kind, depth)
    return {key: table.get_name(key, try_suffixes=(".weight", ".bias")) for key in keys}


class GgufSource:
    """Tensors of a GGUF file, dequantised to float32 one at a time, in Hugging Face's names and layout."""

    def __init__(self, file: GgufFile, path: Path, config: ModelConfig) -> None:
        self._file, self._path, self._head_dim = file, path, config.head_dim
        self._architecture = file.values["general.architecture"]
        self._specs = {spec.key: spec for spec in all_specs(config)}
        names = ggml_names(self._specs, self._architecture, config.depth)
        keys = {name: key for key, name in names.items()}
        # Tensors that the model does not have keep ggml's name, so that an error can show it.
        self._tensors = {keys.get(tensor.name, tensor.name): tensor for tensor in file.tensors}
        self._tensors.pop(ROPE_FACTORS, None)

    def keys(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def dtype(self, key: str) -> np.dtype:
        """The type in which tensor `key` is stored; float32 if it is quantised."""
        return DTYPES.get(self._tensors[key].kind.name, np.dtype(np.float32))

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`, as float32.

        Raises:
            UserError: it cannot be dequantised; names it and its type.
        """
        array = _dequantized(self._file, self._tensors[key], self._path)
        if key in self._specs and self._specs[key].offset:
            # ggml stores scales of norms as they are applied.
            array = array - np.float32(self._specs[key].offset)
        turned = self._architecture == "llama" and self._specs[key].rotary
        # A tensor of the wrong shape is returned as it is, and refused later.
        if turned and array.ndim and len(array) % self._head_dim == 0:
            return unpermute(array, self._head_dim)
        return array


def _dequantized(file: GgufFile, tensor: Tensor, path: Path) -> np.ndarray:
    """A tensor as float32.

    Raises:
        UserError: it cannot be dequantised or is corrupt; names it.
    """
    try:
        return np.asarray(dequantize(file.read(tensor), tensor.kind), np.float32)
    except NotImplementedError as error:
        raise UserError(
            f"tensor '{tensor.name}' in {path} has type {tensor.kind.name}, "
            "which the `gguf` package cannot dequantise"
        ) from error
    except (ValueError, IndexError) as error:
        raise UserError(f"tensor '{tensor.name}' in {path} is corrupt ({first_line(error)})") from error


def permute(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder the rows of a rotary tensor, `(heads, 2, pairs)`, for `llama` files: `(heads, pairs, 2)`."""
    halves = array.reshape(-1, 2, head_dim // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def unpermute(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder rows `(heads, pairs, 2)` to `(heads, 2, pairs)`: the inverse of `permute`."""
    pairs = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def read_hf_config(file: GgufFile, path: Path) -> dict[str, Any]:
    """The `config.json` that is equivalent to a GGUF file's metadata.

    Raises:
        UserError: a metadata key is unknown, missing, given per layer, or has an unsupported value; names
            the key.
    """
    values = metadata(file)
    architecture = values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} has architecture {shown(architecture)}: only {', '.join(ARCHITECTURES)} are supported"
        )
    prefix, (model_type, further) = f"{architecture}.", ARCHITECTURES[architecture]
    read = READ | dict(further)
    _check_metadata(file, values, prefix, read, path)
    config = {hf: values[prefix + key] for key, hf in read.items() if prefix + key in values}
    names = {tensor.name for tensor in file.tensors}
    if config.get("num_hidden_layers", 0) > len(names):
        # Tensor names are generated for every layer that the metadata announces.
        raise UserError(
            f"metadata key '{prefix}block_count' of {path} is {config['num_hidden_layers']}, but it has "
            f"{len(names)} tensors"
        )
    family = FAMILIES[model_type]
    activation_key, activation = ACTIVATION_KEYS[family.activation]
    config |= {
        "model_type": model_type,
        "architectures": [family.architecture],
        activation_key: activation,
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": "float32",
    }
    for key in (*REQUIRED, *further):
        if read[key] not in config:
            raise UserError(f"metadata key '{prefix}{key}' is missing from {path}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    # The file stores it as a float32. Restore the decimal that was meant (1e-05, not 9.99999974e-06).
    config["rms_norm_eps"] = float(str(np.float32(config["rms_norm_eps"])))
    if "vocab_size" not in config:
        config["vocab_size"] = _embedding_rows(file, path)
    _set_head_dim(config, values, prefix, path)
    config |= optional_tensors(architecture, names)
    if "query_scalar" in family.multipliers:
        # llama.cpp tells the 27B model by its number of layers.
        by_width = config["num_hidden_layers"] == GEMMA_27B_LAYERS
        scalar = config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
        config[family.multipliers["query_scalar"]] = scalar
    if ROPE_FACTORS in names:
        config["rope_scaling"] = _llama3_scaling(file, config, path)
    return config | token_ids(values)


def optional_tensors(architecture: str, names: set[str]) -> dict[str, bool]:
    """The `config.json` keys that say which optional tensors a model has, for a file with tensors `names`."""
    found: dict[str, bool] = {}
    for flag, key in FAMILIES[ARCHITECTURES[architecture].model_type].tensors.items():
        if key is not True:
            own = [tensor.key_of(0) for tensor in BLOCK_TENSORS if tensor.flag == flag]
            there = any(name in names for name in ggml_names(own, architecture, 1).values())
            found[key] = there or found.get(key, False)
    return found


def _check_metadata(
    file: GgufFile, values: dict[str, Any], prefix: str, read: Mapping[str, str], path: Path
) -> None:
    """Check that every metadata key that could change what the model computes is understood.

    Raises:
        UserError: a key is unknown, given per layer, or has an unsupported value, or the file is one of
            several pieces; names the key.
    """
    _check_kinds(values, prefix, read, path)
    if (pieces := values.get("split.count", 1)) not in (0, 1):
        raise UserError(f"{path} is one of {shown(pieces)} pieces: merge them with llama-gguf-split")
    known = {prefix + key for key in (*read, *CHECKED, *SIZED)}
    for key in file.values:
        if key.startswith((*HARMLESS_PREFIXES, "split.")):
            continue
        if key not in known:
            raise UserError(f"metadata key '{key}' of {path} is unknown: it might change what the model does")
        if key not in values:
            raise UserError(f"metadata key '{key}' of {path} has a value per layer, which is not supported")
    for name, allowed in CHECKED.items():
        if prefix + name in values and values[prefix + name] not in allowed:
            raise UserError(
                f"metadata key '{prefix}{name}' of {path} has the unsupported value "
                f"{shown(values[prefix + name])}"
            )


def _check_kinds(values: dict[str, Any], prefix: str, read: Mapping[str, str], path: Path) -> None:
    """Check that the values of the keys in `read` are positive integers, or for `NUMBERS` positive numbers.

    Raises:
        UserError: one is not; names its key.
    """
    for name, key in read.items():
        value = values.get(prefix + name, 1)
        kinds = (int, float) if key in NUMBERS else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < LARGEST_NUMBER:
            wanted = "a positive number" if key in NUMBERS else "a positive integer"
            raise UserError(f"metadata key '{prefix}{name}' of {path} is {shown(value)}: it must be {wanted}")


def _set_head_dim(config: dict[str, Any], values: dict[str, Any], prefix: str, path: Path) -> None:
    """Fill in `head_dim`, and check the metadata that must agree with it.

    Raises:
        UserError: a value of `SIZED` differs from it; names the key.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if "head_dim" not in config and heads and hidden % heads == 0:
        config["head_dim"] = hidden // heads
    for name in SIZED:
        if prefix + name in values and values[prefix + name] != config.get("head_dim"):
            raise UserError(
                f"metadata key '{prefix}{name}' of {path} is {shown(values[prefix + name])}, but the head "
                f"dimension is {config.get('head_dim')}: partial rotary embeddings and unequal values are "
                "not supported"
            )


def _embedding_rows(file: GgufFile, path: Path) -> int:
    for tensor in file.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
            return tensor.shape[-1]
    raise UserError(f"tensor 'token_embd.weight' is missing from {path}, or is not a matrix")


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Llama-3 RoPE scaling as GGUF stores it: the divisor of every rotary frequency, `[H/2]`."""
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling["factor"] + blend)


def _llama3_scaling(file: GgufFile, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """`rope_scaling` from the table of factors. The slowest frequency has the full factor.

    Raises:
        UserError: the table is not the one that this factor gives.
    """
    table = next(tensor for tensor in file.tensors if tensor.name == ROPE_FACTORS)
    factors = _dequantized(file, table, path).astype(np.float64).ravel()
    if not factors.size:
        raise UserError(f"tensor '{ROPE_FACTORS}' of {path} is empty: download the model again")
    scaling = {"rope_type": "llama3", "factor": float(str(np.float32(factors[-1]))), **LLAMA3_ROPE}
    theta = float(config.get("rope_theta", 10000.0))
    with np.errstate(all="ignore"):
        same = factors.size * 2 == config.get("head_dim") and np.allclose(
            factors, llama3_factors(scaling, theta, 2 * factors.size), rtol=1e-4, atol=0
        )
    if not same:
        raise UserError(
            f"tensor '{ROPE_FACTORS}' of {path} is not the RoPE scaling of Llama 3: load the model from its "
            "Hugging Face directory instead"
        )
    return scaling


def token_ids(values: dict[str, Any]) -> dict[str, int]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, where the metadata has them."""
    names = {
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "padding_token_id",
    }
    found = {hf: values.get(f"tokenizer.ggml.{name}") for hf, name in names.items()}
    return {hf: value for hf, value in found.items() if value is not None}
