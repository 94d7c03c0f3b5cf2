"""Reading Hugging Face checkpoints: what a model's name stands for, its tensors, and the check of every key.

A checkpoint of any format is a `TensorSource`. `load_params` turns one into `Params`, and is the only place
that decides whether the tensors are the ones that the configuration asks for.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from tyr_jax.errors import UserError, first_line
from tyr_jax.files import check_regular, inside, read_json
from tyr_jax.io.config_values import shown
from tyr_jax.io.directory import check_directory
from tyr_jax.io.experts import BLOCKS, SCALES, ExpertSource, PackedSource
from tyr_jax.io.fused import SplitSource, stored_key
from tyr_jax.io.source import TensorSource
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import TensorSpec, all_specs, build_params
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import Stack

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
"""Weight dtypes that can be read, by their names in safetensors."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
IGNORED_KEYS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors that older versions of transformers saved, although they follow from the configuration."""

CONFIG = "config.json"

HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]


class SafetensorsSource:
    """Tensors of a directory with `model.safetensors`, or with shards and their index; memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self._files = {path: _open_shard(path) for path in sorted(set(_weight_map(directory).values()))}
        self._where: dict[str, Path] = {}
        for path, file in self._files.items():
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key in self._where:
                    raise UserError(f"tensor '{key}' is in two files: {self._where[key]} and {path}")
                self._where[key] = path

    def keys(self) -> set[str]:
        """Names of all tensors in all shards."""
        return set(self._where)

    def dtype(self, key: str) -> np.dtype:
        """The type in which tensor `key` is stored.

        Raises:
            UserError: it is not one of `DTYPES`; names the tensor.
        """
        path = self._where[key]
        dtype = self._files[path].get_slice(key).get_dtype()
        if dtype == "U8" and key.endswith((BLOCKS, SCALES)):
            return np.dtype(np.uint8)
        if dtype not in DTYPES:
            raise UserError(
                f"tensor '{key}' in {path} has dtype {dtype}: it must be float32, bfloat16 or float16"
            )
        return DTYPES[dtype]

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`.

        Raises:
            UserError: its type is not one of `DTYPES`, or it cannot be read; names the tensor.
        """
        self.dtype(key)
        path = self._where[key]
        try:
            return self._files[path].get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read tensor '{key}' from {path}: {error}") from error


def _open_shard(path: Path) -> Any:
    if not path.exists():
        raise UserError(
            f"weights file {path} is missing, although {INDEX} names it: download the model again"
        )
    check_regular(path, "weights file")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"cannot read weights from {path}: it is truncated or corrupt ({first_line(error)})"
        ) from error


def _weight_map(directory: Path) -> dict[str, Path]:
    """The file of each tensor, or `{"": model.safetensors}` for a single file."""
    # If a directory has both, the single file counts, as it does in transformers.
    if (directory / WEIGHTS).is_file():
        return {"": directory / WEIGHTS}
    index = directory / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not weight_map or not isinstance(weight_map, dict):
            raise UserError(f"{index} has no usable 'weight_map'")
        strange = [name for name in weight_map.values() if not isinstance(name, str)]
        if strange:
            raise UserError(f"{index} names no file in 'weight_map', but {shown(strange[0])}")
        return {key: inside(directory, name, str(index)) for key, name in weight_map.items()}
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise UserError(
            f"{directory} has only pickled weights (.bin), which are not read because loading them can run "
            "code: convert them to safetensors, with `save_pretrained` of transformers"
        )
    ggufs = sorted(directory.glob("*.gguf"))
    hint = f"; to load the GGUF file give its path, {ggufs[0]}" if ggufs else ""
    raise UserError(f"{directory} has no {WEIGHTS} and no {INDEX}{hint}")


def load_params(
    source: TensorSource, config: ModelConfig, dtype: DTypeLike = jnp.float32, *, offload: bool = False
) -> Params:
    """Read every tensor of `config` from `source`, in our layout and in `dtype`.

    With `offload`, the tensors of the blocks are read later, one layer at a time, when they are needed.

    Raises:
        UserError: a tensor is missing, unknown, not of the shape that `config` gives it, of an unsupported
            dtype, or not finite; names it.
    """
    source = SplitSource(source, config) if config.fused else source
    if config.experts:
        source = (PackedSource if config.packed else ExpertSource)(source, config)
    specs = {spec.key: spec for spec in all_specs(config)}
    keys = source.keys()
    absent = (stored_key(spec, config) for key, spec in specs.items() if key not in keys)
    missing = list(dict.fromkeys(absent))
    unknown = sorted(key for key in keys - set(specs) if not IGNORED_KEYS.fullmatch(key))
    if config.tied and "lm_head.weight" in unknown:
        _check_tied_head(source)
        unknown.remove("lm_head.weight")
    if missing:
        raise UserError(f"{_listed(missing)} missing from the checkpoint{_beside(unknown)}")
    if unknown:
        raise UserError(
            f"{_listed(unknown)} in the checkpoint but not in a {config.family} model of this config"
        )

    def read(spec: TensorSpec) -> np.ndarray:
        return _read(source, spec).astype(jnp.dtype(dtype))

    # With several devices, each gets its shards at once, so no device needs room for the whole model.
    stacked = functools.partial(_stack, read=read, dtype=jnp.dtype(dtype)) if offload else None
    return build_params(config, lambda spec: devices.spread(read(spec), config.hidden_axes), stacked)


def _stack(specs: Sequence[TensorSpec], read: Callable[[TensorSpec], np.ndarray], dtype: np.dtype) -> Stack:
    """The tensor of all layers, left in the checkpoint and read one layer at a time."""
    return Stack(len(specs), specs[0].shape, dtype, lambda layer: read(specs[layer]))


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
    return f"tensor '{keys[0]}'{more}"


def _beside(unknown: list[str]) -> str:
    return f" (which has unknown ones instead, such as '{unknown[0]}')" if unknown else ""


def _check_tied_head(source: TensorSource) -> None:
    """Check that a head saved in spite of tied embeddings equals them; else tying would change the function.

    Raises:
        UserError: it does not.
    """
    if not np.array_equal(source.read("lm_head.weight"), source.read("model.embed_tokens.weight")):
        raise UserError(
            "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight' although the config says "
            "tie_word_embeddings: true; set it to false if the head is meant"
        )


def _read(source: TensorSource, spec: TensorSpec) -> np.ndarray:
    """One tensor in our layout, with its shape and values checked.

    Raises:
        UserError: it cannot be read, has the wrong shape, or is not finite; names it.
    """
    array = source.read(spec.key)
    if array.shape != spec.checkpoint_shape:
        raise UserError(
            f"tensor '{spec.key}' has shape {list(array.shape)}, where the config says "
            f"{list(spec.checkpoint_shape)}: config contradicts the weights"
        )
    if not np.isfinite(array).all():
        raise UserError(f"tensor '{spec.key}' holds NaN or infinity")
    return spec.from_checkpoint(array)


def looks_like_path(name: str) -> bool:
    """Whether a model's name can only be a path, not a hub id `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(".gguf")


def resolve(name: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """The directory or `.gguf` file that `name` stands for.

    Args:
        name: a path, or a hub id, whose files are downloaded.
        patterns: which files of a hub id to download.

    Raises:
        UserError: there is no such model, the hub cannot be reached or refuses it, or its directory holds a
            file that must not be opened (see `check_directory`).
    """
    if not name.strip():
        raise UserError("the model's name is empty: give a directory, a .gguf file or a hub id")
    path = _local(name) or _download(name, patterns)
    if path.is_dir():
        check_directory(path)
    else:
        check_regular(path, "model")
    return path


def _local(name: str) -> Path | None:
    """The directory or `.gguf` file of that name on this machine; None if the name may be a hub id.

    Raises:
        UserError: it is a file of another kind, or a path to nothing.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir() or (path.exists() and path.suffix.lower() == ".gguf"):
            return path
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        # The name is too long, has a NUL, or refers to a user without a home directory.
        raise UserError(f"no such file or directory: '{name}' ({first_line(error)})") from None
    if there:
        raise UserError(f"{name} is a file: give the model's directory, or a .gguf file")
    if looks_like_path(name):
        raise UserError(f"no such file or directory: '{name}'")
    return None


def _download(name: str, patterns: Sequence[str]) -> Path:
    """Download the files of the model `name` from the hub; later calls find them in the hub's cache.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except errors.HFValidationError as error:
        raise UserError(f"'{name}' is neither a file, a directory nor a valid hub id: {error}") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"model '{name}' is gated: accept its licence on https://huggingface.co/{name}, "
            "then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"no such file or directory, and no model '{name}' on the Hugging Face hub "
            "(if it is private, log in with `hf auth login`)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"model '{name}' is no directory and not in the local cache, and the Hugging Face hub cannot be "
            "reached (no network, or HF_HUB_OFFLINE is set): give the path of a downloaded model"
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the Hugging Face hub refused model '{name}': {first_line(error)}") from error
    except Exception as error:
        # A full disk, or whatever the HTTP client raises when a connection breaks.
        raise UserError(f"cannot download model '{name}': {first_line(error)}") from error
