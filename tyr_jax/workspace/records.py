"""What a model's directory says of how it was made: of its pruning `summary.json`, and of its training
`recovery.json`."""

import json
from pathlib import Path
from typing import Any

from tyr_jax.data import DataSpec
from tyr_jax.errors import UserError

SUMMARY = "summary.json"
RECOVERY = "recovery.json"

FORMAT_VERSION = 1

PARTS = (
    *("arguments", "versions", "device", "sparsity", "distribution", "dense", "uniform", "searched"),
    *("rounds", "health", "texts", "seconds", "shared_seconds"),
)
"""What a summary has beside its format and the settings."""


def read_summary(directory: str | Path) -> dict[str, Any] | None:
    """The summary of the run that made `directory`, or None if it is not one of ours.

    Raises:
        UserError: there is a summary, but it cannot be read.
    """
    path = Path(directory) / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        version = summary["format_version"]
        DataSpec(**summary["settings"]["data"])
        missing = [part for part in PARTS if part not in summary]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the summary of a run ({error}); restore it or delete it") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, but this tyr_jax reads {FORMAT_VERSION}")
    if missing:
        raise UserError(
            f"{path} lacks '{missing[0]}': it is not the summary of a run; restore it or delete it"
        )
    return dict(summary)


def read_recovery(directory: str | Path) -> dict[str, Any] | None:
    """The record of the training that made `directory`, or None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    path = Path(directory) / RECOVERY
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        spec_of(record["text"])
        _ = record["settings"]["data"], record["quality"]["recovered"], record["fingerprints"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the record of a training ({error}); restore it or delete it"
        ) from None
    return dict(record)


def spec_of(saved: dict[str, Any]) -> DataSpec:
    """A specification of text as JSON has it."""
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in saved.items()}
    return DataSpec(**fields)
