"""Shared by scripts that run several commands: no command is run twice."""

import json
from collections.abc import Callable
from pathlib import Path

from tyr_jax.errors import UserError


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
