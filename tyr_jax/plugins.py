"""Loading objects from outside the package, by a reference `MODULE:NAME`."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
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


class _Here(MetaPathFinder):
    """Finds plug-ins in a directory, and what these import there, after all other finders have failed.

    At the end of `sys.path`, a module would still hide installed packages that have no `__init__.py`, such as
    `orbax` and `google`, and would be run where a library tries whether an optional one is installed.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of that name in the directory; packages find their own modules."""
        if path is not None or not self._asks():
            return None
        return PathFinder.find_spec(fullname, [self.directory])

    def _asks(self) -> bool:
        """Whether this module, or one in the directory, asks for the import at hand."""
        frame = sys._getframe(2)
        while frame.f_back and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        asking = Path(frame.f_code.co_filename)
        if asking.is_relative_to(Path(__file__).parent):
            return asking == Path(__file__)
        return asking.is_relative_to(self.directory) and "site-packages" not in asking.parts


def _import(name: str, named: str) -> ModuleType:
    here = str(Path.cwd())
    if not any(isinstance(finder, _Here) and finder.directory == here for finder in sys.meta_path):
        # It stays, because a module may import its neighbours later, when it is used.
        sys.meta_path.append(_Here(here))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{named}: no module '{error.name}' in {here} or among installed packages; check the name, "
                "or set PYTHONPATH"
            ) from error
        raise _raised(name, named, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may also call sys.exit
        raise _raised(name, named, error) from error


def _raised(name: str, named: str, error: BaseException) -> UserError:
    return UserError(f"{named}: module '{name}' raised {type(error).__name__} on import: {first_line(error)}")


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"
