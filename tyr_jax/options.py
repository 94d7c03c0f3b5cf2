"""Settings by the names of their options: out of keyword arguments, into a command line, and as JSON.

Settings are dataclasses in dataclasses. An option is a field that is none itself, and its name is unique in
all of them, so that neither the command line nor Python need say which dataclass it is in.
"""

import dataclasses
import difflib
import math
import numbers
import os
import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from tyr_jax.components import Component, broken
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


MOST = 2**40
"""No whole number is beyond it: products of a few fit into 64 bits, so that checks of what they mean hold."""


class Option(NamedTuple):
    """Where a field is, by the names of the fields that lead to it, its type, and the component that it
    belongs to, if any."""

    path: tuple[str, ...]
    kind: Any
    owner: Component | None

    @property
    def name(self) -> str:
        """What the option is called."""
        return self.path[-1]

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return f"--{self.name.replace('_', '-')}"

    def of(self, settings: Any) -> Any:
        """Its value."""
        for name in self.path:
            settings = getattr(settings, name)
        return settings


def every_option(settings: Any, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """All options of settings, whatever they are called."""
    owner = settings if isinstance(settings, Component) else None
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, where = getattr(settings, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            yield from every_option(value, where)
        else:
            yield Option(where, hints[field.name], owner)


def options_of(settings: Any) -> dict[str, Option]:
    """All options of settings, by name."""
    return {option.name: option for option in every_option(settings)}


def check_sizes(settings: Any) -> None:
    """Refuse whole numbers that nothing can have as many of, before anything computes with them.

    Raises:
        UserError: names the option.
    """
    for option in every_option(settings):
        _check_size(option.flag, option.of(settings))


def _check_size(flag: str, value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        fits = not isinstance(number, int) or abs(number) <= MOST
        require(fits, flag, number, f"between -{MOST} and {MOST}")


def check_names(settings: Any) -> None:
    """Refuse a component of a user's own whose options are called as others are.

    Raises:
        UserError: names the component and the option.
    """
    options = list(every_option(settings))
    names = Counter(option.name for option in options)
    for option in options:
        if option.owner is not None and ":" in option.owner.name and names[option.name] > 1:
            said = f"has an option {option.flag}, which the command or another part has already: rename it"
            raise broken(option.owner, said)


def with_options(settings: S, values: Mapping[str, Any]) -> S:
    """The same settings, options of these names with other values.

    Raises:
        UserError: there is no option of that name, or its value is of another type; names what is.
    """
    for name, value in values.items():
        known = options_of(settings)
        if name not in known:
            (closest,) = difflib.get_close_matches(name, known, 1, cutoff=0)
            raise UserError(f"there is no option '{name}'; perhaps '{closest}' was meant")
        option, given = known[name], converted(name, known[name].kind, value)
        _check_size(name, given)
        settings = _replaced(settings, option.path, given)
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


def arguments_of(settings: Any, default: Any) -> list[str]:
    """The command-line arguments that make `settings` out of `default`."""
    arguments: list[str] = []
    for field in dataclasses.fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, Component) and value.name != usual.name:
            arguments += [f"--{value.role}", value.name, *arguments_of(value, type(value)())]
        elif dataclasses.is_dataclass(value):
            arguments += arguments_of(value, usual)
        elif value == usual:
            continue
        elif isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return arguments


def as_json(value: Any) -> Any:
    """`value` with dataclasses, tuples and paths turned into what JSON knows, and numbers that are not finite
    into None; a component says its name as well."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {value.role: value.name, **fields} if isinstance(value, Component) else fields
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
