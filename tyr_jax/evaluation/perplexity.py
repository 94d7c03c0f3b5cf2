"""Perplexity of a model on texts. Of texts that it was made with, only the held-out windows are read."""

import dataclasses
import math

from tyr_jax.data import DataSpec, evaluation_sources, load_evaluation, needs_trust
from tyr_jax.errors import UserError, overflow
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.provenance import Provenance
from tyr_jax.evaluation.scores import TextPerplexity
from tyr_jax.io.checkpoint import LoadedModel, check_length
from tyr_jax.workspace.progress import Progress


@dataclasses.dataclass(frozen=True)
class TextChoice:
    """Which text to measure on, and how. What is not set is as it was when the model was made."""

    evaluation: tuple[str, ...] = ()
    evaluation_length: int | None = None
    evaluation_windows: int | None = None
    bos: bool | None = None
    chat_template: bool | None = None
    trust_record: bool = False
    """Whether to read texts that only the model's record names."""

    @property
    def given(self) -> list[str]:
        """The names of the fields that are set."""
        return [each.name for each in dataclasses.fields(self) if getattr(self, each.name) != each.default]


def data_spec(choice: TextChoice, model: str, made: Provenance | None) -> DataSpec:
    """The text to measure the model named `model` on.

    That is the text it was measured on when it was made, except for what `choice` sets. Of text that it has
    learnt from, the held-out windows are used.

    Raises:
        UserError: no windows of the requested length were held out, or a text is named only by the model's
            record, which is not trusted.
    """
    asked = {
        field: getattr(choice, field)
        for field in ("evaluation_length", "evaluation_windows", "bos", "chat_template")
        if getattr(choice, field) is not None
    }
    if made is None:
        return DataSpec(calibration=(), evaluation=choice.evaluation or ("builtin",), **asked)
    spec = dataclasses.replace(made.spec, **asked)
    if choice.evaluation:
        held = tuple(source for source in choice.evaluation if made.has_learnt(source))
        others = tuple(source for source in choice.evaluation if source not in held)
        spec = dataclasses.replace(spec, calibration=held, evaluation=others)
    named = [name for name in (*spec.calibration, *spec.evaluation) if name not in choice.evaluation]
    strange = [name for name in named if needs_trust(name)]
    if strange and not choice.trust_record:
        raise UserError(
            f"the record of {model} says that it was measured on {', '.join(strange)}: if you trust the "
            "record, read those texts with --trust-record, or name others with --evaluation"
        )
    if spec.calibration and spec.evaluation_length != made.spec.evaluation_length:
        raise UserError(
            f"{model} was pruned or trained on {', '.join(spec.calibration)}, with windows of "
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
