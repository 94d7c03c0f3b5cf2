"""Imports go in one direction only: from the commands down to the pure core."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tyr_jax

PACKAGE = Path(tyr_jax.__file__).parent

FLOORS = (
    {"prune", "evaluate", "finetune", "export", "generate", "benchmark"},
    {"cli"},
    {"api"},
    {"run"},
    {"results"},
    {"report"},
    {"planning", "recovery"},
    {"evaluation"},
    {"settings", "problems"},
    {"io", "search", "scoring"},
    {"pruning", "workspace"},
    {"model", "space", "data"},
    {"runtime"},
    {"options"},
    {"components"},
    {"plugins"},
    {"confinement"},
    {"confined"},
    {"files", "process"},
    {"errors", "formatting"},
)
"""Rooms from the top down. Rooms on one floor do not import each other. The package itself is the ground."""

CORE = {"model", "space", "pruning", "scoring", "search"}
"""Pure functions over arrays."""

EFFECTS = {"run", "workspace", "cli", "io", "report", "data", "settings", "planning"}
"""Rooms that the core must not import."""


def room_of(module: str) -> str:
    """The room of a module of the package, such as `scoring` of `tyr_jax.scoring.nested`."""
    return module.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tyr_jax":
            yield from (
                [f"tyr_jax.{each.name}" for each in node.names] if node.module == "tyr_jax" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.startswith("tyr_jax."))


def arrows() -> set[tuple[str, str, str]]:
    """(room, room that it imports, file) over the whole package."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        # The package's face is the ground, and a `__main__` is a command.
        if parts == ("__init__",) or parts[-1] == "__main__":
            continue
        for module in imported(path):
            if module != "tyr_jax.__version__" and room_of(module) != parts[0]:
                found.add((parts[0], room_of(module), "/".join(parts)))
    return found


def test_every_room_has_a_floor() -> None:
    names = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert names - {"__init__"} == set().union(*FLOORS)


def test_imports_run_downwards() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = [arrow for arrow in arrows() if floor[arrow[0]] >= floor[arrow[1]]]
    assert not upwards


def test_the_core_knows_nothing_of_effects() -> None:
    assert not [arrow for arrow in arrows() if arrow[0] in CORE and arrow[1] in EFFECTS]


@pytest.mark.parametrize("module", ["tyr_jax.prune", "tyr_jax.cli.prune"])
def test_a_command_lies_where_people_call_it(module: str) -> None:
    assert (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py").is_file()
