"""The programs that a result depends on: libraries, this package, and modules of the user's own."""

import ast
import functools
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "transformers", "tokenizers", "numpy")

PACKAGE = Path(__file__).parents[1]
"""The directory of this package."""

REFERENCE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
"""The form of what names a plug-in, `MODULE:NAME`."""


def programs_of(settings: Any) -> dict[str, str]:
    """What identifies each program that a job with these `settings`, as JSON, runs: versions of libraries,
    and the sha256 of the code of this package, of every plug-in, and of the modules beside it that are
    loaded or that it imports, also where it does so only later. Keys say what each is."""
    versions = {f"version of {name}": importlib.metadata.version(name) for name in LIBRARIES}
    code = {f"code of {name}": _sha256(paths) for name, paths in _sources(settings)}
    return versions | {"code of tyr_jax": _own_code()} | code


@functools.cache
def _own_code() -> str:
    """The sha256 of this package's code."""
    return _sha256(sorted(PACKAGE.rglob("*.py")))


def _sources(settings: Any) -> Iterator[tuple[str, list[Path]]]:
    """Names and files of the modules that settings name, and of those beside them."""
    for reference in _strings(settings):
        named = REFERENCE.fullmatch(reference)
        own = _file(sys.modules.get(named[1])) if named else None
        if named and own:
            yield named[1], [own]
            # Beside an installed module is all else that is installed.
            if "site-packages" not in own.parts:
                root = own.parents[named[1].count(".") + (own.name == "__init__.py")]
                loaded = {file for module in [*sys.modules.values()] if (file := _file(module))}
                for file in sorted((loaded | _imported(own, root)) - {own}):
                    if file.is_relative_to(own.parent):
                        yield file.relative_to(own.parent).as_posix(), [file]


def _imported(own: Path, root: Path) -> set[Path]:
    """Files below a root that a module imports, directly or not, anywhere in its code."""
    found, left = set[Path](), [own]
    while left:
        for path in _named_by(left.pop(), root):
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file() and file not in found:
                    found.add(file)
                    left.append(file)
    return found


def _named_by(file: Path, root: Path) -> Iterator[Path]:
    """Where below a root the modules would be, without suffix, that a file's imports name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # A file that cannot be imported imports nothing.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield root.joinpath(*alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            package = file.parents[node.level - 1] if node.level else root
            module = package.joinpath(*(node.module or "").split("."))
            yield from (module, *(module / alias.name for alias in node.names))


def _strings(value: Any) -> Iterator[str]:
    """All strings within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _file(module: ModuleType | None) -> Path | None:
    """The source file of a module outside this package, if it has one."""
    file = getattr(module, "__file__", None)
    path = Path(file).resolve() if isinstance(file, str) else None
    return path if path and path.is_file() and not path.is_relative_to(PACKAGE) else None


def _sha256(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
