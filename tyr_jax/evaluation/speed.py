"""How fast a pruned model is compared with the dense one: the results of a benchmark, and their file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tyr_jax.errors import UserError
from tyr_jax.files import read_json
from tyr_jax.workspace.records import BENCHMARK, read_benchmark
from tyr_jax.workspace.records import MEASURES as MEASURES

NAME = BENCHMARK
"""The file of the results."""

MODELS = ("dense", "pruned")

Sizes = Mapping[str, Mapping[str, int]]
"""By model: `parameters`, `bytes` in the type they are stored in, and `cache_bytes_per_token` in the type
that the models run in."""


class Timing(NamedTuple):
    """One comparison."""

    engine: str
    """What ran the models."""
    prompt: int
    """Tokens of the prompt."""
    batch: int
    """Sequences that ran together."""
    measure: str
    """What was timed, one of `MEASURES`."""
    dense: float
    """Seconds, median."""
    pruned: float
    """Seconds, median."""
    limit: float
    """How many times faster the pruned model would be if only FLOPs, or only bytes, counted."""

    @property
    def ratio(self) -> float:
        """How many times faster the pruned model is."""
        return self.dense / self.pruned


class Speed(NamedTuple):
    """A benchmark's result."""

    device: str
    timings: Sequence[Timing]


def as_json(timing: Timing) -> dict[str, Any]:
    """A timing with its ratio, for people who read the file."""
    return {**timing._asdict(), "ratio": timing.ratio}


def is_ours(path: Path) -> bool:
    """Whether a benchmark wrote this file, in any version."""
    try:
        return {"models", "device", "rows"} <= read_json(path).keys()
    except UserError:
        return False


def read_speed(directory: Path) -> Speed | None:
    """The benchmark of the model in `directory`, or None if there was none.

    Raises:
        UserError: the file is there, but is not a benchmark.
    """
    record = read_benchmark(directory)
    if record is None:
        return None
    timings = [Timing(*(row[field] for field in Timing._fields)) for row in record["rows"]]
    return Speed(record["device"], timings)
