"""Loading a model by name, with all that belongs to it, and saving one as a Hugging Face directory."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from tyr_jax.data.encoding import encode
from tyr_jax.errors import UserError, first_line
from tyr_jax.files import read_json, write_json
from tyr_jax.io import gguf, hf
from tyr_jax.io.builtin import ORIGIN, builtin_model
from tyr_jax.io.config_values import of_file, read_values, shown
from tyr_jax.io.experts import by_key, is_packed, pack
from tyr_jax.io.fused import joined, stored_together
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.gguf_tokenizer import tokenizer_from_gguf
from tyr_jax.io.hf_config import MODELING, config_from_hf, config_to_hf
from tyr_jax.io.origin import Origin, origin_of_directory, origin_of_gguf
from tyr_jax.io.tokenizer import tokenizer_from_directory
from tyr_jax.model.families import FAMILIES, load_family
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import TensorSpec, all_specs, iter_tensors
from tyr_jax.options import converted
from tyr_jax.runtime import devices

BUILTIN = "builtin"
"""The name of the model that the package registry carries."""

EMBEDDINGS = "model.embed_tokens.weight"

MAX_SHARD_BYTES = 5_000_000_000


FLOAT32 = np.dtype(np.float32)
UNKNOWN = Origin("model")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with everything of its source that has to be kept."""

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerFast
    hf_config: dict[str, Any]
    generation_config: dict[str, Any] | None = None
    source: str = "the model"
    stored_dtype: np.dtype = FLOAT32
    """The type in which its embeddings were stored; float32 if they were quantised."""
    origin: Origin = UNKNOWN
    """Its name, hub id and licence, wherever it was loaded from."""


def load_model(
    name: str,
    dtype: DTypeLike = jnp.float32,
    *,
    offload: bool = False,
    family: str | None = None,
    ignore_keys: Iterable[str] = (),
) -> LoadedModel:
    """Load a model.

    Args:
        name: `builtin`, a directory, a `.gguf` file or a hub id.
        dtype: type of the weights in memory.
        offload: leave the weights of the blocks on disk, and read them whenever they are needed.
        family: a model family of the user's own, `module:ATTRIBUTE`, to register first.
        ignore_keys: keys of `config.json` that do not change what the model computes.

    Raises:
        UserError: there is no such model or family, or something in it is not supported.
    """
    if family is not None:
        load_family(family)
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"a model is named by a text or a path, not by {name!r:.100}")
    name = str(os.fspath(name))
    path = builtin_model() if name == BUILTIN else hf.resolve(name)
    load = _load_gguf if path.is_file() else _load_directory
    return load(path, name, _checked_dtype(dtype), offload, _checked_keys(ignore_keys))


def _checked_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Names of keys.

    Raises:
        UserError: they are something else.
    """
    return converted("ignore_keys", tuple[str, ...], keys)


def _checked_dtype(dtype: DTypeLike) -> np.dtype:
    """The type as NumPy's, one that weights can have.

    Raises:
        UserError: it is another one, or none.
    """
    known = [kind.name for kind in hf.DTYPES.values()]
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in known:
        raise UserError(f"dtype is {dtype!r}, but must be one of {', '.join(known)}")
    return found


def load_config(name: str, ignore_keys: Iterable[str] = ()) -> tuple[ModelConfig, np.dtype]:
    """(configuration, dtype of the stored weights) of the model called `name`.

    The dtype is the one that the configuration states; float32 if it states none, and for GGUF files. From
    the hub, only the configuration is downloaded. `ignore_keys` are as for `load_model`.

    Raises:
        UserError: there is no such model, or its configuration is not supported.
    """
    path = builtin_model() if name == BUILTIN else hf.resolve(name, [hf.CONFIG])
    if path.is_file():
        values = gguf.read_hf_config(open_gguf(path), path)
        with of_file(path):
            return config_from_hf(values, _checked_keys(ignore_keys)), np.dtype(np.float32)
    hf_config = read_values(path / hf.CONFIG)
    stored = hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32"
    dtypes = {dtype.name: dtype for dtype in hf.DTYPES.values()}
    if not isinstance(stored, str) or stored not in dtypes:
        raise UserError(
            f"{path / hf.CONFIG} has dtype {shown(stored)}: it must be one of {', '.join(dtypes)}"
        )
    with of_file(path / hf.CONFIG):
        return config_from_hf(hf_config, _checked_keys(ignore_keys)), dtypes[stored]


def _load_directory(
    directory: Path, name: str, dtype: DTypeLike, offload: bool, ignore_keys: Iterable[str]
) -> LoadedModel:
    if not (directory / hf.CONFIG).is_file():
        # If the weights are missing too, or of an unsupported format, this raises the more useful error.
        hf.SafetensorsSource(directory)
    hf_config = read_values(directory / hf.CONFIG)
    with of_file(directory / hf.CONFIG):
        config = config_from_hf(hf_config, ignore_keys)
    tokenizer = tokenizer_from_directory(directory)
    _check_vocabulary(tokenizer, config, name)
    generation = directory / "generation_config.json"
    weights = hf.SafetensorsSource(directory)
    return LoadedModel(
        config=config,
        params=hf.load_params(weights, config, dtype, offload=offload),
        tokenizer=tokenizer,
        hf_config=hf_config,
        generation_config=read_values(generation) if generation.is_file() else None,
        source=name,
        stored_dtype=weights.dtype(EMBEDDINGS),
        origin=origin_of_directory(name, directory, hf_config),
    )


def _load_gguf(
    path: Path, name: str, dtype: DTypeLike, offload: bool, ignore_keys: Iterable[str]
) -> LoadedModel:
    file = open_gguf(path)
    hf_config = gguf.read_hf_config(file, path)
    with of_file(path):
        config = config_from_hf(hf_config, ignore_keys)
    tokenizer = tokenizer_from_gguf(file, path)
    _check_vocabulary(tokenizer, config, name)
    weights = gguf.GgufSource(file, path, config)
    return LoadedModel(
        config=config,
        params=hf.load_params(weights, config, dtype, offload=offload),
        tokenizer=tokenizer,
        hf_config=hf_config,
        generation_config=dict(gguf.token_ids(gguf.metadata(file))) or None,
        source=name,
        stored_dtype=weights.dtype(EMBEDDINGS),
        origin=ORIGIN if name == BUILTIN else origin_of_gguf(path, gguf.metadata(file)),
    )


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: ModelConfig, name: str) -> None:
    """Check that every token has an embedding; one without would silently read another token's.

    Raises:
        UserError: a token has none, or there are no tokens.
    """
    if not len(tokenizer):
        raise UserError(f"the tokenizer of {name} has no tokens: give the model the tokenizer it came with")
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # The tokens that a template adds around a text have ids of their own, which the vocabulary may lack.
    around = max(encode(tokenizer, "a", special=True).tolist(), default=0)
    if around > index:
        token, index = tokenizer.convert_ids_to_tokens(around) or "around each text", around
    if index >= config.vocab:
        raise UserError(
            f"the tokenizer of {name} has token {shown(token)} with id {index}, but the model has only "
            f"{config.vocab} embeddings (vocab_size): use the tokenizer that it came with"
        )


def save_model(
    directory: Path,
    model: LoadedModel,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face model into the existing `directory`.

    Args:
        directory: an empty staging directory; moving it into place is up to the caller.
        model: the model; keys of its `config.json` that are not written anew are kept.
        dtype: type of the written weights: float32, bfloat16 or float16; by default its `stored_dtype`.
        max_shard_bytes: larger weights are split into several files (shards) with an index.

    Raises:
        UserError: the disk is full; the directory cannot be written; `dtype` is another type; the
            configuration cannot be written as a `config.json`; or a weight is not finite in `dtype`.
    """
    kind, config = jnp.dtype(model.stored_dtype if dtype is None else dtype), model.config
    if kind not in hf.DTYPES.values():
        raise UserError(f"cannot save weights as {kind.name}: only float32, bfloat16 and float16")
    try:
        written = config_to_hf(config, model.hf_config)
        json.dumps([written, model.generation_config], allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, TypeError) as error:
        # Sizes for which the family has no `config.json` keys, or values that JSON cannot hold.
        raise UserError(f"cannot save a model into {directory}: {first_line(error)}") from error
    written.pop("torch_dtype", None)
    written["dtype"] = kind.name
    try:
        _write_weights(directory, config, model.params, kind, max_shard_bytes)
        write_json(directory / hf.CONFIG, written)
        if "per_layer_config" in written:
            _write_modeling(directory, config)
        if model.generation_config is not None:
            write_json(directory / "generation_config.json", model.generation_config)
        _write_tokenizer(directory, model.tokenizer)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"cannot write weights into {directory}: {first_line(error)}") from error


def _write_modeling(directory: Path, config: ModelConfig) -> None:
    """Write the file of model classes that transformers needs when layers differ."""
    name = f"{MODELING}.py"
    stock = FAMILIES[config.family].architecture.removesuffix("ForCausalLM")
    code = Path(__file__).with_name(name).read_text(encoding="utf-8")
    norms = {sublayer: _norms_around(config, sublayer) for sublayer in ("attention", "ffn")}
    for before, after in (
        ('FAMILY = "Llama"', f'FAMILY = "{stock}"'),
        ('ATTENTION_NORMS = ("input_layernorm",)', f"ATTENTION_NORMS = {norms['attention']}"),
        ('MLP_NORMS = ("post_attention_layernorm",)', f"MLP_NORMS = {norms['ffn']}"),
    ):
        code = code.replace(before, after)
    (directory / name).write_text(code, encoding="utf-8")


def _norms_around(config: ModelConfig, sublayer: str) -> tuple[str, ...]:
    """The modules of a layer, next to a sublayer, that go when it goes."""
    own = [tensor for tensor in config.tensors if tensor.sublayer == sublayer and tensor.axes == "D"]
    return tuple(tensor.key.partition(".")[0] for tensor in own if tensor.key.count(".") == 1)


def _write_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    try:
        tokenizer.save_pretrained(directory)
    except OSError:
        raise
    except Exception as error:
        # `tokenizers` raises a bare `Exception` for any disk error.
        raise UserError(f"cannot write the tokenizer into {directory}: {first_line(error)}") from error
    path = directory / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # The same class, under the name that transformers 4 (and so most servers) also knows.
        write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


Shard = dict[str, list[TensorSpec]]
"""Tensors of a file by key. Fused matrices consist of several."""


def plan_shards(config: ModelConfig, itemsize: int, max_bytes: int) -> list[Shard]:
    """The tensors of each file, in checkpoint order. No file exceeds `max_bytes`, unless one tensor does."""
    shards: list[Shard] = []
    room = 0
    for key, specs in stored_together(config):
        size = sum(math.prod(spec.shape) for spec in specs) * itemsize
        if not shards or size > room:
            shards.append({})
            room = max_bytes
        shards[-1][key] = specs
        room -= size
    return shards


def _write_weights(
    directory: Path, config: ModelConfig, params: Params, dtype: np.dtype, max_bytes: int
) -> None:
    shards = plan_shards(config, dtype.itemsize, max_bytes)
    tensors = iter_tensors(params, config)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else hf.WEIGHTS
        arrays: dict[str, np.ndarray] = {}
        for key, specs in shard.items():
            parts = [_to_checkpoint(*next(tensors), dtype) for _ in specs]
            if is_packed(specs[0], config):
                arrays[key] = pack(specs, parts)
            elif "XF" in specs[0].axes:
                arrays |= dict(by_key(specs[0], parts[0]))
            else:
                arrays[key] = joined(parts)
        save_file(arrays, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        total = sum(math.prod(spec.shape) for spec in all_specs(config)) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / hf.INDEX, index)


def _to_checkpoint(spec: TensorSpec, tensor: jax.Array, dtype: np.dtype) -> np.ndarray:
    """One tensor in the checkpoint's layout and in `dtype`.

    Raises:
        UserError: it is not finite in that type; names it.
    """
    with np.errstate(over="ignore"):
        array = spec.to_checkpoint(devices.fetch(tensor)).astype(dtype)
    if not np.isfinite(array).all():
        raise UserError(f"tensor '{spec.key}' is not finite in {dtype.name}: save it in a wider dtype")
    return np.ascontiguousarray(array)


def check_length(flag: str, length: int, model: LoadedModel) -> None:
    """Check that sequences of `length`, set by `flag`, fit into the model's context.

    Raises:
        UserError: they are longer than the model has positions.
    """
    limit = model.config.context
    if length > limit:
        raise UserError(f"{flag} is {length}, but {model.source} has only {limit} positions; lower it")
