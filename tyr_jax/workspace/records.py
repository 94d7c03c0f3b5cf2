"""The records in a model's directory: how it was pruned (`summary.json`), trained (`recovery.json`) and timed
(`benchmark.json`). Each has one class: it is written, read and shown from it.

Those of a job are in `events` (`events.jsonl`) and `facts` (the work that it can continue from).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field

from tyr_jax.data import DataSpec, parse_source
from tyr_jax.errors import UserError
from tyr_jax.workspace.schema import (
    Count,
    Fault,
    Layers,
    Many,
    Named,
    Positive,
    Record,
    Seconds,
    Share,
    Some,
    SomeNamed,
)

T = TypeVar("T")

Measure = Literal["first token", "each token after"]
MEASURES: tuple[Measure, ...] = ("first token", "each token after")
"""What a benchmark measures."""

Target = Annotated[float, Field(gt=0, lt=1)]
Perplexity = Annotated[float, Field(gt=0)]
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)]
Licence = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=100)]
Ratio = Annotated[float, Field(gt=1e-9, lt=1e9)]

ByKind = SomeNamed[T]
"""A value for each kind of site, by the kind's name. A summary has the same kinds everywhere."""


class SavedSpec(Record):
    """A saved `tyr_jax.data.DataSpec`."""

    calibration: Many[str]
    search_text: Many[str] = Field(default_factory=list)
    evaluation: Many[str]
    sequence_length: Positive
    search_length: Positive
    calibration_tokens: Count
    calibration_noise: Share
    calibration_openings: Count
    search_tokens: Count
    evaluation_length: Annotated[int, Field(ge=2, le=2**60)]
    evaluation_windows: Positive
    self_temperature: Perplexity = DataSpec.self_temperature
    bos: bool
    chat_template: bool

    @property
    def sources(self) -> list[str]:
        """The names of all texts."""
        return [*self.calibration, *self.search_text, *self.evaluation]

    def spec(self) -> DataSpec:
        """What was saved."""
        saved = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(DataSpec))
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved}
        return DataSpec(**values)


class QualityRecord(Record):
    """Quality of a model on a text. None for a value that is not finite or not known."""

    perplexity: Perplexity | None
    kl: float | None


Qualities = SomeNamed[QualityRecord]


class Size(Record):
    """Size of a model."""

    block_parameters: Count
    active_parameters: Count | None = None
    parameters: Positive
    bytes: Positive


class Units(Record):
    """Numbers of units of one kind, and what these are called."""

    total: Positive
    kept: Count
    removed: Count
    sparsity: Share
    noun: str | None = None


class ModelRecord(Record):
    """The dense model."""

    size: Size
    quality: Qualities
    sample: str | None = None


class PrunedModel(ModelRecord):
    """A pruned model."""

    kept: ByKind[Layers]
    units: ByKind[Units]


class Step(Record):
    """The record of one step of the `search` of this name. A user's own search may record more."""

    search: str = "search"
    generation: Count
    objective: float | None
    parent: float | None = None
    candidate_tokens: Count

    @property
    def has_parent(self) -> bool:
        """Whether the search has parents. That one's objective may still not be finite."""
        return "parent" in self.model_fields_set


class RoundRecord(Record):
    """One round of supernet and searches; `history` has the steps of all of them, in order."""

    round: Positive
    step: ByKind[Positive]
    kept: ByKind[Layers]
    history: Many[Step]


class Damped(Record):
    """A site whose damping was raised."""

    stage: str
    site: str
    damping: float


class Health(Record):
    """Numerical problems that a run worked around."""

    damping_raised: Many[Damped]
    objectives_not_finite: Count


class Text(Record):
    """A text that was read. `calibrated` says whether other parts of its source were calibrated on."""

    sequences: Count
    length: Count
    sha256: str
    source: str | None
    calibrated: bool = False


def _listed(value: Any) -> Any:
    """Searches of a run: a list, or the only one, as it was once written."""
    return [value] if isinstance(value, dict) else value


class Chosen(Record):
    """The name of a search."""

    search: str


class RunSettings(Record):
    """The settings of a pruning run that are read again."""

    model: str
    sparsity: Some[Target]
    output: str
    prompt: str = ""
    layout: Literal["compressed", "masked"]
    data: SavedSpec
    search: Annotated[Some[Chosen], BeforeValidator(_listed)]


class Sparsity(Record):
    """The sparsity asked for, and the one reached: of the blocks' parameters, and of each kind's units by the
    kind's name."""

    asked: Target
    budget: Literal["parameters", "active-parameters", "flops", "latency", "units"] | None = None
    parameters: Share | None = None
    left: dict[str, Share] | None = None


class Origin(Record):
    """The `tyr_jax.io.origin.Origin` of the dense model."""

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    hub_id: HubId | None
    licence: Licence | None


Name = Literal["uniform", "searched", "reconstructed"]
PRUNED: tuple[Name, ...] = get_args(Name)
"""The pruned models that a summary may describe, the simplest first."""


class Comparison(Record):
    """How surely a `model` is better `than` a simpler one: the p-value of a paired t-test."""

    model: Name
    than: Name
    p: Share


class Choice(Record):
    """How the written model was chosen: mean KL divergence of each model on `sequences` sequences of text of
    their own (None where it is not finite), and the comparisons made."""

    sequences: Positive
    kl: Named[float | None]  # of equal models, rounding can make it less than zero
    compared: Many[Comparison]


class Summary(Record):
    """How a model was pruned."""

    file = "summary.json"
    mend = "restore the file, or prune again with python -m tyr_jax.prune"

    arguments: Many[str]
    settings: RunSettings
    versions: Named[str]
    device: str
    sparsity: Sparsity
    base_model: Origin | None = None
    distribution: ByKind[Layers]
    dense: ModelRecord
    uniform: PrunedModel
    searched: PrunedModel | None
    reconstructed: PrunedModel | None = None
    written: Name | None = None
    choice: Choice | None = None
    rounds: Annotated[list[RoundRecord], Field(max_length=10_000)]
    health: Health
    texts: Named[Text]
    seconds: Named[Seconds]
    shared_seconds: Named[Seconds]

    @property
    def pruned(self) -> dict[str, PrunedModel]:
        """The pruned models that it describes, by name."""
        return {name: model for name in PRUNED if (model := getattr(self, name)) is not None}

    @property
    def written_name(self) -> str:
        """Name of the pruned model that was written: the last one, if the record does not name it."""
        return self.written or [*self.pruned][-1]

    @property
    def final(self) -> PrunedModel:
        """The pruned model that was written."""
        return self.pruned[self.written_name]

    @property
    def nouns(self) -> dict[str, str]:
        """What the units of each kind are called."""
        return {kind: units.noun or kind for kind, units in self.uniform.units.items()}

    def faults(self) -> Iterator[Fault]:
        """Contradictions between its fields."""
        yield from _unknown_texts("settings.data", self.settings.data)
        for kind in self.uniform.kept:
            share: Any = (self.sparsity.model_extra or {}).get(kind)
            if type(share) not in (int, float) or not 0 <= share <= 1:
                yield Fault(f"sparsity.{kind}", share, "" if share is None else "be between 0 and 1")
        for name, model in self.pruned.items():
            yield from _texts_differ(f"{name}.quality", model.quality, self.dense.quality)
            yield from _units_differ(name, model, self.uniform)
        for number, record in enumerate(self.rounds):
            yield from _layers_differ(f"rounds[{number}].kept", record.kept, self.uniform)
        if self.choice:
            yield from _models_differ(self.choice, self.pruned)
        if self.written_name not in self.pruned:
            yield Fault("written", self.written, f"be one of {', '.join(self.pruned)}")
            return
        yield from _kinds_differ("distribution", self.distribution, self.uniform)
        for kind, kept in self.distribution.items():
            if kept != self.final.kept[kind]:
                yield Fault(f"distribution.{kind}", kept, f"be what {self.written_name}.kept.{kind} is")


class Goal(Record):
    """The loss of a training run."""

    goal: Literal["kd", "next-token", "kd+next-token"]


class Method(Record):
    """The training method."""

    method: Literal["lora", "full"]


class TrainingSettings(Record):
    """The settings of a training run that are read again."""

    model: str
    output: str
    data: Some[str]
    loss: Goal
    training: Method


class RecoveryQuality(Record):
    """Quality before and after training. `dense` is empty if the dense model was not measured."""

    dense: Named[QualityRecord]
    pruned: Qualities
    recovered: Qualities

    @property
    def models(self) -> dict[str, dict[str, QualityRecord]]:
        """The models that were measured, by name."""
        named = {"dense": self.dense, "pruned": self.pruned, "recovered": self.recovered}
        return {name: quality for name, quality in named.items() if quality}


class Recovery(Record):
    """How a model was trained."""

    file = "recovery.json"
    mend = "restore the file, or train again with python -m tyr_jax.finetune"

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

    def faults(self) -> Iterator[Fault]:
        """Contradictions between its fields."""
        yield from _unknown("settings.data", self.settings.data)
        yield from _unknown_texts("text", self.text)
        for name, quality in self.quality.models.items():
            yield from _texts_differ(f"quality.{name}", quality, self.quality.recovered)
        yield from _texts_differ("fingerprints", self.fingerprints, self.quality.recovered)


MODELS = ("dense", "pruned")
"""The models that a benchmark compares."""

Sizes = Mapping[str, Mapping[str, int]]
"""By model: `parameters`, `bytes` in the type they are stored in, and `cache_bytes_per_token` in the type
that the models run in."""


class Timing(Record):
    """A comparison of a pruned model's speed with the dense one's."""

    engine: str
    """What ran the models."""
    prompt: Positive
    """Tokens of the prompt."""
    batch: Positive
    """Sequences that ran together."""
    measure: Measure
    """What was timed."""
    dense: Ratio
    """Seconds, median."""
    pruned: Ratio
    """Seconds, median."""
    limit: Ratio
    """How many times faster the pruned model would be if only FLOPs, or only bytes, counted."""

    @property
    def ratio(self) -> float:
        """How many times faster the pruned model is."""
        return self.dense / self.pruned


class Speed(Record):
    """How fast a pruned model is compared with the dense one."""

    file = "benchmark.json"
    mend = "delete the file, or measure again with python -m tyr_jax.benchmark"

    device: str
    rows: Annotated[list[Timing], Field(min_length=1, max_length=10_000)]

    def faults(self) -> Iterator[Fault]:
        """The measures that it lacks."""
        for measure in MEASURES:
            if all(row.measure != measure for row in self.rows):
                yield Fault("rows", self.rows, f"have one of measure '{measure}'")


def _unknown_texts(field: str, saved: SavedSpec) -> Iterator[Fault]:
    for name in ("calibration", "search_text", "evaluation"):
        yield from _unknown(f"{field}.{name}", getattr(saved, name))


def _unknown(field: str, names: Iterable[str]) -> Iterator[Fault]:
    """Names that are not those of texts."""
    for number, name in enumerate(names):
        try:
            parse_source(name)
        except (UserError, OSError) as error:
            yield Fault(f"{field}[{number}]", name, f"name a text: {error}")


def _models_differ(choice: Choice, pruned: Mapping[str, Any]) -> Iterator[Fault]:
    """Models that were compared, but are not among the pruned ones, or have no divergence."""
    for name in choice.kl:
        if name not in pruned:
            yield Fault(f"choice.kl.{name}", name, f"be one of {', '.join(pruned)}")
    for number, each in enumerate(choice.compared):
        for name in (each.model, each.than):
            if name not in choice.kl:
                yield Fault(f"choice.compared[{number}]", name, f"be one of {', '.join(choice.kl)}")


def _texts_differ(field: str, found: Mapping[str, Any], texts: Mapping[str, Any]) -> Iterator[Fault]:
    if found.keys() != texts.keys():
        yield Fault(field, found, f"have the same texts as the others: {', '.join(texts)}")


def _kinds_differ(field: str, found: Mapping[str, Any], uniform: PrunedModel) -> Iterator[Fault]:
    """Kinds of site that are missing, or that the uniform model does not have."""
    for kind in uniform.kept:
        if kind not in found:
            yield Fault(f"{field}.{kind}", None, "")
    if found.keys() != uniform.kept.keys():
        yield Fault(field, found, f"have the kinds of uniform.kept: {', '.join(uniform.kept)}")


def _units_differ(field: str, model: PrunedModel, uniform: PrunedModel) -> Iterator[Fault]:
    """Contradictions between a pruned model's units, those of its layers, and the uniform model's."""
    yield from _kinds_differ(f"{field}.units", model.units, uniform)
    yield from _layers_differ(f"{field}.kept", model.kept, uniform)
    for kind, units in model.units.items():
        where, total = f"{field}.units.{kind}", uniform.units[kind].total
        depth, kept = len(model.kept[kind]), sum(model.kept[kind])
        if units.total != total:
            yield Fault(f"{where}.total", units.total, f"be {total}, as in uniform")
        if total % depth:
            yield Fault(f"{where}.total", total, f"be a multiple of the {depth} layers")
        if units.kept != kept:
            yield Fault(f"{where}.kept", units.kept, f"be {kept}, what the layers keep in all")
        if units.removed != total - kept:
            yield Fault(f"{where}.removed", units.removed, f"be {total - kept}, what is not kept")


def _layers_differ(field: str, kept: Mapping[str, list[int]], uniform: PrunedModel) -> Iterator[Fault]:
    """Contradictions in what the layers keep: a wrong number of layers, or more units than a layer has."""
    yield from _kinds_differ(field, kept, uniform)
    first, layers = next(iter(uniform.kept.items()))
    depth = len(layers)
    for kind, counts in kept.items():
        if len(counts) != depth:
            yield Fault(f"{field}.{kind}", counts, f"have {depth} layers, as uniform.kept.{first} has")
        most = uniform.units[kind].total // depth
        for layer, count in enumerate(counts):
            if count > most:
                yield Fault(f"{field}.{kind}[{layer}]", count, f"be at most {most}, what a layer has")
