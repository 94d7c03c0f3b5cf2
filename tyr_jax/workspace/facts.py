"""What an unfinished job keeps for itself, to continue from."""

from typing import Any

from tyr_jax.workspace.records import Qualities, RoundRecord, Step
from tyr_jax.workspace.schema import (
    Count,
    Many,
    Named,
    Positive,
    Record,
    Seconds,
)


class Work(Record):
    """What an unfinished job keeps for itself."""

    version = 4


class Ended(Work):
    """A stage that has ended: the `part` of the work (empty: all of it) and the `seconds` that it took."""

    part: str
    stage: str
    seconds: Seconds


class Asked(Work):
    """The settings of a job, and what identifies the `programs` that it runs."""

    settings: dict[str, Any]
    programs: Named[str]


class Checksums(Work):
    """Checksums that identify the models that a run reads, by name (see `tyr_jax.run.resume`)."""

    checksums: Named[Count]


class Inputs(Checksums):
    """Checksums of a run's other inputs, its number of devices and, in training, the rows of a step."""

    devices: Positive
    step_rows: Positive | None = None


class ResidualFacts(Work):
    """Facts of the residual stream after the last finished block: how many sequences of each batch are real
    (not padding), and the number of devices that they ran on."""

    real: Many[Count]
    devices: Positive


class QualityFacts(Work):
    """Quality of a model on every text."""

    quality: Qualities


class RoundFacts(Work):
    """All finished rounds."""

    rounds: Many[RoundRecord]


class SearchFacts(Work):
    """The progress of a search: its records, and the candidate-tokens spent."""

    history: Many[Step]
    spent: Count


class TrainingFacts(Work):
    """Losses of the finished steps."""

    losses: list[float]
