"""JSON files, and values as JSON has them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tyr_jax.components import Component


def as_json(value: Any) -> Any:
    """`value` with dataclasses, tuples and paths turned into what JSON knows; a component
    says its name as well."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {value.role: value.name, **fields} if isinstance(value, Component) else fields
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
