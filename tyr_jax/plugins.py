"""Loading objects from outside the package, by a reference `MODULE:NAME`."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tyr_jax.errors import UserError, first_line


def load_object(reference: str, what: str, kind: type | tuple[type, ...] = object) -> Any:
    """The object that `reference` names, such as `my_module:THING` or `my_package.module:THING`.

    Modules are looked up among the installed ones first, then in the current directory.

    Args:
        reference: module and attribute.
        what: what the object is, for messages, such as `family`.
        kind: the type or types that the object may have.

    Raises:
        UserError: the reference is not of this form; the module is not found, raises an error on import, or
            has no such attribute; or the object is of another type.
    """
    name, colon, attribute = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in (*name.split("."), attribute)):
        raise UserError(f"{what} '{reference}' is not of the form MODULE:NAME, such as my_module:MY_NAME")
    module = _import(name, f"{what} '{reference}'")
    if not hasattr(module, attribute):
        raise UserError(f"{what} '{reference}': module '{name}' ({_place(module)}) has no '{attribute}'")
    found = getattr(module, attribute)
    if not isinstance(found, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise UserError(
            f"{what} '{reference}' is of type {type(found).__name__}, but must be of type {wanted}"
        )
    return found


def _import(name: str, named: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # Last, so that nothing there hides an installed module. It is not removed again, because a module may
        # import its neighbours later, when it is used.
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{named}: no module '{error.name}' in {here} or among installed packages; check the name, "
                "or set PYTHONPATH"
            ) from error
        raise _raised(name, named, error) from error
    except Exception as error:
        raise _raised(name, named, error) from error


def _raised(name: str, named: str, error: Exception) -> UserError:
    return UserError(f"{named}: module '{name}' raised {type(error).__name__} on import: {first_line(error)}")


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"
