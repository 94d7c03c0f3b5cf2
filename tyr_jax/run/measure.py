"""Quality of a job's models on its evaluation texts: measured once, logged and saved."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from tyr_jax.errors import overflow
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.quality import Quality
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.prediction import Prediction
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.run import resume
from tyr_jax.workspace import records
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.facts import QualityFacts
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.pytrees import SAVED
from tyr_jax.workspace.store import Store

Qualities = dict[str, Quality]
"""Quality by name of the text."""


class Job(Protocol):
    """What measuring needs of a job."""

    @property
    def progress(self) -> Progress:
        """The progress display."""

    @property
    def events(self) -> EventLog:
        """The event log."""

    @property
    def store(self) -> Store:
        """Where results are saved."""


class EvaluationTexts(NamedTuple):
    """Texts by name: `windows [W, T]`, and predictions on them if there is a `dense` model."""

    windows: Mapping[str, np.ndarray]
    dense: Mapping[str, Prediction]

    @property
    def number(self) -> int:
        """Number of windows in all texts."""
        return sum(map(len, self.windows.values()))


def evaluate_dense(
    job: Job, model: LoadedModel, windows: Mapping[str, np.ndarray]
) -> tuple[EvaluationTexts, Qualities]:
    """Evaluate the dense model on `windows [W, T]` by name of the text: (texts with predictions, quality).

    Raises:
        UserError: predictions are not finite.
    """
    count = sum(map(len, windows.values()))
    with job.progress.stage("evaluate dense", count, "windows") as stage:
        like = dict.fromkeys(windows, Prediction(SAVED, SAVED, SAVED))
        saved = job.store.load("dense", QualityFacts, like)
        if saved is not None:
            stage.advance(count, note=resume.KEPT)
            return EvaluationTexts(windows, saved.tree), qualities_of(saved.facts.quality)
        dense, measured = {}, {}
        for name, text in windows.items():
            dense[name], measured[name] = quality.measure_dense(
                model.params, text, model.config, stage.advance
            )
            if not np.isfinite(dense[name].normaliser).all():
                raise overflow(f"{model.source} on {name}")
    job.store.save("dense", dense, QualityFacts(quality=figures(measured)))
    log_quality(job, "dense", measured)
    return EvaluationTexts(windows, dense), measured


def evaluate_model(
    job: Job, name: str, params: Params, config: ModelConfig, texts: EvaluationTexts
) -> Qualities:
    """Quality of the model called `name` on every text; its KL divergence is NaN without a dense model."""
    with job.progress.stage(f"evaluate {name}", texts.number, "windows") as stage:
        saved = job.store.load(name, QualityFacts)
        if saved is not None:
            stage.advance(texts.number, note=resume.KEPT)
            return qualities_of(saved.facts.quality)
        measured = {
            text: quality.measure(params, windows, config, texts.dense.get(text), stage.advance)
            for text, windows in texts.windows.items()
        }
    job.store.save(name, facts=QualityFacts(quality=figures(measured)))
    log_quality(job, name, measured)
    return measured


def choice_predictions(job: Job, model: LoadedModel, text: np.ndarray) -> Prediction:
    """The dense model's predictions on the `text [B, T]` for the choice between models.

    Raises:
        UserError: they are not finite.
    """
    with job.progress.stage("dense model's predictions on the choice text", len(text), "sequences") as stage:
        saved = job.store.load("choice", like=Prediction(SAVED, SAVED, SAVED))
        if saved is not None:
            stage.advance(len(text), note=resume.KEPT)
            return saved.tree
        dense, _ = quality.measure_dense(model.params, text, model.config, stage.advance)
        if not np.isfinite(dense.normaliser).all():
            raise overflow(f"{model.source} on the choice text")
    job.store.save("choice", dense)
    return dense


def choice_divergence(
    job: Job, name: str, params: Params, config: ModelConfig, text: np.ndarray, dense: Prediction
) -> np.ndarray:
    """Mean KL(dense ‖ model) of each sequence of the `text [B, T]` for the choice: `[B]`, nats per token."""
    with job.progress.stage(f"compare {name}", len(text), "sequences") as stage:
        saved = job.store.load(f"choice-{name}", like=SAVED)
        if saved is not None:
            stage.advance(len(text), note=resume.KEPT)
            return saved.tree
        _, kl = quality.losses(params, text, config, dense, stage.advance)
        divergence = kl / text.shape[1]
    job.store.save(f"choice-{name}", divergence)
    return divergence


def log_quality(job: Job, name: str, measured: Qualities) -> None:
    """Log the quality of the model called `name`."""
    job.events.write(
        "quality", model=name, texts={text: each.as_json() for text, each in figures(measured).items()}
    )


def figures(measured: Qualities) -> dict[str, records.QualityRecord]:
    """Qualities for a record."""
    return {text: each.saved() for text, each in measured.items()}


def qualities_of(saved: Mapping[str, records.QualityRecord]) -> Qualities:
    """The qualities that `figures` prepared for a record."""
    return {text: Quality.of(each) for text, each in saved.items()}
