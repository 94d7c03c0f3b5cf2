"""The name, hub id and licence of a dense model, for the model card of what is made from it.

All of these come from files that somebody wrote, so a value is used only if it has the form of a name, a hub
id or a licence.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tyr_jax.formatting import printable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LICENCE = re.compile(r"[A-Za-z0-9][\w.+-]{0,95}")
LONGEST = 200
"""The longest name, in characters."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A dense model's name, its hub id and its licence, as far as they are known."""

    name: str
    hub_id: str | None = None
    licence: str | None = None


def believed(value: Any, form: re.Pattern[str]) -> str | None:
    """`value` if it is text of that form, else None."""
    return value if isinstance(value, str) and form.fullmatch(value) else None


def origin_of_directory(name: str, directory: Path, hf_config: Mapping[str, Any]) -> Origin:
    """Origin of the model `name`, a path or a hub id, in a `directory` with the `config.json` `hf_config`."""
    if Path(name).expanduser().is_dir():
        hub_id = believed(hf_config.get("_name_or_path"), HUB_ID)
        called = hub_id.split("/")[1] if hub_id else directory.resolve().name
    else:
        hub_id, called = believed(name, HUB_ID), name.split("/")[-1]
    return Origin(printable(called)[:LONGEST], hub_id, licence_of_card(directory / "README.md"))


def licence_of_card(path: Path) -> str | None:
    """The licence that the model card at `path` names, or None."""
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(path) if path.is_file() else None
    except Exception:  # A card that YAML cannot read costs no more than the licence.
        return None
    return believed(data.get("license"), LICENCE) if isinstance(data, dict) else None


def origin_of_gguf(path: Path, values: Mapping[str, Any]) -> Origin:
    """Origin of the model in a `.gguf` file with these metadata `values`."""
    called = values.get("general.name")
    address = values.get("general.repo_url") or values.get("general.base_model.0.repo_url")
    hub_id = address.removeprefix("https://huggingface.co/") if isinstance(address, str) else None
    return Origin(
        printable(called)[:LONGEST] if isinstance(called, str) and called.strip() else path.stem,
        believed(hub_id, HUB_ID),
        believed(values.get("general.license"), LICENCE),
    )
