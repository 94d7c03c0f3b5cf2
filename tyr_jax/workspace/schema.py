"""Checking what was stored and is read again: its version, its types and ranges, and what must fit together.

Stored records are input like any other: a disk, an editor or another program may have altered them. Whatever
is wrong with one is told in a sentence that names the file and the field.
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
"""The field of every record that says what it may hold."""

MOST = 100_000
"""Entries that a list or a mapping may have: what is shown of them has to fit a page."""

MOST_LAYERS = 4096
"""Layers that a model may have."""

DEEPEST = 50
"""Lists and mappings that may lie within each other."""

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
    """What is wrong: the `value` of a `field` is not what is `wanted`."""

    field: str
    value: Any
    wanted: str


def no_faults(value: Any) -> Iterator[Fault]:
    """Where types and ranges say all."""
    yield from ()


class Format(NamedTuple):
    """What a record is: the `schema` of its types and ranges, for pydantic; the `version` that is read; what
    to do about a record that cannot be (`mend`); and the `faults` of one that keeps to its schema."""

    schema: TypeAdapter[Any]
    version: int
    mend: str
    faults: Callable[[Any], Iterator[Fault]] = no_faults


@contextlib.contextmanager
def mended(form: Format) -> Iterator[None]:
    """A context in which what cannot be read at all is also told what to do about it.

    Raises:
        UserError: the body's, with that.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {form.mend}") from None


def check_version(value: Any, form: Format, where: str) -> None:
    """Refuse the version of a record that is not the one that is read.

    Raises:
        UserError: it is an earlier or a later one, or none; says what to do.
    """
    version = value.get(VERSION) if isinstance(value, dict) else None
    if type(version) is int and version > form.version:
        raise UserError(
            f"{where} has {VERSION} {_shown(version)}, of a later tyr_jax than this one, which reads "
            f"{form.version}: update tyr_jax, or {form.mend}"
        )
    if version is None or (type(version) is int and version < form.version):
        has = f"no {VERSION}" if version is None else f"{VERSION} {_shown(version)}"
        raise UserError(
            f"{where} has {has}: it is of an earlier tyr_jax than this one, which reads {form.version}, or "
            f"of another program; {form.mend}"
        )
    if type(version) is not int:
        _refuse(Fault(VERSION, version, f"be {form.version}"), form, where)


def check(value: Any, form: Format, where: str) -> None:
    """Refuse a record that is not what it must be. What it has beside that is left alone: a later program may
    have written it, and whoever copies the record keeps it.

    Args:
        value: what JSON gave.
        form: what it must be.
        where: where it stands, for the sentence.

    Raises:
        UserError: names the field, its value and what is wanted, and says what to do.
    """
    fault = next(faults_of(value, form), None)
    if fault is not None:
        _refuse(fault, form, where)


def faults_of(value: Any, form: Format) -> Iterator[Fault]:
    """All that is wrong with a record."""
    odd = list(_odd(value))
    yield from odd or _mismatches(value, form.schema) or form.faults(value)


def _odd(value: Any) -> Iterator[Fault]:
    """Numbers that are not finite, and what is nested too deeply, wherever they are."""
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
    """What is not as the schema has it."""
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        return [_fault(each) for each in error.errors(include_url=False, include_context=False)]
    return []


def _fault(error: Any) -> Fault:
    """What pydantic found, in this project's words."""
    field = _field(error["loc"])
    if error["type"] == "missing":
        return Fault(field, None, "")
    message = re.sub(r" after validation, not \d+$", "", error["msg"].removeprefix("Value error, "))
    return Fault(field, error["input"], re.sub(r"^\w+ should ", "", message))


def _field(path: tuple[str | int, ...]) -> str:
    """A field as one would write it: `rounds[2].kept.ffn[4]`, `quality["a text.txt"].kl`."""
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
