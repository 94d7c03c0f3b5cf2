"""Perplexity of a model on texts. Of texts that it was made with, only the held-out windows are read."""

import dataclasses
import math

from tyr_jax.data import DataSpec, evaluation_sources, load_evaluation, needs_trust
from tyr_jax.errors import UserError, overflow
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.provenance import Provenance
from tyr_jax.evaluation.scores import TextPerplexity
from tyr_jax.evaluation.settings import EvaluationSettings
from tyr_jax.io.checkpoint import LoadedModel, check_length
from tyr_jax.workspace.progress import Progress


def data_spec(settings: EvaluationSettings, model: str, made: Provenance | None) -> DataSpec:
    """The text to measure the model named `model` on.

    That is the text it was measured on when it was made, except for what `settings` sets. Of text that it has
    learnt from, the held-out windows are used.

    Raises:
        UserError: no windows of the requested length were held out, or a text is named only by the model's
            record, which is not trusted.
    """
    chosen = [name for name in settings.text_options if name not in ("evaluation", "trust_record")]
    asked = {name: getattr(settings, name) for name in chosen}
    if made is None:
        return DataSpec(calibration=(), evaluation=settings.evaluation or ("builtin",), **asked)
    spec = dataclasses.replace(made.spec, **asked)
    if settings.evaluation:
        held = tuple(source for source in settings.evaluation if made.has_learnt(source))
        others = tuple(source for source in settings.evaluation if source not in held)
        spec = dataclasses.replace(spec, calibration=held, search_text=(), evaluation=others)
    named = [name for name in (*spec.drawn, *spec.evaluation) if name not in settings.evaluation]
    strange = [name for name in named if needs_trust(name)]
    if strange and not settings.trust_record:
        raise UserError(
            f"the record of {model} says that it was measured on {', '.join(strange)}: if you trust the "
            "record, read those texts with --trust-record, or name others with --evaluation"
        )
    if spec.drawn and spec.evaluation_length != made.spec.evaluation_length:
        raise UserError(
            f"{model} was pruned or trained on {', '.join(spec.drawn)}, with windows of "
            f"{made.spec.evaluation_length} tokens held out: leave out --evaluation-length, or name "
            "other texts with --evaluation"
        )
    return spec


def perplexities(
    model: LoadedModel, spec: DataSpec, made: Provenance | None, progress: Progress
) -> list[TextPerplexity]:
    """Perplexity on every text of `spec`, with that from when the model was `made`.

    Raises:
        UserError: a text cannot be read, its windows do not fit the model, or the model overflows.
    """
    check_length("--evaluation-length", spec.evaluation_length, model)
    texts, sources = load_evaluation(spec, model.tokenizer), evaluation_sources(spec)
    measured = []
    with progress.stage("evaluate", sum(map(len, texts.values())), "windows") as stage:
        for name, windows in texts.items():
            result = quality.measure(model.params, windows, model.config, on_windows=stage.advance)
            if not math.isfinite(result.perplexity):
                raise overflow(f"{model.source} on {name}")
            source, part = sources[name]
            measured.append(
                TextPerplexity(
                    text=name,
                    source=source,
                    part=part,
                    windows=len(windows),
                    length=int(windows.shape[1]),
                    tokens=int(windows.size),
                    bos=spec.bos,
                    perplexity=result.perplexity,
                    perplexity_when_made=made and made.perplexity(name, windows),
                )
            )
    return measured
