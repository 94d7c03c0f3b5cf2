"""Matrices that some families store as one, concatenated along the output axis: q, k and v, or gate and up.

Everywhere else they are separate tensors, under the keys that other families give them.
"""

import itertools
from collections.abc import Iterable

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.io.experts import expert_keys, is_packed, packed_key
from tyr_jax.io.source import TensorSource
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import TensorSpec, all_specs

FUSED = {"q": "qkv_proj", "k": "qkv_proj", "v": "qkv_proj", "gate": "gate_up_proj", "up": "gate_up_proj"}
"""The module that holds a tensor, if a family has that module."""


def stored_key(spec: TensorSpec, config: ModelConfig) -> str:
    """The key under which a checkpoint has a tensor, alone or with others, or has its first expert."""
    if is_packed(spec, config):
        return packed_key(spec)
    if keys := expert_keys(spec):
        return keys[0]
    if FUSED.get(spec.name) not in config.fused:
        return spec.key
    *parents, _, kind = spec.key.split(".")
    return ".".join([*parents, FUSED[spec.name], kind])


def stored_together(config: ModelConfig) -> list[tuple[str, list[TensorSpec]]]:
    """(key, specs) of every matrix of a checkpoint, in checkpoint order."""
    groups = itertools.groupby(all_specs(config), key=lambda spec: stored_key(spec, config))
    return [(key, list(specs)) for key, specs in groups]


def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """One matrix of a checkpoint from its parts, each in the checkpoint's layout."""
    first, *others = arrays
    return np.concatenate([first, *others]) if others else first


class SplitSource:
    """The tensors of a checkpoint with fused matrices, each under a key of its own.

    Raises:
        UserError: a tensor is there both by itself and in a fused matrix; names it.
    """

    def __init__(self, source: TensorSource, config: ModelConfig) -> None:
        self._source = source
        self._parts: dict[str, tuple[str, int, int, int]] = {}
        for key, specs in stored_together(config):
            ends = list(itertools.accumulate(spec.checkpoint_shape[0] for spec in specs))
            for spec, start, stop in zip(specs, [0, *ends], ends, strict=False):
                self._parts[spec.key] = key, start, stop, ends[-1]
        twice = sorted(name for name in source.keys() & self._parts.keys() if self._parts[name][0] != name)
        if twice:
            raise UserError(
                f"the checkpoint has tensor '{twice[0]}' by itself, but in a {config.family} model it is "
                f"part of '{self._parts[twice[0]][0]}': check model_type, or download the model again"
            )

    def keys(self) -> set[str]:
        """Names of all tensors. A fused matrix that the configuration does not have keeps its own."""
        stored = self._source.keys()
        split = {name for name, (key, *_) in self._parts.items() if key in stored}
        return split | (stored - {key for key, *_ in self._parts.values()})

    def dtype(self, key: str) -> np.dtype:
        """The type in which tensor `key` is stored."""
        return self._source.dtype(self._parts[key][0] if key in self._parts else key)

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`.

        Raises:
            UserError: it cannot be read, or is part of a matrix that does not have the rows of its parts.
        """
        if key not in self._parts:
            return self._source.read(key)
        stored, start, stop, rows = self._parts[key]
        array = self._source.read(stored)
        if array.ndim and len(array) != rows:
            raise UserError(
                f"tensor '{stored}' has shape {list(array.shape)}, where the config says {rows} rows: config "
                "contradicts the weights"
            )
        return array[start:stop] if array.ndim else array
