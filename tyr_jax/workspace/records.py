"""Schemas of everything that is stored and read again. Each record has one schema and one version.

A model's directory has records of how it was pruned (`summary.json`), trained (`recovery.json`) and timed
(`benchmark.json`). A job has records of its settings, its events (`events.jsonl`), and the work that it can
continue from.

Fields that are not named here are allowed and kept: a user's own components have their own options, and
fields that a later version adds to a record survive when the record is copied.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from tyr_jax.data import DataSpec, parse_source
from tyr_jax.errors import UserError
from tyr_jax.files import read_json
from tyr_jax.space import KINDS
from tyr_jax.workspace.schema import (
    Count,
    Fault,
    Format,
    Layers,
    Many,
    Named,
    Positive,
    Seconds,
    Share,
    Some,
    SomeNamed,
    check,
    check_version,
    mended,
    no_faults,
)

T = TypeVar("T")

SUMMARY = "summary.json"
RECOVERY = "recovery.json"
BENCHMARK = "benchmark.json"

MEASURES: tuple[Literal["first token"], Literal["each token after"]] = ("first token", "each token after")
"""What a benchmark measures."""

FORMAT_VERSION = 1
"""Version of the records of finished work, and of events."""

WORK_VERSION = 2
"""Version of what an unfinished job keeps for itself: settings, the current stage, and finished work."""

Target = Annotated[float, Field(gt=0, lt=1)]
Perplexity = Annotated[float, Field(gt=0)]
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]
Licence = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=100)]
Ratio = Annotated[float, Field(gt=1e-9, lt=1e9)]


def _source(text: str) -> str:
    try:
        parse_source(text)
    except (UserError, OSError) as error:
        raise ValueError(f"name a text: {error}") from None
    return text


SourceName = Annotated[str, AfterValidator(_source)]


class ByKind(TypedDict, Generic[T]):
    """One value for each of the two kinds of site."""

    attention: T
    ffn: T


class SavedSpec(TypedDict):
    """A saved `tyr_jax.data.DataSpec`."""

    calibration: Many[SourceName]
    evaluation: Many[SourceName]
    sequence_length: Positive
    search_length: Positive
    calibration_tokens: Count
    calibration_noise: Share
    calibration_openings: Count
    search_tokens: Count
    evaluation_length: Annotated[int, Field(ge=2, le=2**60)]
    evaluation_windows: Positive
    self_temperature: NotRequired[Perplexity]
    bos: bool
    chat_template: bool


class Quality(TypedDict):
    """Quality of a model on a text. None for a value that is not finite or not known."""

    perplexity: Perplexity | None
    kl: float | None


Qualities = SomeNamed[Quality]


class Size(TypedDict):
    """Size of a model."""

    block_parameters: Count
    active_parameters: NotRequired[Count]
    parameters: Positive
    bytes: Positive


class Units(TypedDict):
    """Numbers of units of one kind."""

    total: Positive
    kept: Count
    removed: Count
    sparsity: Share


class Dense(TypedDict):
    """The dense model."""

    size: Size
    quality: Qualities
    sample: NotRequired[str | None]


class PrunedModel(Dense):
    """A pruned model."""

    kept: ByKind[Layers]
    units: ByKind[Units]


class Step(TypedDict):
    """The record of one step of a search. A user's own search may record more."""

    generation: Count
    objective: float | None
    parent: NotRequired[float | None]
    candidate_tokens: Count


class Round(TypedDict):
    """One round of supernet and search."""

    round: Positive
    step: ByKind[Positive]
    descent: Many[Many[float | None]]
    kept: ByKind[Layers]
    history: Many[Step]


class Damped(TypedDict):
    """A site whose damping was raised."""

    stage: str
    site: str
    damping: float


class Health(TypedDict):
    """Numerical problems that a run worked around."""

    damping_raised: Many[Damped]
    objectives_not_finite: Count


class Text(TypedDict):
    """A text that was read."""

    sequences: Count
    length: Count
    sha256: str
    source: str | None


class Chosen(TypedDict):
    """The name of the search."""

    search: str


class RunSettings(TypedDict):
    """The settings of a pruning run that are read again."""

    model: str
    sparsity: Some[Target]
    output: str
    prompt: NotRequired[str]
    layout: Literal["compressed", "masked"]
    data: SavedSpec
    search: Chosen


class Sparsity(ByKind[Share]):
    """The sparsity asked for, and the one reached: of each kind's units, and of the blocks' parameters."""

    asked: Target
    budget: NotRequired[Literal["parameters", "active-parameters", "flops", "latency", "units"]]
    parameters: NotRequired[Share]
    left: NotRequired[dict[str, Share]]


class BaseModel(TypedDict):
    """The `tyr_jax.io.origin.Origin` of the dense model."""

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    hub_id: HubId | None
    licence: Licence | None


class Summary(TypedDict):
    """`summary.json`."""

    arguments: Many[str]
    settings: RunSettings
    versions: Named[str]
    device: str
    sparsity: Sparsity
    base_model: NotRequired[BaseModel]
    distribution: ByKind[Layers]
    dense: Dense
    uniform: PrunedModel
    searched: PrunedModel | None
    reconstructed: NotRequired[PrunedModel | None]
    written: NotRequired[Literal["uniform", "searched", "reconstructed"]]
    rounds: Annotated[list[Round], Field(max_length=10_000)]
    health: Health
    texts: Named[Text]
    seconds: Named[Seconds]
    shared_seconds: Named[Seconds]


class Goal(TypedDict):
    """The loss of a training run."""

    goal: Literal["kd", "next-token", "kd+next-token"]


class Method(TypedDict):
    """The training method."""

    method: Literal["lora", "full"]


class TrainingSettings(TypedDict):
    """The settings of a training run that are read again."""

    model: str
    output: str
    data: Some[SourceName]
    loss: Goal
    training: Method


class RecoveryQuality(TypedDict):
    """Quality before and after training. `dense` is empty if the dense model was not measured."""

    dense: Named[Quality]
    pruned: Qualities
    recovered: Qualities


class Recovery(TypedDict):
    """`recovery.json`."""

    arguments: Many[str]
    settings: TrainingSettings
    versions: Named[str]
    sources: Some[str]
    text: SavedSpec
    fingerprints: Named[str]
    trained_tokens: Positive
    losses: Annotated[list[float], Field(min_length=1)]
    quality: RecoveryQuality
    seconds: Named[Seconds]


class TimingRow(TypedDict):
    """A saved `tyr_jax.evaluation.speed.Timing`."""

    engine: str
    prompt: Positive
    batch: Positive
    measure: Literal["first token", "each token after"]
    dense: Ratio
    pruned: Ratio
    limit: Ratio


class Benchmark(TypedDict):
    """`benchmark.json`."""

    device: str
    rows: Annotated[list[TimingRow], Field(min_length=1, max_length=10_000)]


class Asked(TypedDict):
    """The settings of a job."""

    settings: dict[str, Any]


class Event(TypedDict):
    """An event of any kind."""

    event: str
    seconds: Seconds


class DampedEvent(Event, Damped):
    """The event of a site whose damping was raised."""


class Lost(Event):
    """The event of candidates of a step whose objectives were not finite."""

    stage: str
    step: Count
    candidates: Count


class Ended(TypedDict):
    """A saved `tyr_jax.workspace.progress.Ended`."""

    part: str
    stage: str
    seconds: Seconds


class StageEvent(Event):
    """The event of a stage that ended."""

    ended: Ended


class ModelFacts(TypedDict):
    """What identifies the models that a run reads (see `tyr_jax.run.resume`)."""

    model: Count
    teacher: NotRequired[Count]


class InputFacts(TypedDict):
    """What identifies a run's other inputs; in training, also the rows of a step."""

    text: Count
    latencies: NotRequired[Count]
    devices: Positive
    step_rows: NotRequired[Positive]


class ResidualFacts(TypedDict):
    """Facts of the residual stream after the last finished block: how many sequences of each batch are real
    (not padding), and the number of devices that they ran on."""

    real: Many[Count]
    devices: Positive


class RoundFacts(TypedDict):
    """All finished rounds."""

    rounds: Many[Round]


class DescentFacts(TypedDict):
    """The objectives found in a descent."""

    history: Many[Many[float | None]]


class SearchFacts(TypedDict):
    """The progress of a search, stored with its state."""

    history: Many[Step]
    spent: Count


class TrainingFacts(TypedDict):
    """Losses of the finished steps."""

    losses: list[float]


PRUNED = ("uniform", "searched", "reconstructed")
"""The pruned models that a summary may describe."""


def written_name(summary: Mapping[str, Any]) -> str:
    """Name of the pruned model that was written: the last one in the summary, if that does not name it."""
    there = [name for name in PRUNED if summary.get(name)]
    return str(summary.get("written", there[-1]))


def written_model(summary: Mapping[str, Any]) -> Any:
    """The part of a summary about the model that was written."""
    return summary[written_name(summary)]


def fits(summary: Mapping[str, Any]) -> Iterator[Fault]:
    """Contradictions between the fields of a summary."""
    uniform, texts = summary["uniform"], summary["dense"]["quality"]
    there = [name for name in PRUNED if summary.get(name)]
    for name in there:
        yield from _texts_differ(f"{name}.quality", summary[name]["quality"], texts)
        yield from _units_differ(name, summary[name], uniform)
    for number, record in enumerate(summary["rounds"]):
        yield from _layers_differ(f"rounds[{number}].kept", record["kept"], uniform)
    if (written := written_name(summary)) not in there:
        yield Fault("written", written, f"be one of {', '.join(there)}")
        return
    final = summary[written]
    for kind in KINDS:
        same = summary["distribution"][kind] == final["kept"][kind]
        if not same:
            wanted = f"be what {written}.kept.{kind} is"
            yield Fault(f"distribution.{kind}", summary["distribution"][kind], wanted)


def recovery_fits(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Contradictions between the fields of a training record."""
    texts = record["quality"]["recovered"]
    yield from _texts_differ("quality.pruned", record["quality"]["pruned"], texts)
    if record["quality"]["dense"]:
        yield from _texts_differ("quality.dense", record["quality"]["dense"], texts)
    yield from _texts_differ("fingerprints", record["fingerprints"], texts)


def benchmark_fits(record: Mapping[str, Any]) -> Iterator[Fault]:
    """The measures that a benchmark lacks."""
    for measure in MEASURES:
        if all(row["measure"] != measure for row in record["rows"]):
            yield Fault("rows", record["rows"], f"have one of measure '{measure}'")


def _texts_differ(field: str, found: Mapping[str, Any], texts: Mapping[str, Any]) -> Iterator[Fault]:
    if found.keys() != texts.keys():
        yield Fault(field, found, f"have the same texts as the others: {', '.join(texts)}")


def _units_differ(field: str, model: Mapping[str, Any], uniform: Mapping[str, Any]) -> Iterator[Fault]:
    """Contradictions between a pruned model's units, those of its layers, and the uniform model's."""
    yield from _layers_differ(f"{field}.kept", model["kept"], uniform)
    for kind in KINDS:
        units, where = model["units"][kind], f"{field}.units.{kind}"
        total = uniform["units"][kind]["total"]
        depth, kept = len(model["kept"][kind]), sum(model["kept"][kind])
        if units["total"] != total:
            yield Fault(f"{where}.total", units["total"], f"be {total}, as in uniform")
        if total % depth:
            yield Fault(f"{where}.total", total, f"be a multiple of the {depth} layers")
        if units["kept"] != kept:
            yield Fault(f"{where}.kept", units["kept"], f"be {kept}, what the layers keep in all")
        if units["removed"] != total - kept:
            yield Fault(f"{where}.removed", units["removed"], f"be {total - kept}, what is not kept")


def _layers_differ(field: str, kept: Mapping[str, list[int]], uniform: Mapping[str, Any]) -> Iterator[Fault]:
    """Contradictions in what the layers keep: a wrong number of layers, or more units than a layer has."""
    depth = len(uniform["kept"]["attention"])
    for kind in KINDS:
        if len(kept[kind]) != depth:
            yield Fault(f"{field}.{kind}", kept[kind], f"have {depth} layers, as uniform.kept.attention has")
        most = uniform["units"][kind]["total"] // depth
        for layer, count in enumerate(kept[kind]):
            if count > most:
                yield Fault(f"{field}.{kind}[{layer}]", count, f"be at most {most}, what a layer has")


def _form(schema: Any, mend: str, faults: Callable[[Any], Iterator[Fault]] = no_faults) -> Format:
    return Format(TypeAdapter(schema), FORMAT_VERSION, mend, faults)


def _work(schema: Any) -> Format:
    return Format(TypeAdapter(schema), WORK_VERSION, "start over with --restart")


SUMMARY_FORMAT = _form(Summary, "restore the file, or prune again with python -m tyr_jax.prune", fits)
RECOVERY_FORMAT = _form(
    Recovery, "restore the file, or train again with python -m tyr_jax.finetune", recovery_fits
)
BENCHMARK_FORMAT = _form(
    Benchmark, "delete the file, or measure again with python -m tyr_jax.benchmark", benchmark_fits
)
ASKED_FORMAT = _work(Asked)
LOG_MEND = "delete it, or start over with --restart"
STAGE_FORMAT = _work(Ended)
EVENT_FORMAT = _form(Event, LOG_MEND)
EVENT_FORMATS = {
    "damping raised": _form(DampedEvent, LOG_MEND),
    "objective not finite": _form(Lost, LOG_MEND),
    "stage": _form(StageEvent, LOG_MEND),
}
"""Formats by event name. For other events, only the fields of `Event` are checked."""

ANY_FACTS = _work(dict[str, Any])
MODEL_FACTS = _work(ModelFacts)
INPUT_FACTS = _work(InputFacts)
RESIDUAL_FACTS = _work(ResidualFacts)
QUALITY_FACTS = _work(Qualities)
ROUND_FACTS = _work(RoundFacts)
DESCENT_FACTS = _work(DescentFacts)
SEARCH_FACTS = _work(SearchFacts)
TRAINING_FACTS = _work(TrainingFacts)
"""Formats of the facts that a job stores, in addition to arrays, to continue from."""


def read_summary(directory: str | Path) -> dict[str, Any] | None:
    """The summary of the pruning run that made `directory`, or None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    return _read(Path(directory, SUMMARY), SUMMARY_FORMAT)


def read_recovery(directory: str | Path) -> dict[str, Any] | None:
    """The record of the training run that made `directory`, or None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    return _read(Path(directory, RECOVERY), RECOVERY_FORMAT)


def read_benchmark(directory: str | Path) -> dict[str, Any] | None:
    """The benchmark of the model in `directory`, or None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    return _read(Path(directory, BENCHMARK), BENCHMARK_FORMAT)


def read_asked(path: Path) -> dict[str, Any] | None:
    """The job's settings that `asked_record` stored at `path`, or None if there are none.

    Raises:
        UserError: they cannot be read.
    """
    record = _read(path, ASKED_FORMAT)
    return record and record["settings"]


def asked_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a job's settings, which `read_asked` reads."""
    return {"format_version": WORK_VERSION, "settings": settings}


def read_stage(path: Path) -> dict[str, Any] | None:
    """The stage, stored by `stage_record`, during which a process was killed; None if there is none.

    Raises:
        UserError: the record cannot be read.
    """
    return _read(path, STAGE_FORMAT)


def stage_record(ended: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the current stage, which `read_stage` reads."""
    return {"format_version": WORK_VERSION, **ended}


def check_event(entry: Any, where: str) -> None:
    """Check that `entry`, at `where` in a file, is a valid event.

    Raises:
        UserError: it is not; names the field.
    """
    check(entry, EVENT_FORMAT, where)
    if entry["event"] in EVENT_FORMATS:
        check(entry, EVENT_FORMATS[entry["event"]], where)


def _read(path: Path, form: Format) -> dict[str, Any] | None:
    # A broken link, for example, does exist, and reading it should raise an error.
    if not os.path.lexists(path):
        return None
    with mended(form):
        record = read_json(path)
    check_version(record, form, str(path))
    check(record, form, str(path))
    return record


def spec_of(saved: Mapping[str, Any]) -> DataSpec:
    """The `DataSpec` that was saved as JSON."""
    fields_of = (field.name for field in dataclasses.fields(DataSpec))
    values = ((name, saved[name]) for name in fields_of if name in saved)
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values}
    return DataSpec(**fields)
