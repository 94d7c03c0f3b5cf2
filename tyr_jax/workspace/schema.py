"""Checks of stored records when they are read: version, types, ranges, and consistency of their fields.

Stored records are input like any other: a disk, an editor or another program may have changed them. Whatever
is wrong is reported in one sentence that names the file and the field.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from tyr_jax.errors import UserError
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


def no_faults(value: Any) -> Iterator[Fault]:
    """No faults: for records whose types and ranges are all that can be checked."""
    yield from ()


class Format(NamedTuple):
    """The format of a record.

    It has the pydantic `schema` of its types and ranges, the `version` that can be read, what the user can do
    about a record that cannot be read (`mend`), and a function that finds the `faults` of a record that is
    valid by the schema.
    """

    schema: TypeAdapter[Any]
    version: int
    mend: str
    faults: Callable[[Any], Iterator[Fault]] = no_faults


@contextlib.contextmanager
def mended(form: Format) -> Iterator[None]:
    """A context that adds to the body's error what to do about a record that cannot be read.

    Raises:
        UserError: the body's, with `form.mend`.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {form.mend}") from None


def check_version(value: Any, form: Format, where: str) -> None:
    """Check that a record has the version that can be read.

    Raises:
        UserError: the version is earlier, later or missing; says what to do.
    """
    version = value.get(VERSION) if isinstance(value, dict) else None
    if type(version) is int and version > form.version:
        raise UserError(
            f"{where} has {VERSION} {_shown(version)}, written by a later tyr_jax; this one reads "
            f"{form.version}: update tyr_jax, or {form.mend}"
        )
    if version is None or (type(version) is int and version < form.version):
        has = f"no {VERSION}" if version is None else f"{VERSION} {_shown(version)}"
        raise UserError(
            f"{where} has {has}: an earlier tyr_jax or another program wrote it, and this one reads "
            f"{form.version}; {form.mend}"
        )
    if type(version) is not int:
        _refuse(Fault(VERSION, version, f"be {form.version}"), form, where)


def check(value: Any, form: Format, where: str) -> None:
    """Check that a record has the right format.

    Additional fields are allowed: a later version may have written them, and copies of the record keep them.

    Args:
        value: the record, as parsed from JSON.
        form: its format.
        where: where it is stored, for the message.

    Raises:
        UserError: it has another; names the field, its value and what is wanted, and says what to do.
    """
    fault = next(faults_of(value, form), None)
    if fault is not None:
        _refuse(fault, form, where)


def faults_of(value: Any, form: Format) -> Iterator[Fault]:
    """All faults of a record that the first failing check finds."""
    odd = list(_odd(value))
    yield from odd or _mismatches(value, form.schema) or form.faults(value)


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


def _mismatches(value: Any, schema: TypeAdapter[Any]) -> list[Fault]:
    """Where `value` does not match the schema."""
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        return [_fault(each) for each in error.errors(include_url=False, include_context=False)]
    return []


def _fault(error: Any) -> Fault:
    """The fault of a pydantic error, worded for this project's messages."""
    field = _field(error["loc"])
    if error["type"] == "missing":
        return Fault(field, None, "")
    message = re.sub(r" after validation, not \d+$", "", error["msg"].removeprefix("Value error, "))
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


def _refuse(fault: Fault, form: Format, where: str) -> NoReturn:
    field, value, wanted = fault
    if not wanted:
        raise UserError(f"{where} lacks {field}; {form.mend}")
    subject = f"{where}: {field} is" if field else f"{where} is"
    raise UserError(f"{subject} {_shown(value)}, but must {wanted}; {form.mend}")
