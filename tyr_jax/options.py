"""Settings by option name: set from keyword arguments, and written as a command line or as JSON.

Settings are nested dataclasses. An option is a field that is not itself a dataclass. Option names are unique
across all of them, so neither the command line nor Python has to say which dataclass an option is in. Of
several components in a row, such as searches, the options of all but the last carry the component's name:
`descent.generations`.
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

ARGUMENTS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str | os.PathLike, "a string"),
    Path: (str | os.PathLike, "a path"),
}
"""By the type of an option: the types that it may be given as, and what a message calls them."""


MOST = 2**40
"""The largest absolute value of a whole number: above any real use, and small enough to compute with."""


class Option(NamedTuple):
    """An option: its name in Python, the `path` of field names and positions that lead to it, its type, and
    the component that owns it, if any."""

    name: str
    path: tuple[str | int, ...]
    kind: Any
    owner: Component | None

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return flag_of(self.name)

    def of(self, settings: Any) -> Any:
        """The value of the option in `settings`."""
        for name in self.path:
            settings = _part(settings, name)
        return settings


def flag_of(name: str) -> str:
    """The flag of the option `name` on the command line."""
    return f"--{name.replace('_', '-')}"


def _part(settings: Any, name: str | int) -> Any:
    """What `settings` have in the field `name`, or a tuple at this position."""
    return settings[name] if isinstance(name, int) else getattr(settings, name)


def in_a_row(value: Any) -> list[tuple[str, Component]]:
    """Components in a tuple, each with what its options' names begin with; none of any other value."""
    chain = value if isinstance(value, tuple) and all(isinstance(each, Component) for each in value) else ()
    return [*((f"{each.label}.", each) for each in chain[:-1]), *(("", each) for each in chain[-1:])]


def every_option(settings: Any, path: tuple[str | int, ...] = (), prefix: str = "") -> Iterator[Option]:
    """All options of `settings`, even those that share a name."""
    owner = settings if isinstance(settings, Component) else None
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, where = getattr(settings, field.name), (*path, field.name)
        if chain := in_a_row(value):
            for position, (begin, each) in enumerate(chain):
                yield from every_option(each, (*where, position), begin)
        elif dataclasses.is_dataclass(value):
            yield from every_option(value, where)
        else:
            yield Option(prefix + field.name, where, hints[field.name], owner)


def options_of(settings: Any) -> dict[str, Option]:
    """All options of `settings`, by name."""
    return {option.name: option for option in every_option(settings)}


def check_sizes(settings: Any) -> None:
    """Check that whole numbers are at most `MOST` (in absolute value), before anything computes with them.

    Raises:
        UserError: one is larger; names the option.
    """
    for option in every_option(settings):
        _check_size(option.flag, option.of(settings))


def _check_size(flag: str, value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        fits = not isinstance(number, int) or abs(number) <= MOST
        require(fits, flag, number, f"between -{MOST} and {MOST}")


def check_names(settings: Any) -> None:
    """Check that no option of a user's own component has the name of another option.

    Raises:
        UserError: one has; names the component and the option.
    """
    options = list(every_option(settings))
    names = Counter(option.name for option in options)
    for option in options:
        if option.owner is not None and ":" in option.owner.name and names[option.name] > 1:
            said = f"has an option {option.flag}, which the command or another part has already: rename it"
            raise broken(option.owner, said)


def with_options(settings: S, values: Mapping[str, Any]) -> S:
    """The same settings with new values for the named options.

    Raises:
        UserError: there is no option of that name (suggests the closest one), or a value is of the wrong type
            or too large.
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


def _replaced(settings: Any, path: tuple[str | int, ...], value: Any) -> Any:
    name, *rest = path
    inner = _replaced(_part(settings, name), tuple(rest), value) if rest else value
    if isinstance(name, int):
        return (*settings[:name], inner, *settings[name + 1 :])
    return dataclasses.replace(settings, **{name: inner})


def converted(name: str, kind: Any, value: Any) -> Any:
    """The `value` of the option `name`, converted to its type `kind`. A tuple may be given as a single value.

    Raises:
        UserError: it is of the wrong type.
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
    accepted, wanted = ARGUMENTS[kind]
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    require(fits, name, repr(value), wanted)
    require(kind is not Path or "\0" not in str(value), name, repr(value), "a path without a NUL byte")
    try:
        return Path(os.path.expanduser(value)) if kind is Path else kind(value)
    except OverflowError:
        raise UserError(f"{name} is too large a number") from None


def expanded(settings: S) -> S:
    """The same settings with `~` in paths replaced by the user's home directory."""
    for option in every_option(settings):
        value = option.of(settings)
        if isinstance(value, Path) and value.parts[:1] and value.parts[0].startswith("~"):
            settings = _replaced(settings, option.path, Path(os.path.expanduser(value)))
    return settings


def arguments_of(settings: Any, default: Any, prefix: str = "") -> list[str]:
    """The command-line arguments that turn `default` into `settings`. Flags begin with `prefix`."""
    arguments: list[str] = []
    for field in dataclasses.fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name)
        flag = flag_of(prefix + field.name)
        if chain := in_a_row(value):
            names, known = [each.name for each in value], {each.name: each for each in usual}
            if names != list(known):
                arguments += [f"--{value[0].role}", *names]
            for begin, each in chain:
                arguments += arguments_of(each, known.get(each.name) or type(each)(), begin)
        elif isinstance(value, Component) and value.name != usual.name:
            arguments += [f"--{value.role}", value.name, *arguments_of(value, type(value)())]
        elif dataclasses.is_dataclass(value):
            arguments += arguments_of(value, usual)
        elif value == usual:
            continue
        elif isinstance(value, bool):
            arguments.append(flag if value else flag_of(f"{prefix}no-{field.name}"))
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return arguments


def as_json(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses become objects, tuples lists, paths strings, and numbers that
    are not finite None. A component's object also has its name, under its role."""
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
