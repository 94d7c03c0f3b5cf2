"""Shared by scripts that compute several results: what has been computed is not computed again."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.options import as_json


def make(job: Callable[[list[str]], None], arguments: list[str], output: Path, records: list[Path]) -> None:
    """Run a job that writes to `output`, unless its `records` exist. An interrupted job continues.

    Raises:
        UserError: The records were made with other options.
    """
    arguments = [*arguments, "--output", str(output)]
    if not all(record.is_file() for record in records):
        print(f"== {output}", flush=True)
        job(arguments)
    for record in records:
        if json.loads(record.read_text())["arguments"] != arguments:
            raise UserError(f"{record} was made with other options; name another directory with --results")


@dataclasses.dataclass(frozen=True)
class Results:
    """Results by name in a JSON file, with the settings that they were computed with."""

    file: Path
    settings: Any
    found: dict[str, Any]

    @classmethod
    def of(cls, file: Path, settings: Any) -> "Results":
        """The results in `file`, if there are any yet, of these `settings`: any JSON, or a dataclass.

        Raises:
            UserError: They were computed with other settings.
        """
        if dataclasses.is_dataclass(settings):
            settings = as_json(settings)
        settings = json.loads(json.dumps(settings))
        kept = json.loads(file.read_text()) if file.is_file() else {"settings": settings, "results": {}}
        if kept.get("settings") != settings:
            raise UserError(f"{file} was made with other settings; name another with --results")
        return cls(file, settings, kept["results"])

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a name. It is computed if it is not there, and kept."""
        if name not in self.found:
            self.found[name] = compute()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {"settings": self.settings, "results": self.found})
        return self.found[name]
