"""Settings by the names of their options: out of keyword arguments, and into a command line.

Settings are dataclasses in dataclasses. An option is a field that is none itself, and its name is unique in
all of them, so that neither the command line nor Python need say which dataclass it is in.
"""

import dataclasses
import difflib
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from tyr_jax.errors import UserError, require

S = TypeVar("S")

KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str | os.PathLike, "a text"),
    Path: (str | os.PathLike, "a path"),
}
"""What an option of each type may be given as, and what that is called."""


class Option(NamedTuple):
    """Where a field is, by the names of the fields that lead to it, and its type."""

    path: tuple[str, ...]
    kind: Any

    def of(self, settings: Any) -> Any:
        """Its value."""
        for name in self.path:
            settings = getattr(settings, name)
        return settings


def options_of(kind: type) -> dict[str, Option]:
    """All options of a dataclass of settings, by name."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = options_of(typing.cast(type, hint))
            found |= {name: Option((field.name, *each.path), each.kind) for name, each in inner.items()}
        else:
            found[field.name] = Option((field.name,), hint)
    return found


def with_options(settings: S, values: Mapping[str, Any]) -> S:
    """The same settings, options of these names with other values.

    Raises:
        UserError: there is no option of that name, or its value is of another type; names what is.
    """
    known = options_of(type(settings))
    for name, value in values.items():
        if name not in known:
            (closest,) = difflib.get_close_matches(name, known, 1, cutoff=0)
            raise UserError(f"there is no option '{name}'; perhaps '{closest}' was meant")
        option = known[name]
        settings = _replaced(settings, option.path, converted(name, option.kind, value))
    return settings


def _replaced(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    inner = _replaced(getattr(settings, name), tuple(rest), value) if rest else value
    return dataclasses.replace(settings, **{name: inner})


def converted(name: str, kind: Any, value: Any) -> Any:
    """The `value` of the option `name` as its type `kind` has it: of several, a single one will do.

    Raises:
        UserError: it is of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        return tuple(converted(name, arguments[0], each) for each in several)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not types.NoneType)
        return None if value is None else converted(name, inner, value)
    if origin is Literal:
        require(value in arguments, name, repr(value), f"one of {', '.join(map(repr, arguments))}")
        return value
    accepted, wanted = KINDS[kind]
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    require(fits, name, repr(value), wanted)
    return kind(value)


def arguments_of(settings: S, default: S) -> list[str]:
    """The command-line arguments that make `settings` out of `default`."""
    arguments: list[str] = []
    for name, option in options_of(type(settings)).items():
        value, flag = option.of(settings), name.replace("_", "-")
        if value == option.of(default):
            continue
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return arguments
