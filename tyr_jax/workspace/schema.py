"""What all stored records have in common, and their checks when they are read: version, types, ranges, and
consistency of their fields.

Stored records are input like any other: a disk, an editor or another program may have changed them. Whatever
is wrong is reported in one sentence that names the file and the field.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, NoReturn, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)

from tyr_jax.errors import UserError
from tyr_jax.files import read_json, write_json
from tyr_jax.formatting import printable

T = TypeVar("T")

VERSION = "format_version"
"""The field of every record that has its format version."""

MOST = 100_000
"""Maximum number of entries of a list or mapping. Reports must still fit on a page."""

MOST_LAYERS = 4096
"""Maximum number of layers of a model."""

DEEPEST = 50
"""The deepest nesting of lists and mappings."""

Count = Annotated[int, Field(ge=0, le=2**60)]
Positive = Annotated[int, Field(ge=1, le=2**60)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
Many = Annotated[list[T], Field(max_length=MOST)]
Some = Annotated[list[T], Field(min_length=1, max_length=MOST)]
Named = Annotated[dict[str, T], Field(max_length=MOST)]
SomeNamed = Annotated[dict[str, T], Field(min_length=1, max_length=MOST)]
Layers = Annotated[list[Count], Field(min_length=1, max_length=MOST_LAYERS)]


class Fault(NamedTuple):
    """An error in a record: the `value` of a `field` is not what is `wanted` (empty: it is missing)."""

    field: str
    value: Any
    wanted: str


class Record(BaseModel):
    """A record, or a part of one, with attributes for its fields.

    Additional fields are allowed and kept: a user's own components have their own options, and a later
    version may have written more.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    version: ClassVar[int] = 1
    """The format version that is written, and that can be read."""
    file: ClassVar[str] = ""
    """The name of its file in a model's directory, if it has one there."""
    mend: ClassVar[str] = "start over with --restart"
    """What the user can do about a record that cannot be read."""

    _names: tuple[str, ...] = PrivateAttr(default=())

    def faults(self) -> Iterator[Fault]:
        """Contradictions between fields that are valid in themselves."""
        yield from ()

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values: the fields that it was made with, in their order."""
        return self.model_dump()

    @model_validator(mode="wrap")
    @classmethod
    def _note_names(cls, value: Any, handler: Any) -> Self:
        made: Self = handler(value)
        if isinstance(value, dict):
            made._names = tuple(value)
        return made

    @model_serializer(mode="wrap")
    def _by_names(self, handler: Any) -> dict[str, Any]:
        values = handler(self)
        return {name: values[name] for name in self._names}


AnyRecord = TypeVar("AnyRecord", bound=Record)


@contextlib.contextmanager
def mended(kind: type[Record]) -> Iterator[None]:
    """A context that adds to the body's error what to do about a record that cannot be read.

    Raises:
        UserError: the body's, with `kind.mend`.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {kind.mend}") from None


def check_version(value: Any, kind: type[Record], where: str) -> None:
    """Check that a record has the version that can be read.

    Raises:
        UserError: the version is earlier, later or missing; says what to do.
    """
    version = value.get(VERSION) if isinstance(value, dict) else None
    if type(version) is int and version > kind.version:
        raise UserError(
            f"{where} has {VERSION} {_shown(version)}, written by a later tyr_jax; this one reads "
            f"{kind.version}: update tyr_jax, or {kind.mend}"
        )
    if version is None or (type(version) is int and version < kind.version):
        has = f"no {VERSION}" if version is None else f"{VERSION} {_shown(version)}"
        raise UserError(
            f"{where} has {has}: an earlier tyr_jax or another program wrote it, and this one reads "
            f"{kind.version}; {kind.mend}"
        )
    if type(version) is not int:
        _refuse(Fault(VERSION, version, f"be {kind.version}"), kind, where)


def parse(kind: type[AnyRecord], value: Any, where: str) -> AnyRecord:
    """The record of a `kind` that has this value.

    Args:
        kind: its class.
        value: what was parsed from JSON.
        where: where it is stored, for the message.

    Raises:
        UserError: it is not of that kind; names the field, its value and what is wanted, and says what to do.
    """
    for fault in _odd(value):
        _refuse(fault, kind, where)
    try:
        record = kind.model_validate(value)
    except ValidationError as error:
        _refuse(_fault(error.errors(include_url=False, include_context=False)[0]), kind, where)
    for fault in record.faults():
        _refuse(fault, kind, where)
    return record


def read(kind: type[AnyRecord], path: str | Path) -> AnyRecord | None:
    """The record of a kind in a file, or in a model's directory; None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    path = Path(path, kind.file)
    # A broken link, for example, does exist, and reading it should raise an error.
    if not os.path.lexists(path):
        return None
    with mended(kind):
        value = read_json(path)
    check_version(value, kind, str(path))
    return parse(kind, {name: field for name, field in value.items() if name != VERSION}, str(path))


def write(path: Path, record: Record) -> None:
    """Write a record to a file, or to a model's directory."""
    write_json(path / record.file, versioned(record))


def versioned(record: Record) -> dict[str, Any]:
    """The contents of a record's file: the record as JSON values, with its format version first."""
    return {VERSION: record.version} | record.as_json()


def _odd(value: Any) -> Iterator[Fault]:
    """Numbers that are not finite, and values that are nested too deeply, anywhere in `value`."""
    left: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    while left:
        inner, path = left.pop()
        if isinstance(inner, float) and not math.isfinite(inner):
            yield Fault(_field(path), inner, "be a finite number")
        elif isinstance(inner, (dict, list)) and len(path) >= DEEPEST:
            yield Fault(_field(path), inner, f"be no deeper than {DEEPEST} levels")
        elif isinstance(inner, (dict, list)):
            pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
            left += ((each, (*path, key)) for key, each in pairs if isinstance(each, (float, dict, list)))


def _fault(error: Any) -> Fault:
    """The fault of a pydantic error, worded for this project's messages."""
    field = _field(error["loc"])
    if error["type"] == "missing":
        return Fault(field, None, "")
    message = re.sub(r" after validation, not \d+$| or instance of \w+$", "", error["msg"])
    return Fault(field, error["input"], re.sub(r"^\w+ should ", "", message))


def _field(path: tuple[str | int, ...]) -> str:
    """The path of a field in readable form: `rounds[2].kept.ffn[4]`, `quality["a text.txt"].kl`."""
    parts = (
        f".{key}" if str(key).isidentifier() and len(str(key)) <= 60 else f"[{_shown(key)}]" for key in path
    )
    return "".join(parts).removeprefix(".")


def _shown(value: Any) -> str:
    """A value on one short line."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f"{text[:60]}…"


def _refuse(fault: Fault, kind: type[Record], where: str) -> NoReturn:
    field, value, wanted = fault
    if not wanted:
        raise UserError(f"{where} lacks {field}; {kind.mend}")
    subject = f"{where}: {field} is" if field else f"{where} is"
    raise UserError(f"{subject} {_shown(value)}, but must {wanted}; {kind.mend}")
