"""What comes before any pruning: the model, its text, its answers on it, and the targets in whole units."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tyr_jax import formatting, space
from tyr_jax.data import Splits, load_splits
from tyr_jax.errors import UserError
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.quality import Quality
from tyr_jax.io.checkpoint import LoadedModel, check_length, load_model
from tyr_jax.model.prediction import Prediction
from tyr_jax.planning import plan
from tyr_jax.pruning.saliency import check_saliency
from tyr_jax.pruning.site import check_pruner
from tyr_jax.run import resume
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import Scratch
from tyr_jax.scoring.objective import check_objective
from tyr_jax.settings import Settings
from tyr_jax.space import Kind
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.store import Store

Qualities = dict[str, Quality]
"""Quality by name of the text."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One of the sparsities asked for, and the units that each kind keeps in all for it."""

    sparsity: float
    budgets: tuple[int, int]

    @property
    def name(self) -> str:
        """What its directory and its part of the progress display are called."""
        return f"{self.sparsity:g}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage of one run, or of its part for one target, shares."""

    settings: Settings
    progress: Progress
    events: EventLog
    store: Store = dataclasses.field(default_factory=Store)

    @property
    def scratch(self) -> Scratch | None:
        """Where weights stay on disk, if they do."""
        return Scratch(self.store.directory) if self.settings.offload else None

    def part(self, target: Target) -> "Run":
        """What the stages for one of several targets share."""
        progress, events = self.progress.part(target.name), self.events.part(sparsity=target.sparsity)
        return Run(self.settings, progress, events, self.store.part(target.name))


@dataclasses.dataclass(frozen=True)
class Dense:
    """The model to prune, its text and its answers on it, the sites that stay whole `[2, L]`, the targets,
    and the type of written weights."""

    model: LoadedModel
    splits: Splits
    kinds: tuple[Kind, Kind]
    whole: np.ndarray
    targets: tuple[Target, ...]
    teachers: dict[str, Prediction]
    quality: Qualities
    dtype: np.dtype


def record_quality(run: Run, name: str, result: Qualities) -> None:
    """Log the quality of the model called `name`."""
    run.events.write("quality", model=name, texts={text: q._asdict() for text, q in result.items()})


def prepare(run: Run) -> Dense:
    """Load model and text, check that the targets are possible, and record the dense model's answers.

    Raises:
        UserError: anything about the model, the text or the targets that cannot work.
    """
    settings = run.settings
    with run.progress.stage("load model", 1, "models") as stage:
        model = load_model(settings.model, settings.compute_dtype, offload=settings.offload)
        model = dataclasses.replace(model, params=devices.spread(model.params, model.config.hidden))
        stage.advance()
    if not model.config.uniform:
        raise UserError(
            f"{settings.model} is pruned already: its layers differ; prune the dense model instead"
        )
    check_components(settings, model)
    kinds = settings.pruning.kinds(model.config)
    whole = settings.pruning.whole(model.config.depth)
    targets = tuple(target_of(kinds, whole, sparsity) for sparsity in settings.sparsity)
    check_length("--sequence-length", settings.data.sequence_length, model)
    if settings.rounds.rounds:
        check_length("--search-length", settings.data.search_length, model)
    check_length("--evaluation-length", settings.data.evaluation_length, model)
    dtype = model.stored_dtype if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
    itemsize = model.params["embed"].dtype.itemsize
    disk = sum(
        plan.disk_bytes(plan.Load(model.config, settings, itemsize, devices.count()), dtype.itemsize).values()
    )
    run.progress.log(f"this will take up to {formatting.in_words(disk)} on disk while it lasts")
    resume.check_space(run.store, disk)
    with run.progress.stage("read text", 1, "texts") as stage:
        splits = load_splits(settings.data, model.tokenizer, settings.seed)
        stage.advance()
    text = [splits.calibration, splits.openings, splits.search, *splits.evaluation.values()]
    resume.check_inputs(run.store, model.params, text)
    teachers, measured = evaluate_dense(run, model, splits)
    return Dense(model, splits, kinds, whole, targets, teachers, measured, dtype)


def check_components(settings: Settings, model: LoadedModel) -> None:
    """Try the components that a run is made of, before anything is computed.

    Raises:
        UserError: one breaks its contract; names it and says how.
    """
    pruning = settings.pruning
    check_saliency(pruning.saliency)
    check_pruner(pruning.pruner, pruning.saliency)
    check_objective(settings.objective, model.config, model.params["embed"].dtype)


def evaluate_dense(run: Run, model: LoadedModel, splits: Splits) -> resume.Answers:
    """The dense model's predictions on the evaluation texts, and its quality there, by name of the text.

    Raises:
        UserError: they are not finite.
    """
    texts = splits.evaluation
    count = sum(map(len, texts.values()))
    with run.progress.stage("evaluate dense", count, "windows") as stage:
        answers = resume.kept_answers(run.store)
        if answers is not None:
            stage.advance(count, note=resume.KEPT)
            return answers
        teachers, measured = {}, {}
        for name, windows in texts.items():
            teachers[name], measured[name] = quality.measure_dense(
                model.params, windows, model.config, stage.advance
            )
            if not np.isfinite(teachers[name].normaliser).all():
                raise UserError(
                    f"the predictions of {model.source} on {name} are not finite: it overflows there; check "
                    "its weights, or run it in --compute-dtype float32"
                )
    resume.keep_answers(run.store, (teachers, measured))
    record_quality(run, "dense", measured)
    return teachers, measured


def target_of(kinds: tuple[Kind, Kind], whole: np.ndarray, sparsity: float) -> Target:
    """A sparsity in whole units, sites `whole [2, L]` keeping all of theirs.

    Raises:
        UserError: the sparsity, in whole units, would leave a kind intact or remove it altogether.
    """
    attention, ffn = (
        space.unit_budget(kind, len(stays), sparsity, int(stays.sum()))
        for kind, stays in zip(kinds, whole, strict=True)
    )
    return Target(sparsity, (attention, ffn))
