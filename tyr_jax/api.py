"""The Python API: one function for everything that a command does.

    import tyr_jax

    result = tyr_jax.prune_model("builtin", sparsity=0.25, preset="quick")
    print(tyr_jax.generate_text(result, "The capital of France is", max_tokens=20)[0])
    result.save("pruned")
    result

A model can be given by its name (a directory, a .gguf file, a hub id, `builtin`), as the return value of
`load_model`, or as the result of `prune_model` or `recover_model`. A user's mistake raises a `UserError` with
the same message as the command. (Names that are imported `as` themselves are exported by the package.)
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp

from tyr_jax.data import DataSpec as DataSpec
from tyr_jax.errors import UserError, require
from tyr_jax.evaluation import benchmark, continuation, perplexity
from tyr_jax.evaluation.generation import Sampling as Sampling
from tyr_jax.evaluation.provenance import provenance_of
from tyr_jax.evaluation.settings import BenchmarkSettings, EvaluationSettings, GenerationSettings
from tyr_jax.evaluation.tasks import task_scores
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.io.checkpoint import load_model as load_model
from tyr_jax.options import arguments_of, check_names, converted, with_options
from tyr_jax.planning import plan
from tyr_jax.planning.load import Load
from tyr_jax.pruning.saliency import Saliency as Saliency
from tyr_jax.pruning.settings import PruningSettings as PruningSettings
from tyr_jax.pruning.site import LocalPruner as LocalPruner
from tyr_jax.recovery.loss import Loss as Loss
from tyr_jax.recovery.settings import RecoverySettings
from tyr_jax.recovery.train import Training as Training
from tyr_jax.results import Benchmark, Perplexities, PruneResult, PruningPlan, RecoverResult, TaskScores
from tyr_jax.run import export, prune, recover
from tyr_jax.run.export import ExportSettings, default_path
from tyr_jax.run.models import AnyModel, GivenModel, load, load_shown
from tyr_jax.runtime.devices import in_use, steady_virtual_devices
from tyr_jax.scoring.objective import Objective as Objective
from tyr_jax.search.contract import Search as Search
from tyr_jax.search.evolution import Evolution as Evolution
from tyr_jax.settings import (
    COMPONENTS,
    PRESET_NAMES,
    PRESETS,
    Preset,
    Settings,
    validate,
    with_components,
)
from tyr_jax.settings import Rounds as Rounds
from tyr_jax.workspace.job import Request
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.records import MODELS

S = TypeVar("S")


def _pruning_settings(
    model: AnyModel | None,
    sparsity: float | Sequence[float] | None,
    preset: str | None,
    settings: Settings | None,
    options: dict[str, Any],
) -> Settings:
    """The settings that a call of `prune_model` or `plan_pruning` asks for.

    Raises:
        UserError: an option or a preset does not exist; an option has a value of the wrong type; or both
            `preset` and `settings` are given.
    """
    if settings is None:
        name = "standard" if preset is None else preset
        require(
            isinstance(name, str) and name in PRESETS,
            "preset",
            repr(name),
            f"one of {', '.join(map(repr, PRESET_NAMES))}",
        )
        settings = PRESETS[name]
    elif preset is not None:
        raise UserError("preset and settings both say where defaults come from; give one of them")
    settings = _defaults(settings, PRESETS["standard"])
    if model is not None:
        options["model"] = GivenModel(model).name
    if sparsity is not None:
        options["sparsity"] = sparsity
    components = {role: options.pop(role) for role in COMPONENTS if role in options}
    settings = with_components(settings, components)
    check_names(settings)
    return with_options(settings, options)


def _defaults(settings: S | None, default: S) -> S:
    """The settings that were given, or else the default.

    Raises:
        UserError: what was given are no settings of this kind.
    """
    kind = type(default)
    require(settings is None or isinstance(settings, kind), "settings", repr(settings)[:100], kind.__name__)
    return default if settings is None else settings


@overload
def prune_model(
    model: AnyModel | None = None,
    *,
    sparsity: Sequence[float],
    preset: Preset | None = None,
    settings: Settings | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> list[PruneResult]: ...
@overload
def prune_model(
    model: AnyModel | None = None,
    *,
    sparsity: float | None = None,
    preset: Preset | None = None,
    settings: Settings | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> PruneResult: ...
def prune_model(
    model: AnyModel | None = None,
    *,
    sparsity: float | Sequence[float] | None = None,
    preset: Preset | None = None,
    settings: Settings | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> PruneResult | list[PruneResult]:
    """Prune a model, as `python -m tyr_jax.prune` does.

    Args:
        model: the dense model (default: the one in the settings, or else `builtin`).
        sparsity: share to remove of what `budget` counts: by default the parameters of the blocks; with
            `budget="units"`, heads and neurons separately. Several sparsities share the work that they can,
            and each has its own result (default: the value in the settings, or else 0.25).
        preset: where defaults come from: `quick`, `standard` or `paper` (default: `standard`).
        settings: settings to take the defaults from, instead of a preset.
        output: directory to write the model to, as the command does. After an interruption, the same call
            continues. Without it, nothing is written.
        progress: show progress.
        arguments: the command line to record in the result (default: the one that is equivalent to this
            call).
        options: any other option of the command by its name, such as `calibration_tokens=8192`. A search,
            objective, saliency or pruner may also be given as an instance.

    Returns:
        The pruned model, or a list with one for each of a sequence of sparsities. With `output`, the weights
        are read from there when they are first asked for; otherwise they are in memory.

    Raises:
        UserError: the model or a setting cannot be used, or the output cannot be written.
    """
    steady_virtual_devices()
    several = isinstance(sparsity, Iterable)
    asked = _pruning_settings(model, sparsity, preset, settings, options)
    if len(asked.sparsity) > 1 and not several:
        raise UserError("the settings have several sparsities; give them as sparsity=settings.sparsity")
    if "push_to_hub" in options:
        raise UserError("push_to_hub is for the command; call push_to_hub of the result")
    asked = _with_output(asked, output, options)
    if arguments is None:
        default = dataclasses.replace(PRESETS[asked.preset], preset=PRESETS["standard"].preset)
        arguments = arguments_of(asked, default)
    arguments = converted("arguments", tuple[str, ...], arguments)
    request = Request(arguments, in_memory=output is None, quiet=not progress)
    results = prune.prune(asked, request, GivenModel(asked.model if model is None else model))
    return results if several else results[0]


def _with_output(settings: S, output: str | Path | None, options: Mapping[str, Any]) -> S:
    """The settings with this `output`; unchanged if there is none.

    Raises:
        UserError: there is no output, but `options` say how to treat one.
    """
    if output is not None:
        return with_options(settings, {"output": output})
    for name in ("overwrite", "restart"):
        if name in options:
            raise UserError(f"{name} is about the output directory, of which there is none; give output")
    return settings


def plan_pruning(
    model: AnyModel | None = None,
    *,
    sparsity: float | Sequence[float] | None = None,
    preset: Preset | None = None,
    settings: Settings | None = None,
    devices: int | None = None,
    flops: float | None = None,
    **options: Any,
) -> PruningPlan:
    """Estimate what pruning needs, as `python -m tyr_jax.prune --plan` does: memory, disk, FLOPs and time.

    Only the model's configuration is read.

    Args:
        model: the dense model (default: the one in the settings, or else `builtin`).
        sparsity: as for `prune_model`.
        preset: as for `prune_model`.
        settings: as for `prune_model`.
        devices: number of devices (default: all that JAX sees).
        flops: FLOPs that a device reaches in a second, such as 1e14. Without it, no times are estimated.
        options: any other option of the command by its name.

    Raises:
        UserError: there is no such model, its configuration is not understood, it is pruned already, or a
            setting is invalid.
    """
    for flag, kind, value in (("--plan-devices", int, devices), ("--plan-flops", float, flops)):
        fits = value is None or converted(flag, kind, value) > 0
        require(fits, flag, value, "above 0")
    asked = _pruning_settings(model, sparsity, preset, settings, options)
    validate(asked)
    given = GivenModel(asked.model if model is None else model)
    config, stored = given.config()
    if not config.uniform:
        raise UserError(f"{given.name} is pruned already: its layers differ; plan for the dense model")
    written = stored if asked.dtype == "as-stored" else jnp.dtype(asked.dtype)
    itemsize, number = jnp.dtype(asked.compute_dtype).itemsize, devices or len(jax.devices())
    load = Load(config, asked, itemsize, number)
    return PruningPlan(
        plan.needs(load),
        plan.host_bytes(load),
        plan.disk_bytes(load, written.itemsize),
        number,
        flops,
    )


def recover_model(
    model: AnyModel,
    *,
    teacher: AnyModel | None = None,
    settings: RecoverySettings | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    arguments: Sequence[str] | None = None,
    **options: Any,
) -> RecoverResult:
    """Train a pruned model to recover what it lost, as `python -m tyr_jax.finetune` does.

    Args:
        model: the pruned model.
        teacher: the dense model to learn from (default: the one that was pruned).
        settings: settings to take the defaults from, except for their model and teacher.
        output: directory to write the model to, as the command does. After an interruption, the same call
            continues. Without it, nothing is written.
        progress: show progress.
        arguments: the command line to record in the result (default: the one that is equivalent to this
            call).
        options: any other option of the command by its name, such as `tokens=100_000`.

    Raises:
        UserError: a model or a setting cannot be used, or the output cannot be written.
    """
    steady_virtual_devices()
    given = recover.Given(GivenModel(model), None if teacher is None else GivenModel(teacher))
    default = RecoverySettings(given.model.name)
    named: dict[str, Any] = {"model": given.model.name, "teacher": given.teacher and given.teacher.name}
    if given.model.made_here and teacher is None:
        named["trust_record"] = True
    asked = with_options(_defaults(settings, default), named | options)
    asked = _with_output(asked, output, options)
    if arguments is None:
        arguments = [given.model.argument, *arguments_of(asked, default)]
    arguments = converted("arguments", tuple[str, ...], arguments)
    request = Request(arguments, in_memory=output is None, quiet=not progress)
    return recover.recover(asked, request, given)


@overload
def evaluate_model(
    model: AnyModel, *, tasks: str | Sequence[str], progress: bool = True, **options: Any
) -> TaskScores: ...
@overload
def evaluate_model(
    model: AnyModel, *, settings: EvaluationSettings, progress: bool = True, **options: Any
) -> Perplexities | TaskScores: ...
@overload
def evaluate_model(model: AnyModel, *, progress: bool = True, **options: Any) -> Perplexities: ...
def evaluate_model(
    model: AnyModel, *, settings: EvaluationSettings | None = None, progress: bool = True, **options: Any
) -> Perplexities | TaskScores:
    """Measure a model's quality, as `python -m tyr_jax.evaluate` does: perplexity on texts, or task metrics.

    Args:
        model: a model, dense or pruned.
        settings: settings to take the defaults from.
        progress: show progress.
        options: options by their names in `EvaluationSettings`, such as `evaluation_windows=4`.

    Raises:
        UserError: the model, a text, a task or an option cannot be used.
    """
    asked, shown = (
        with_options(_defaults(settings, EvaluationSettings()), options),
        Progress(quiet=not progress),
    )
    asked.check_tasks()
    given, dtype = GivenModel(model), asked.compute_dtype
    if not asked.task_names:
        made = provenance_of(*given.records())
        asked = dataclasses.replace(asked, trust_record=asked.trust_record or given.made_here)
        spec = perplexity.data_spec(asked, given.name, made)
        with in_use(), shown:
            loaded = load_shown(given, shown, dtype)
            return Perplexities(given.name, perplexity.perplexities(loaded, spec, made, shown))
    if names := ", ".join(asked.text_options):
        raise UserError(f"tasks bring their own text, so leave out what is said of texts ({names})")
    with in_use(), shown:
        return TaskScores(given.name, task_scores(asked, lambda: load_shown(given, shown, dtype), shown))


def generate_text(
    model: AnyModel,
    prompts: str | Sequence[str],
    *,
    settings: GenerationSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> list[str]:
    """Continue text, as `python -m tyr_jax.generate` does, several prompts together.

    Args:
        model: a model, dense or pruned.
        prompts: texts to continue.
        settings: settings to take the defaults from.
        progress: show progress while the model is loaded.
        options: options by their names in `GenerationSettings`, such as `max_tokens=20`.

    Returns:
        The continuation of each prompt, without the prompt.

    Raises:
        UserError: an option is invalid, there is no such model, or a prompt does not fit into its context.
    """
    asked = with_options(_defaults(settings, GenerationSettings()), options)
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    texts: list[Any] = list(prompts) if several else [prompts]
    return continuation.continued(_load(model, texts, asked, progress), texts, asked)


def stream_text(
    model: AnyModel,
    prompt: str,
    *,
    settings: GenerationSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Continue a text, and yield each piece as soon as it is there. Arguments as for `generate_text`.

    Raises:
        UserError: as `generate_text`, at the call, before the first piece is asked for.
    """
    asked = with_options(_defaults(settings, GenerationSettings()), options)
    return continuation.streamed(_load(model, [prompt], asked, progress), prompt, asked)


def _load(
    model: AnyModel, prompts: Sequence[str], settings: GenerationSettings, progress: bool
) -> LoadedModel:
    """The model that is to continue prompts. They and the settings are checked before it is read."""
    continuation.validate(prompts, settings)
    with Progress(quiet=not progress) as shown:
        return load_shown(GivenModel(model), shown, settings.compute_dtype)


def export_model(
    model: AnyModel,
    path: str | Path | None = None,
    *,
    settings: ExportSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Path:
    """Write a GGUF file that stock llama.cpp runs, as `python -m tyr_jax.export` does.

    Args:
        model: a model, dense or pruned.
        path: the file to write (default: model-TYPE.gguf, in the model's directory if it has one).
        settings: settings to take the defaults from.
        progress: show progress.
        options: options by their names in `ExportSettings`, such as `quantize="q8_0"`.

    Returns:
        The path of the file.

    Raises:
        UserError: the model or an option cannot be used, or the file cannot be written.
    """
    given, asked = GivenModel(model), with_options(_defaults(settings, ExportSettings()), options)
    target = default_path(given.name, asked) if path is None else converted("path", Path, path)
    export.export(given, target, asked, Progress(quiet=not progress))
    return target


def benchmark_model(
    dense: AnyModel,
    pruned: AnyModel,
    *,
    settings: BenchmarkSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Benchmark:
    """Measure how much faster a pruned model is, as `python -m tyr_jax.benchmark` does.

    Times the two models in turn: seconds to the first token, and seconds for each token after it.

    Args:
        dense: the dense model.
        pruned: the pruned model.
        settings: settings to take the defaults from.
        progress: show progress.
        options: options by their names in `BenchmarkSettings`, such as `prompts=128`.

    Raises:
        UserError: a model or an option cannot be used.
    """
    asked = with_options(_defaults(settings, BenchmarkSettings()), options)
    benchmark.validate(asked)
    given = dict(zip(MODELS, map(GivenModel, (dense, pruned)), strict=True))
    models = {}
    with Progress(quiet=not progress) as shown:
        with shown.stage("load models", len(given), "models") as stage:
            for name, one in given.items():
                models[name] = load(one, asked.compute_dtype)
                stage.advance()
        timings = benchmark.time_models(models, asked, shown)
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    names = {name: one.name for name, one in given.items()}
    return Benchmark(names, device, benchmark.sizes(models), timings)
