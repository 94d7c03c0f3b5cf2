"""Reading a GGUF file's header: its metadata, and where its tensors are.

The reader of the `gguf` package trusts every count, so that sixty bytes that announce 2**40 values keep it
busy for days, and takes a kilobyte for each word of a vocabulary. Here every count and length is checked
against the size of the file, and tensors must neither overlap nor begin between places.
"""

import itertools
import math
import mmap
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tyr_jax.errors import UserError, first_line
from tyr_jax.files import check_regular

FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "B",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
"""The `struct` format letter of each value type of fixed size."""

VERSIONS = (2, 3)
MAX_KEYS = 2**14
MAX_TENSORS = 2**18
MAX_VALUES = 2**21
"""Maximum number of values in all arrays together. The largest vocabularies have half as many."""

MAX_DIMENSIONS = 4
MAX_STRING = 2**24
"""The longest string, in bytes. A chat template has a few thousand."""


PLAIN: dict[GGMLQuantizationType, str] = {
    GGMLQuantizationType.F16: "f2",
    GGMLQuantizationType.F32: "f4",
    GGMLQuantizationType.F64: "f8",
    GGMLQuantizationType.I8: "i1",
    GGMLQuantizationType.I16: "i2",
    GGMLQuantizationType.I32: "i4",
    GGMLQuantizationType.I64: "i8",
}
"""NumPy's names of the types of tensors that are not quantised. All others are bytes."""


class Tensor(NamedTuple):
    """A tensor in the header: its shape, innermost axis first, its type, and the offset of its data."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size


class GgufFile(NamedTuple):
    """A file whose header was read: the values of its metadata, its tensors, and its bytes as mapped into
    memory. Numbers of several bytes are in the `order` of `struct`; the tensors' data begins at `start`."""

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data: np.ndarray
    order: Literal["<", ">"]
    start: int

    def read(self, tensor: Tensor) -> np.ndarray:
        """A tensor's numbers, outermost axis first; if it is quantised, the bytes of its blocks."""
        place = self.start + tensor.offset
        whole = self.data[place : place + tensor.nbytes]
        *outer, inner = tensor.shape[::-1] or (1,)
        kind = PLAIN.get(tensor.kind)
        if kind is not None:
            return whole.view(np.dtype(kind).newbyteorder(self.order)).reshape(*outer, inner)
        block, size = GGML_QUANT_SIZES[tensor.kind]
        return whole.reshape(*outer, inner // block * size)


class Cursor:
    """A position in a file, from which values are read one after the other.

    Raises:
        ValueError: the file ends before a value does.
    """

    def __init__(self, data: mmap.mmap, order: Literal["<", ">"]) -> None:
        self._data, self.place, self.values = data, 4, 0
        self.order: Literal["<", ">"] = order

    def number(self, form: str) -> Any:
        """The next number, of `struct` format letter `form`."""
        (value,) = struct.unpack(self.order + form, self.take(struct.calcsize(form)))
        return value

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.place
        self.skip(count)
        return self._data[start : self.place]

    def skip(self, count: int) -> None:
        """Skip `count` bytes."""
        if count > len(self._data) - self.place:
            raise ValueError(f"it ends within what begins at byte {self.place}")
        self.place += count

    def text(self) -> str:
        """The next string."""
        return self.take(self.length()).decode("utf-8")

    def length(self) -> int:
        """The length of the string that follows."""
        count: int = self.number("Q")
        if count > MAX_STRING:
            raise ValueError(f"a string at byte {self.place} has {count} bytes")
        return count


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file and read its header.

    Raises:
        UserError: it is not a GGUF file, it announces more than it holds or than any model needs, or its
            tensors overlap; names the file and what is wrong.
    """
    check_regular(path, "model")
    try:
        if path.stat().st_size < 4:
            raise ValueError("it is too short")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, np.memmap(path, mode="r").view(np.ndarray))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a GGUF file, or is truncated or corrupt ({first_line(error)}): download it again"
        ) from error


def _read(data: mmap.mmap, mapped: np.ndarray) -> GgufFile:
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor = Cursor(data, "<")
    version = cursor.number("I")
    if version not in VERSIONS:
        # The file may be big-endian.
        cursor = Cursor(data, ">")
        version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError("its version is neither 2 nor 3")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise ValueError(f"it announces {tensors} tensors and {keys} keys")
    values, alignment = _metadata(cursor, keys)
    infos = tuple(_tensor(cursor) for _ in range(tensors))
    start = cursor.place + -cursor.place % alignment
    _check_places(infos, alignment, len(data) - start)
    return GgufFile(values, infos, mapped, cursor.order, start)


def _check_places(tensors: tuple[Tensor, ...], alignment: int, size: int) -> None:
    """Check that tensors begin at multiples of the alignment, do not overlap, and end within `size` bytes.

    Raises:
        ValueError: one does not; names it.
    """
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            raise ValueError(f"tensor '{tensor.name}' ends beyond the end of the file")
        if tensor.offset % alignment:
            raise ValueError(f"tensor '{tensor.name}' begins at {tensor.offset}, no multiple of {alignment}")
    for one, other in itertools.pairwise(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))):
        if one.offset + one.nbytes > other.offset:
            raise ValueError(f"tensors '{one.name}' and '{other.name}' overlap")


def _metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], int]:
    """(`count` keys with their values, the alignment of the tensors' data)."""
    values: dict[str, Any] = {}
    alignment = 32
    for _ in range(count):
        key, kind = cursor.text(), GGUFValueType(cursor.number("I"))
        if key in values:
            raise ValueError(f"it has metadata key '{key}' twice")
        try:
            values[key] = _value(cursor, kind)
        except ValueError as error:
            raise ValueError(f"metadata key '{key}': {error}") from error
        if key == "general.alignment":
            alignment = values[key]
            if kind != GGUFValueType.UINT32 or not alignment or alignment & (alignment - 1):
                raise ValueError(f"metadata key '{key}' is {alignment}, which is not a power of two")
    return values, alignment


def _value(cursor: Cursor, kind: GGUFValueType) -> Any:
    """The next value; a list if it is an array."""
    if kind == GGUFValueType.STRING:
        return cursor.text()
    if kind != GGUFValueType.ARRAY:
        value = cursor.number(FORMATS[kind])
        return bool(value) if kind == GGUFValueType.BOOL else value
    kind, count = GGUFValueType(cursor.number("I")), cursor.number("Q")
    cursor.values += count
    if cursor.values > MAX_VALUES:
        raise ValueError(f"it would have {count} values, which is more than any model needs")
    if kind == GGUFValueType.ARRAY:
        # llama.cpp does not read these either.
        raise ValueError("it is an array of arrays")
    if kind == GGUFValueType.STRING:
        return [cursor.text() for _ in range(count)]
    form = FORMATS[kind]
    array = np.frombuffer(cursor.take(count * struct.calcsize(form)), np.dtype(cursor.order + form))
    return (array.astype(bool) if kind == GGUFValueType.BOOL else array).tolist()


def _tensor(cursor: Cursor) -> Tensor:
    name, rank = cursor.text(), cursor.number("I")
    if rank > MAX_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has {rank} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(rank))
    return Tensor(name, shape, GGMLQuantizationType(cursor.number("I")), cursor.number("Q"))
