"""What a model's directory says of how it was made: the text it has learnt from, and how good it was then."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tyr_jax.data import DataSpec, fingerprint, parse_source
from tyr_jax.data.sources import identity, leaves
from tyr_jax.errors import UserError
from tyr_jax.report.summary import read_summary

RECOVERY = "recovery.json"
"""What a recovered model's directory says of its training."""


class Provenance(NamedTuple):
    """The text that a model was made and measured on, `spec`; all sources that it has `learnt` from; and of
    the windows that it was measured on, by name, the `fingerprints` and the `perplexities`."""

    spec: DataSpec
    learnt: tuple[str, ...]
    fingerprints: dict[str, str]
    perplexities: dict[str, float]

    def perplexity(self, name: str, windows: np.ndarray) -> float | None:
        """How good it was on text `name`, if it was measured on these very `windows [W, T]`."""
        same = self.fingerprints.get(name) == fingerprint(windows)
        return self.perplexities[name] if same else None

    def has_learnt(self, source: str) -> bool:
        """Whether it has learnt from a part of this source."""
        learnt = {identity(leaf) for leaf in leaves(map(parse_source, self.learnt))}
        return any(identity(leaf) in learnt for leaf in leaves([parse_source(source)]))


def spec_of(saved: dict[str, Any]) -> DataSpec:
    """A specification of text as JSON has it."""
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in saved.items()}
    return DataSpec(**fields)


def provenance_of(directory: str | Path) -> Provenance | None:
    """What `directory` says, or None if it is not one of ours.

    Raises:
        UserError: it says something, but that cannot be read.
    """
    pruned, recovery = read_summary(directory), read_recovery(directory)
    learnt: tuple[str, ...] = ()
    found = None
    if pruned:
        spec = spec_of(pruned["settings"]["data"])
        learnt = spec.calibration
        measured = (pruned["searched"] or pruned["uniform"])["quality"]
        prints = {name: text["sha256"] for name, text in pruned["texts"].items() if name in measured}
        found = Provenance(spec, learnt, prints, {n: each["perplexity"] for n, each in measured.items()})
    if recovery:
        learnt += tuple(recovery["settings"]["data"])
        perplexities = {name: each["perplexity"] for name, each in recovery["quality"]["recovered"].items()}
        found = Provenance(spec_of(recovery["text"]), learnt, recovery["fingerprints"], perplexities)
    return found


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
