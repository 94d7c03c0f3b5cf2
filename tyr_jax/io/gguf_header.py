"""Checks of a GGUF file's header, before the `gguf` package reads it.

That package trusts every count: sixty bytes that announce 2**40 values keep it busy for days. Here every
count and length is checked against the size of the file, and against limits on memory.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

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
"""Maximum number of values in all arrays together. The `gguf` package uses a kilobyte for each; the largest
vocabularies have half as many."""

MAX_DIMENSIONS = 4
MAX_STRING = 2**24
"""The longest string, in bytes. A chat template has a few thousand."""


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
        count = 1
        for extent in self.shape:
            count *= extent
        return count // block * size


class Cursor:
    """A position in a file, from which values are read one after the other.

    Raises:
        ValueError: the file ends before a value does.
    """

    def __init__(self, data: mmap.mmap, order: str) -> None:
        self._data, self.order, self.place, self.values = data, order, 4, 0

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


def check_header(path: Path) -> None:
    """Check that a GGUF file's header announces no more than the file holds, or than any model needs.

    Raises:
        UserError: it does, or the file is not a GGUF file; names the file and what is wrong.
    """
    check_regular(path, "model")
    try:
        if path.stat().st_size < 4:
            raise ValueError("it is too short")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a GGUF file, or is truncated or corrupt ({first_line(error)}): download it again"
        ) from error


def _check(data: mmap.mmap) -> None:
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
    alignment = _check_metadata(cursor, keys)
    infos = [_tensor(cursor) for _ in range(tensors)]
    start = cursor.place + -cursor.place % alignment
    for tensor in infos:
        if start + tensor.offset + tensor.nbytes > len(data):
            raise ValueError(f"tensor '{tensor.name}' ends beyond the end of the file")


def _check_metadata(cursor: Cursor, count: int) -> int:
    """Read past `count` keys and their values, and return the alignment of the tensor data."""
    alignment = 32
    for _ in range(count):
        key, kind = cursor.text(), GGUFValueType(cursor.number("I"))
        try:
            value = _value(cursor, kind)
        except ValueError as error:
            raise ValueError(f"metadata key '{key}': {error}") from error
        if key == "general.alignment":
            if kind != GGUFValueType.UINT32 or not value or value & (value - 1):
                raise ValueError(f"metadata key '{key}' is {value}, which is not a power of two")
            alignment = value
    return alignment


def _value(cursor: Cursor, kind: GGUFValueType) -> Any:
    """Read past a value, and return it unless it is an array."""
    if kind == GGUFValueType.STRING:
        return cursor.text()
    if kind != GGUFValueType.ARRAY:
        return cursor.number(FORMATS[kind])
    kind, count = GGUFValueType(cursor.number("I")), cursor.number("Q")
    cursor.values += count
    if cursor.values > MAX_VALUES:
        raise ValueError(f"it would have {count} values, which is more than any model needs")
    if kind == GGUFValueType.ARRAY:
        # llama.cpp does not read these either.
        raise ValueError("it is an array of arrays")
    if kind == GGUFValueType.STRING:
        for _ in range(count):
            cursor.text()
    else:
        cursor.skip(count * struct.calcsize(FORMATS[kind]))
    return None


def _tensor(cursor: Cursor) -> Tensor:
    name, rank = cursor.text(), cursor.number("I")
    if rank > MAX_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has {rank} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(rank))
    return Tensor(name, shape, GGMLQuantizationType(cursor.number("I")), cursor.number("Q"))
