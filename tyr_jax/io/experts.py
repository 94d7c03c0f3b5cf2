"""Experts in checkpoints: a matrix for each, where we have one tensor for all experts of a layer."""

from collections.abc import Iterator

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.io.source import TensorSource
from tyr_jax.model.spec import ModelConfig, TensorSpec, all_specs


def expert_keys(spec: TensorSpec) -> list[str]:
    """The keys of every expert's part of a tensor; none if the tensor is not one of experts."""
    if "XF" not in spec.axes:
        return []
    experts = spec.shape[spec.axes.index("X")]
    return [spec.key.replace(".experts.", f".experts.{expert}.") for expert in range(experts)]


def _expert_axis(spec: TensorSpec) -> int:
    """The axis of a checkpoint's matrices along which the experts of a tensor follow one another."""
    return 0 if "X" in spec.outputs else 1


def by_key(spec: TensorSpec, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(key, matrix) of every expert, from a tensor in the checkpoint's layout."""
    keys = expert_keys(spec)
    parts = np.split(array, len(keys), axis=_expert_axis(spec))
    yield from zip(keys, map(np.ascontiguousarray, parts), strict=True)


class ExpertSource:
    """The tensors of a checkpoint with experts, where those of all experts of a layer are one.

    Raises:
        UserError: the tensor of an expert is missing, but not those of all; names it.
    """

    def __init__(self, source: TensorSource, config: ModelConfig) -> None:
        self._source = source
        specs = [spec for spec in all_specs(config) if expert_keys(spec)]
        self._axes = {spec.key: _expert_axis(spec) for spec in specs}
        self._parts = {spec.key: expert_keys(spec) for spec in specs}
        stored = source.keys()
        for parts in self._parts.values():
            absent = [key for key in parts if key not in stored]
            if 0 < len(absent) < len(parts):
                raise UserError(
                    f"tensor '{absent[0]}' is missing from the checkpoint, which has those of "
                    f"{len(parts) - len(absent)} other experts"
                )

    def keys(self) -> set[str]:
        """Names of all tensors."""
        stored = self._source.keys()
        whole = {key for key, parts in self._parts.items() if parts[0] in stored}
        return whole | (stored - {part for parts in self._parts.values() for part in parts})

    def dtype(self, key: str) -> np.dtype:
        """The type in which tensor `key` is stored, that of the first expert."""
        return self._source.dtype(self._parts[key][0] if key in self._parts else key)

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`.

        Raises:
            UserError: it cannot be read, or the matrices of two experts differ in shape.
        """
        if key not in self._parts:
            return self._source.read(key)
        arrays = [self._source.read(part) for part in self._parts[key]]
        for name, array in zip(self._parts[key], arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise UserError(
                    f"tensor '{name}' has shape {list(array.shape)}, while that of expert 0 has "
                    f"{list(arrays[0].shape)}: all experts of a layer must have the same"
                )
        return np.concatenate(arrays, axis=self._axes[key]) if arrays[0].ndim == 2 else arrays[0]
