"""Parts of the method that a user can replace: a search, an objective, a saliency, a local pruner.

Each is a frozen dataclass. Its fields are its options, and the command line has a flag for each field. A
component is chosen by its name in a registry, or as `MODULE:NAME`, where MODULE is importable or lies in the
current directory.
"""

import contextlib
import dataclasses
import inspect
import traceback
from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeVar

from tyr_jax.errors import UserError, first_line
from tyr_jax.plugins import load_object

T = TypeVar("T", bound="Component")


class Component:
    """Base of every part that can be replaced."""

    role: ClassVar[str] = "component"
    """The kind of component; `--ROLE` chooses one of this kind."""
    name: ClassVar[str] = ""
    """The name in a registry, or `MODULE:NAME` for a component that is not in one."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @property
    def label(self) -> str:
        """The name in flags: without the module."""
        return self.name.rpartition(":")[2]

    def check(self) -> None:
        """Refuse invalid options.

        Raises:
            UserError: an option is invalid; names the flag, its value and what is wanted.
        """


def find(registry: Mapping[str, type[T]], reference: str, base: type[T]) -> type[T]:
    """The component that `reference` names, in `registry` or as `MODULE:NAME`.

    Raises:
        UserError: there is no such component, or it is not a frozen dataclass derived from `base` whose
            fields all have defaults.
    """
    if reference in registry:
        return registry[reference]
    flag = f"--{base.role}"
    if ":" not in reference:
        names = ", ".join(registry)
        raise UserError(f"{flag} is {reference}, but must be {names}, or MODULE:NAME of your own")
    found = load_object(reference, base.role)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{flag} {reference} is not a {base.__name__}: derive the class from {base.__name__}")
    if not dataclasses.is_dataclass(found) or found.__hash__ is None:
        raise UserError(
            f"{flag} {reference} is not a frozen dataclass: add @dataclasses.dataclass(frozen=True)"
        )
    required = [
        field.name
        for field in dataclasses.fields(found)
        if field.init and field.default is field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise UserError(f"{flag} {reference} has no default for '{required[0]}': give every field one")
    return found


def broken(component: Component | type[Component], what: str) -> UserError:
    """The error for a component that breaks its contract; `what` says how."""
    return UserError(f"--{component.role} {component.name} {what}")


@contextlib.contextmanager
def guarded(component: Component | type[Component], method: str) -> Iterator[None]:
    """A context that turns an exception in `method` of a user's own component into a `UserError`.

    Exceptions of this package's own components are left as they are.

    Raises:
        UserError: the body failed; names the component, the method, the error and the line.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # the user's code may also call sys.exit
        if ":" not in component.name:
            raise
        code = inspect.getsourcefile(component if isinstance(component, type) else type(component))
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == code
        ]
        where = f", at line {lines[-1]} of {code}" if lines else ""
        raise broken(
            component, f"failed in {method} with {type(error).__name__}: {first_line(error)}{where}"
        ) from error
