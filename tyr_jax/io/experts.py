"""Experts in checkpoints, where we have one tensor for all experts of a layer: a matrix for each expert, or
one for all of them in another layout.

Axis letters: `X` experts, `D` hidden, `F` width of an expert.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.io.source import TensorSource
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import TensorSpec, all_specs


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


PACKED = {
    "gate": "gate_up_proj",
    "up": "gate_up_proj",
    "down": "down_proj",
    "gate_bias": "gate_up_proj_bias",
    "up_bias": "gate_up_proj_bias",
    "down_bias": "down_proj_bias",
}
"""The packed array that has a tensor. In `gate_up_proj [X, D, 2F]`, gate and up take turns."""

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the keys of a quantised array's two parts."""

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The values of four bits: a sign, two of exponent and one of mantissa."""


def packed_key(spec: TensorSpec) -> str:
    """The key of the packed array that has a tensor of experts, or of its blocks if it is quantised."""
    layer, _, _ = spec.key.partition(".mlp.")
    return f"{layer}.mlp.experts.{PACKED[spec.name]}"


def is_packed(spec: TensorSpec, config: ModelConfig) -> bool:
    """Whether a checkpoint packs a tensor."""
    return config.packed and "X" in spec.axes and spec.name in PACKED


def pack(specs: list[TensorSpec], arrays: list[np.ndarray]) -> np.ndarray:
    """A packed array `[X, ...]` from its tensors in the checkpoint's usual layout."""
    parts = [_by_expert(spec, array) for spec, array in zip(specs, arrays, strict=True)]
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)


def _by_expert(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """`[X, D, F]`, `[X, F, D]`, `[X, F]` or `[X, D]`, from the checkpoint's usual layout of a tensor."""
    ours = array.T.reshape(spec.shape) if spec.inputs else array.reshape(spec.shape)
    return np.ascontiguousarray(np.moveaxis(ours, spec.axes.index("X"), 0))


def unpack(spec: TensorSpec, packed: np.ndarray) -> np.ndarray:
    """A tensor in the checkpoint's usual layout, from the packed array `[X, ...]` that has it."""
    paired = PACKED[spec.name].startswith("gate_up")
    part = packed[..., 0 if spec.name.startswith("gate") else 1 :: 2] if paired else packed
    ours = np.moveaxis(part, 0, spec.axes.index("X"))
    shape = tuple(ours.shape[: len(spec.inputs)])
    rows = ours.reshape(int(np.prod(shape)), -1) if spec.inputs else ours.reshape(-1)
    return np.ascontiguousarray(rows.T)


def dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers `[X, O, I]`, in bfloat16, of MXFP4 `blocks [X, O, I/32, 16]` of two numbers a byte, the
    lower four bits first, and the exponents `scales [X, O, I/32]` of blocks, with a bias of 127 (Open
    Compute Project, Microscaling Formats 1.0)."""
    pairs = np.stack([FP4[blocks & 15], FP4[blocks >> 4]], axis=-1)
    numbers = np.ldexp(pairs.reshape(*blocks.shape[:-1], -1), scales.astype(np.int32)[..., None] - 127)
    return numbers.reshape(*blocks.shape[:2], -1).astype(ml_dtypes.bfloat16)


class PackedSource:
    """The tensors of a checkpoint with packed experts, each under a key of its own."""

    def __init__(self, source: TensorSource, config: ModelConfig) -> None:
        self._source = source
        self._specs = {spec.key: spec for spec in all_specs(config) if is_packed(spec, config)}

    def _stored(self, key: str) -> list[str]:
        """The keys in which the checkpoint has what `packed_key` calls `key`: one, or blocks and scales."""
        stored = self._source.keys()
        quantised = [key + BLOCKS, key + SCALES]
        return [key] if key in stored else quantised if stored.issuperset(quantised) else []

    def keys(self) -> set[str]:
        """Names of all tensors."""
        used = {packed_key(spec) for spec in self._specs.values()}
        there = {key for key, spec in self._specs.items() if self._stored(packed_key(spec))}
        return there | (self._source.keys() - {stored for key in used for stored in self._stored(key)})

    def dtype(self, key: str) -> np.dtype:
        """The type in which tensor `key` is stored; bfloat16 if it is quantised."""
        if key not in self._specs:
            return self._source.dtype(key)
        first, *others = self._stored(packed_key(self._specs[key]))
        return np.dtype(ml_dtypes.bfloat16) if others else self._source.dtype(first)

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`.

        Raises:
            UserError: it cannot be read, or does not have the shape that the configuration gives it.
        """
        if key not in self._specs:
            return self._source.read(key)
        spec = self._specs[key]
        packed = packed_key(spec)
        arrays = [self._source.read(stored) for stored in self._stored(packed)]
        if len(arrays) == 2:
            array = _dequantise(packed, *arrays)
        else:
            (array,) = arrays
        wanted = _packed_shape(spec)
        if array.shape != wanted:
            raise UserError(
                f"tensor '{packed}' has shape {list(array.shape)}, where the config says {list(wanted)}: "
                "config contradicts the weights"
            )
        return unpack(spec, array)


def _packed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of the packed array that has a tensor."""
    first, *rest = [
        spec.shape[spec.axes.index("X")],
        *(size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis != "X"),
    ]
    return (first, *rest[:-1], rest[-1] * (2 if PACKED[spec.name].startswith("gate_up") else 1))


def _dequantise(key: str, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The packed array `key`, from its quantised blocks, whose rows are its columns.

    Raises:
        UserError: blocks and scales do not belong together; names the array.
    """
    if blocks.ndim != 4 or blocks.shape[:-1] != scales.shape or blocks.dtype != np.uint8:
        raise UserError(
            f"tensor '{key + BLOCKS}' of shape {list(blocks.shape)} does not fit '{key + SCALES}' of shape "
            f"{list(scales.shape)}"
        )
    return np.ascontiguousarray(dequantised(blocks, scales).swapaxes(1, 2))


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
