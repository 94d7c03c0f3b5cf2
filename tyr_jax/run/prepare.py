"""What comes before pruning: the model, its text, its predictions on it, and the targets in whole units."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from tyr_jax import formatting
from tyr_jax.data import Splits, load_splits, to_write
from tyr_jax.errors import UserError, overflow
from tyr_jax.io.checkpoint import LoadedModel, check_length
from tyr_jax.model.prediction import Prediction
from tyr_jax.planning import plan
from tyr_jax.planning.load import Load
from tyr_jax.pruning import fisher
from tyr_jax.pruning.latency import read_latencies
from tyr_jax.pruning.saliency import check_saliency
from tyr_jax.pruning.site import check_pruner
from tyr_jax.pruning.target import Target, target_of
from tyr_jax.run import resume
from tyr_jax.run.measure import EvaluationTexts, Qualities, choice_predictions, evaluate_dense
from tyr_jax.run.models import GivenModel, load_shown
from tyr_jax.run.own_text import own_text
from tyr_jax.run.samples import check_prompt, sample_of
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import Scratch
from tyr_jax.scoring.objective import check_objective
from tyr_jax.settings import Settings
from tyr_jax.space import Kind
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.store import Store


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share, or those of its part for one target."""

    settings: Settings
    progress: Progress
    events: EventLog
    store: Store = dataclasses.field(default_factory=Store)

    @property
    def scratch(self) -> Scratch | None:
        """Where weights stay on disk with `--offload`; None without it."""
        return Scratch(self.store.directory) if self.settings.offload else None

    def part(self, target: Target) -> "Run":
        """The part of the run for one of several targets."""
        progress, events = self.progress.part(target.name), self.events.part(sparsity=target.sparsity)
        return Run(self.settings, progress, events, self.store.part(target.name))


@dataclasses.dataclass(frozen=True)
class Dense:
    """The model to prune, and what is known before pruning.

    Its `splits` of text; the kinds of site; the sites that stay `whole [S, L]`; the targets; its predictions
    on the evaluation `texts` and its quality there; the `dtype` of written weights; its predictions on the
    text for the `choice` (None if there is only the uniform model); `metrics [L, S, D, D]`, which weigh a
    change of each site's output (None with `--metric none`); and its continuation of the prompt.
    """

    model: LoadedModel
    splits: Splits
    kinds: tuple[Kind, ...]
    whole: np.ndarray
    targets: tuple[Target, ...]
    texts: EvaluationTexts
    quality: Qualities
    dtype: np.dtype
    choice: Prediction | None = None
    metrics: Any = None
    sample: str | None = None


def prepare(run: Run, given: GivenModel | None = None) -> Dense:
    """Load model and text, check that the targets are possible, and record the dense model's predictions. The
    model is the `given` one, or else the one that the settings name.

    Raises:
        UserError: the model, the text or the targets cannot be used.
    """
    settings, pruning = run.settings, run.settings.pruning
    given = given or GivenModel(settings.model)
    model = load_shown(given, run.progress, settings.compute_dtype, on_disk=settings.offload)
    check_model(model, settings)
    kinds, whole = pruning.kinds(model.config), pruning.whole(model.config)
    targets = tuple(target_of(model.config, pruning, each) for each in settings.sparsity)
    check_lengths(model, settings)
    dtype = model.stored_dtype if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
    check_disk(run, model, dtype)
    splits = read_text(run, model)
    check_unchanged(run, model, splits)
    texts, measured = evaluate_dense(run, model, splits.evaluation)
    choice = choice_predictions(run, model, splits.choice) if settings.several_models else None
    metrics = output_metrics(run, model, splits.calibration)
    sample = sample_of("dense", model, settings.prompt, run.progress)
    return Dense(model, splits, kinds, whole, targets, texts, measured, dtype, choice, metrics, sample)


def check_model(model: LoadedModel, settings: Settings) -> None:
    """Check that the model can be pruned, and try the replaceable components of the run on it, before
    anything is computed.

    Raises:
        UserError: the model is pruned already or cannot continue the prompt, or a component breaks its
            contract; names it and says how.
    """
    if not model.config.uniform:
        raise UserError(
            f"{settings.model} is pruned already: its layers differ; prune the dense model instead"
        )
    pruning = settings.pruning
    check_saliency(pruning.saliency)
    check_pruner(pruning.pruner, pruning.saliency)
    check_objective(settings.objective, model.config, model.params["embed"].dtype)
    check_prompt(model, settings.prompt)


def check_lengths(model: LoadedModel, settings: Settings) -> None:
    """Check that the model supports sequences as long as those of its texts.

    Raises:
        UserError: it does not; names the option.
    """
    check_length("--sequence-length", settings.data.sequence_length, model)
    if settings.rounds.rounds:
        check_length("--search-length", settings.data.search_length, model)
    check_length("--evaluation-length", settings.data.evaluation_length, model)


def check_disk(run: Run, model: LoadedModel, dtype: np.dtype) -> None:
    """Say how much disk space the run needs, whose models are written in `dtype`, and check that it is there.

    Raises:
        UserError: it is not.
    """
    load = Load(model.config, run.settings, model.params["embed"].dtype.itemsize, devices.count())
    disk = sum(plan.disk_bytes(load, dtype.itemsize).values())
    if run.store.directory:
        run.progress.log(f"this run will need up to {formatting.in_words(disk)} of disk space")
    resume.check_space(run.store, disk)


def read_text(run: Run, model: LoadedModel) -> Splits:
    """Read the texts of the run, and have the model write the one that is its own, if there is one.

    Raises:
        UserError: a text cannot be used.
    """
    settings, written = run.settings, None
    if (needed := to_write(settings.data)) is not None:
        resume.check_models(run.store, {"model": model})  # before the model's text is kept
        temperature = settings.data.self_temperature
        written = own_text(model, needed, settings.seed, temperature, run.progress, run.store)
    with run.progress.stage("read text", 1, "texts") as stage:
        splits = load_splits(settings.data, model.tokenizer, settings.seed, written)
        stage.advance()
    if len(splits.calibrated) == 1:
        run.progress.log(
            f"note: all calibration text is from {splits.calibrated[0]}. Unless it holds text of many kinds, "
            "the model will be worse on other text: name more sources with --calibration"
        )
    return splits


def check_unchanged(run: Run, model: LoadedModel, splits: Splits) -> None:
    """Refuse to continue a run whose model, text or latencies have changed since it began.

    Raises:
        UserError: they have, or hosts differ in them.
    """
    drawn = [splits.calibration, splits.openings, splits.search, splits.choice]
    text = [*drawn, *splits.evaluation.values()]
    others = {}
    if file := run.settings.pruning.latencies:
        others["latencies"] = np.frombuffer(read_latencies(file).model_dump_json().encode(), np.uint8)
    resume.check_models(run.store, {"model": model})
    resume.check_inputs(run.store, text, run.progress.log, others=others)


def output_metrics(run: Run, model: LoadedModel, calibration: np.ndarray) -> Any:
    """Metrics `[L, S, D, D]` that weigh a change of each site's output, from the first sequences of the
    calibration text `[B, T]`; None with `--metric none`.

    Raises:
        UserError: they are not finite.
    """
    settings = run.settings.pruning
    if settings.metric == "none":
        return None
    text = calibration[: max(1, settings.metric_tokens // calibration.shape[1])]
    with run.progress.stage("Fisher metric", text.size, "tokens") as stage:
        metrics = resume.load_metrics(run.store, model.config.depth, run.scratch)
        if metrics is not None:
            stage.advance(text.size, note=resume.KEPT)
            return metrics
        metrics = fisher.output_metrics(
            model.params,
            text,
            model.config,
            settings.site_kinds(model.config),
            run.settings.seed,
            scratch=run.scratch,
            on_tokens=stage.advance,
        )
        if not all(np.isfinite(devices.fetch(metrics[layer])).all() for layer in range(model.config.depth)):
            raise overflow(f"{model.source} on the calibration text")
    resume.save_metrics(run.store, metrics)
    return metrics
