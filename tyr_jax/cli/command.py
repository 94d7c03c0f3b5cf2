"""Command lines from dataclasses, parsed by tyro, with this project's help and error messages."""

import contextlib
import dataclasses
import functools
import io
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.measure import Measurement
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from tyr_jax import process
from tyr_jax.data import needs_trust
from tyr_jax.errors import UserError
from tyr_jax.formatting import printable
from tyr_jax.model.families import load_family
from tyr_jax.options import check_sizes, expanded, in_a_row
from tyr_jax.report.render import Table, for_terminal
from tyr_jax.report.tables import in_one_line
from tyr_jax.run.models import NamedModel
from tyr_jax.runtime import devices
from tyr_jax.runtime.cache import keep_compiled
from tyr_jax.workspace.records import SavedSpec

T = TypeVar("T")

Flat = Annotated[T, tyro.conf.arg(name="")]
"""Settings whose options are shown among the command's own."""

Model = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(
        metavar="MODEL", help="A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."
    ),
]
"""The model of a command that reads one."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How models are read: options of every command that reads some."""

    family: Annotated[str | None, tyro.conf.arg(metavar="MODULE:NAME")] = None
    """Your own model family: a `Family` in a module that is installed or in the current directory."""
    ignore_keys: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY")] = ()
    """Keys of the model's config.json that tyr_jax does not know, and that do not change what the model
    computes. Any other unknown key is an error."""

    def named(self, model: str) -> NamedModel:
        """The model of that name. Its family, if it is the user's own, is known from then on.

        Raises:
            UserError: the family does not exist, or cannot be registered.
        """
        if self.family is not None:
            load_family(self.family)
        return NamedModel(model, self.ignore_keys)


NO_LIMIT = 10_000
"""Width of a terminal, in columns, that is enough for anything."""

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""Escape sequences for a terminal's colours."""

PLAINER = (
    (r"Error parsing (\S+): invalid literal for int\(\).*: '(.*)'", r"\1 is \2, but must be a whole number"),
    (r"Error parsing (\S+): could not convert string to float: '(.*)'", r"\1 is \2, but must be a number"),
    (r"Missing value for argument '(.*)'\. Expected .*", r"\1 needs a value"),
    (r"Missing from .*?: ([A-Z]+) (.*?)\.? \(required\)(?: .*)?", r"\1 is missing: \2"),
    (r"Unrecognized options: (.*)", r"unrecognised arguments: \1"),
)
"""Messages of tyro, as patterns, and what to say in their place."""


def execute(
    run: Callable[[T], None],
    settings: type[T],
    arguments: list[str] | None,
    *,
    prog: str,
    description: str | None,
) -> None:
    """Carry out a command: call `run` with settings from `arguments` (by default the process's).

    Programs that XLA compiles are cached, and a user's mistake is reported in one line.
    """
    given = sys.argv[1:] if arguments is None else arguments
    keep_compiled()
    devices.steady_virtual_devices()
    process.run(lambda: run(parse(settings, given, prog=prog, description=description)))


def parse(
    settings: type[T], arguments: list[str], *, prog: str, description: str | None, default: T | None = None
) -> T:
    """Settings from command-line arguments. What is not given comes from `default`, or from the class.

    Raises:
        UserError: an argument is unknown, lacks its value, or has an impossible one.
        SystemExit: help was asked for, and printed.
    """
    if {"-h", "--help"} & set(arguments):
        # tyro would join the lines of a description.
        print(description or "")
    options: dict[str, Any] = {} if default is None else {"default": default}
    for argument in arguments:
        if not argument.isascii() and argument != argument.encode("utf-8", "replace").decode("utf-8"):
            raise UserError(f"argument {argument!r} is not UTF-8 text; rename what it names")
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed = tyro.cli(
                settings,
                args=arguments,
                prog=prog,
                description="",
                config=(tyro.conf.OmitArgPrefixes,),
                registry=paragraphs(),
                **options,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{sentence(box.getvalue())} (help: {prog} --help)") from None
    if dataclasses.is_dataclass(parsed):
        check_sizes(parsed)
        parsed = expanded(parsed)
    return parsed


def paragraphs() -> ConstructorRegistry:
    """Rules for tyro that make the help of every option one paragraph, and that leave out defaults that are
    empty. By itself, tyro keeps some of the line breaks of a docstring. Components in a row are one struct,
    whose fields begin as their options do."""
    registry, reading = ConstructorRegistry(), False

    @registry.struct_rule
    def in_turn(info: StructTypeInfo) -> StructConstructorSpec | None:
        specs: list[tuple[str, Any]] = [
            (
                prefix,
                ConstructorRegistry.get_struct_spec(dataclasses.replace(info, type=type(each), default=each)),
            )
            for prefix, each in in_a_row(info.default)
        ]

        def made(**values: Any) -> tuple[Any, ...]:
            return tuple(
                spec.instantiate(**{field.name: values[prefix + field.name] for field in spec.fields})
                for prefix, spec in specs
            )

        fields = [
            dataclasses.replace(field, name=prefix + field.name)
            for prefix, spec in specs
            for field in spec.fields
        ]
        return StructConstructorSpec(made, tuple(fields)) if specs else None

    @registry.struct_rule
    def joined(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal reading
        if reading or not dataclasses.is_dataclass(info.type):
            return None
        reading = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            reading = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [
            dataclasses.replace(field, helptext=functools.partial(help_of, field), type=shown_type(field))
            for field in spec.fields
        ]
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def shown_type(field: StructFieldSpec) -> Any:
    """The type of an option; if its default is empty, with the mark that help does not show it."""
    if field.default in (None, (), ""):
        return Annotated[field.type, tyro.conf.arg(help_behavior_hint="")]
    return field.type


def help_of(field: StructFieldSpec) -> str | None:
    """The help of an option, on one line; None if there is none."""
    found = field.helptext() if callable(field.helptext) else field.helptext
    return None if found is None else in_one_line(found)


def sentence(box: str) -> str:
    """The message in tyro's box of sections, on one line: its first section, and its suggestion, if any."""
    lines = ESCAPES.sub("", box).splitlines()
    text = "\n".join(line.strip("│ ") for line in lines if not line.startswith(("╭", "╰")))
    sections = re.split(r"^(?:─+|-{3,})$", text, flags=re.MULTILINE)
    # Where stdout is ASCII, the box has no frame, and its title is a section.
    first = sections[0 if "╭" in box else min(1, len(sections) - 1)]
    message = plainer(" ".join(first.split()).rstrip("."))
    suggestion = re.search(r"Perhaps you meant:\s+(--\S+)", text)
    return message + (f"; perhaps {suggestion[1]} was meant" if suggestion else "")


def plainer(message: str) -> str:
    """A message of tyro, in the words of other errors, without the types and texts of Python."""
    if found := re.fullmatch(
        r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", message
    ):
        choices = [each for each in re.findall(r"'([^']*)'", found[3]) if each != "None"]
        return f"{found[2]} is {found[1]}, but must be one of {', '.join(choices)}"
    if found := re.fullmatch(
        r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", message
    ):
        given = re.findall(r"'([^']*)'", found[2])
        wanted = "whole numbers" if all(map(is_number, given)) else "numbers"
        return f"{found[1]} is {' '.join(given)}, but must be {wanted}"
    for pattern, words in PLAINER:
        message = re.sub(f"^{pattern}$", words, message)
    return message


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def show(tables: Iterable[Table], console: Console | None = None) -> None:
    """Print tables. If the terminal is too narrow for one, its lines wrap, so that no cell is lost."""
    console = console or Console()
    wide = Console(width=NO_LIMIT)
    for table in tables:
        shown = for_terminal(table)
        least, most = Measurement.get(wide, wide.options, shown)
        if console.width < least:
            console.width = most
        console.print(shown)


def say(line: str) -> None:
    """Print a line, with escapes for characters in it that cannot be printed."""
    print(printable(line))


def tell_written(paths: Iterable[Path]) -> None:
    """Print which files were written."""
    for path in paths:
        say(f"written to {path}")


def tell_kept(paths: Iterable[Path]) -> None:
    """Print which files were left as they are."""
    for path in paths:
        say(f"{path} stays as it is, because this program did not write it, or it was changed since")


def tell_model(output: object, texts: SavedSpec) -> None:
    """Print where a model was written, and how to measure it on the `texts` of its record."""
    named = any(map(needs_trust, texts.sources))
    trust = ["--trust-record"] if named else []
    evaluate = shlex.join(["python", "-m", "tyr_jax.evaluate", str(output), *trust])
    say(f"written to {output}: evaluate with `{evaluate}`")
