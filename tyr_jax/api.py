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
from tyr_jax.evaluation.benchmark import Cases
from tyr_jax.evaluation.continuation import ContinuationSettings
from tyr_jax.evaluation.generation import Sampling
from tyr_jax.evaluation.perplexity import TextChoice
from tyr_jax.evaluation.provenance import provenance_of
from tyr_jax.evaluation.tasks import TaskChoice, task_scores
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.io.checkpoint import load_model as load_model
from tyr_jax.options import arguments_of, check_names, with_options
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
from tyr_jax.run.export import GgufSettings, Quantize, default_path
from tyr_jax.run.models import AnyModel, Computation, GivenModel, load, load_shown
from tyr_jax.runtime.devices import in_use, steady_virtual_devices
from tyr_jax.scoring.objective import Objective as Objective
from tyr_jax.search.contract import Search as Search
from tyr_jax.search.evolution import Evolution as Evolution
from tyr_jax.settings import (
    COMPONENTS,
    PRESET_NAMES,
    PRESETS,
    ComputeType,
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
        require(name in PRESETS, "preset", repr(name), f"one of {', '.join(map(repr, PRESET_NAMES))}")
        settings = PRESETS[name]
    elif preset is not None:
        raise UserError("preset and settings both say where defaults come from; give one of them")
    if model is not None:
        options["model"] = GivenModel(model).name
    if sparsity is not None:
        options["sparsity"] = sparsity
    components = {role: options.pop(role) for role in COMPONENTS if role in options}
    settings = with_components(settings, components)
    check_names(settings)
    return with_options(settings, options)


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
    for flag, value in (("--plan-devices", devices), ("--plan-flops", flops)):
        require(value is None or value > 0, flag, value, "above 0")
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
    asked = with_options(default if settings is None else settings, named | options)
    asked = _with_output(asked, output, options)
    if arguments is None:
        arguments = [given.model.argument, *arguments_of(asked, default)]
    request = Request(arguments, in_memory=output is None, quiet=not progress)
    return recover.recover(asked, request, given)


@overload
def evaluate_model(
    model: AnyModel,
    *,
    evaluation: str | Sequence[str] = TextChoice.evaluation,
    evaluation_length: int | None = TextChoice.evaluation_length,
    evaluation_windows: int | None = TextChoice.evaluation_windows,
    bos: bool | None = TextChoice.bos,
    chat_template: bool | None = TextChoice.chat_template,
    trust_record: bool = TextChoice.trust_record,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> Perplexities: ...
@overload
def evaluate_model(
    model: AnyModel,
    *,
    tasks: str | Sequence[str],
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> TaskScores: ...
def evaluate_model(
    model: AnyModel,
    *,
    evaluation: str | Sequence[str] = TextChoice.evaluation,
    evaluation_length: int | None = TextChoice.evaluation_length,
    evaluation_windows: int | None = TextChoice.evaluation_windows,
    bos: bool | None = TextChoice.bos,
    chat_template: bool | None = TextChoice.chat_template,
    trust_record: bool = TextChoice.trust_record,
    tasks: str | Sequence[str] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> Perplexities | TaskScores:
    """Measure a model's quality, as `python -m tyr_jax.evaluate` does: perplexity on texts, or task metrics.

    Args:
        model: a model, dense or pruned.
        evaluation: texts, in the command's notation (default: those that the model was measured on when it
            was pruned, or else `builtin`).
        evaluation_length: tokens in a window (default: as when the model was pruned, or else 2048).
        evaluation_windows: at most this many windows of each text (default: likewise, or else 20).
        bos: start every window with the tokenizer's BOS (default: likewise, or else no BOS).
        chat_template: render conversations with the model's chat template (default: likewise).
        trust_record: read texts that only the record in the model's directory names.
        tasks: tasks of lm-evaluation-harness, in place of perplexity; needs `tyr-jax[tasks]`.
        num_fewshot: examples before a question (default: the task's own number).
        limit: at most this many questions of each task (default: all).
        data_dir: where the tasks' datasets are, each under its name on the hub (default: the hub).
        compute_dtype: type of weights and activations; `bfloat16` halves their memory.
        progress: show progress.

    Raises:
        UserError: the model, a text or a task cannot be used.
    """
    given, shown = GivenModel(model), Progress(quiet=not progress)
    texts = with_options(
        TextChoice(),
        {
            "evaluation": evaluation,
            "evaluation_length": evaluation_length,
            "evaluation_windows": evaluation_windows,
            "bos": bos,
            "chat_template": chat_template,
            "trust_record": trust_record,
        },
    )
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else tasks
    asked = with_options(
        TaskChoice(),
        {
            "tasks": [name for name in names if name],
            "num_fewshot": num_fewshot,
            "limit": limit,
            "data_dir": data_dir,
        },
    )
    dtype = _computed(compute_dtype)
    if not asked.tasks:
        return _perplexities(given, texts, dtype, shown)
    if names := ", ".join(texts.given):
        raise UserError(f"tasks bring their own text, so leave out what is said of texts ({names})")
    with in_use(), shown:
        return TaskScores(given.name, task_scores(asked, lambda: load_shown(given, shown, dtype), shown))


def _computed(compute_dtype: ComputeType) -> ComputeType:
    """The type in which a model is computed.

    Raises:
        UserError: there is no such type.
    """
    return with_options(Computation(), {"compute_dtype": compute_dtype}).compute_dtype


def _perplexities(
    given: GivenModel, texts: TextChoice, dtype: ComputeType, progress: Progress
) -> Perplexities:
    """Perplexities of a model on texts."""
    made = provenance_of(*given.records())
    texts = dataclasses.replace(texts, trust_record=texts.trust_record or given.made_here)
    spec = perplexity.data_spec(texts, given.name, made)
    with in_use(), progress:
        measured = perplexity.perplexities(load_shown(given, progress, dtype), spec, made, progress)
    return Perplexities(given.name, measured)


def generate_text(
    model: AnyModel,
    prompts: str | Sequence[str],
    *,
    chat: bool = ContinuationSettings.chat,
    max_tokens: int = ContinuationSettings.max_tokens,
    seed: int = ContinuationSettings.seed,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> list[str]:
    """Continue text, as `python -m tyr_jax.generate` does, several prompts together.

    Args:
        model: a model, dense or pruned.
        prompts: texts to continue.
        chat: give each prompt to the model as a user's message, through its chat template.
        max_tokens: generate at most this many tokens for each prompt.
        seed: seed of the sampling (at a temperature above 0).
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample from this many likeliest tokens; 0 means all.
        top_p: sample from the likeliest tokens that together have this probability.
        compute_dtype: type of weights and activations; `bfloat16` halves their memory.
        progress: show progress while the model is loaded.

    Returns:
        The continuation of each prompt, without the prompt.

    Raises:
        UserError: a setting is invalid, there is no such model, or a prompt does not fit into its context.
    """
    sampling = Sampling(temperature, top_k, top_p)
    asked = _continuation(sampling, chat=chat, max_tokens=max_tokens, seed=seed)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    continuation.validate(texts, asked)
    return continuation.continued(_load(model, compute_dtype, progress), texts, asked)


def stream_text(
    model: AnyModel,
    prompt: str,
    *,
    chat: bool = ContinuationSettings.chat,
    max_tokens: int = ContinuationSettings.max_tokens,
    seed: int = ContinuationSettings.seed,
    temperature: float = Sampling.temperature,
    top_k: int = Sampling.top_k,
    top_p: float = Sampling.top_p,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> Iterator[str]:
    """Continue a text, and yield each piece as soon as it is there. Arguments as for `generate_text`.

    Raises:
        UserError: as `generate_text`, at the call, before the first piece is asked for.
    """
    sampling = Sampling(temperature, top_k, top_p)
    asked = _continuation(sampling, chat=chat, max_tokens=max_tokens, seed=seed)
    continuation.validate([prompt], asked)
    return continuation.streamed(_load(model, compute_dtype, progress), prompt, asked)


def _continuation(sampling: Sampling, **options: Any) -> ContinuationSettings:
    """The settings of a continuation.

    Raises:
        UserError: an option has a value of the wrong type.
    """
    return with_options(ContinuationSettings(), options | vars(sampling))


def _load(model: AnyModel, compute_dtype: ComputeType, progress: bool) -> LoadedModel:
    """Load a model, with or without showing progress."""
    dtype = _computed(compute_dtype)
    with Progress(quiet=not progress) as shown:
        return load_shown(GivenModel(model), shown, dtype)


def export_model(
    model: AnyModel,
    path: str | Path | None = None,
    *,
    quantize: Quantize = GgufSettings.quantize,
    neuron_multiple: int = GgufSettings.neuron_multiple,
    overwrite: bool = GgufSettings.overwrite,
    progress: bool = True,
) -> Path:
    """Write a GGUF file that stock llama.cpp runs, as `python -m tyr_jax.export` does.

    Args:
        model: a model, dense or pruned.
        path: the file to write (default: model-TYPE.gguf, in the model's directory if it has one).
        quantize: type of the matrices; those with a `k` need `tyr-jax[llama]`.
        neuron_multiple: pad FFN widths with zeros to a multiple of this, beyond what the type needs.
        overwrite: replace an existing file, once the new one is complete.
        progress: show progress.

    Returns:
        The path of the file.

    Raises:
        UserError: the model or a setting cannot be used, or the file cannot be written.
    """
    options = {"quantize": quantize, "neuron_multiple": neuron_multiple, "overwrite": overwrite}
    given, asked = GivenModel(model), with_options(GgufSettings(), options)
    target = default_path(given.name, asked) if path is None else Path(path)
    export.export(given, target, asked, Progress(quiet=not progress))
    return target


def benchmark_model(
    dense: AnyModel,
    pruned: AnyModel,
    *,
    prompts: int | Sequence[int] = Cases.prompts,
    batches: int | Sequence[int] = Cases.batches,
    tokens: int = Cases.tokens,
    repeats: int = Cases.repeats,
    llama_cpp: bool = Cases.llama_cpp,
    compute_dtype: ComputeType = Computation.compute_dtype,
    progress: bool = True,
) -> Benchmark:
    """Measure how much faster a pruned model is, as `python -m tyr_jax.benchmark` does.

    Times the two models in turn: seconds to the first token, and seconds for each token after it.

    Args:
        dense: the dense model.
        pruned: the pruned model.
        prompts: prompt lengths, in tokens.
        batches: numbers of sequences that run together (llama.cpp: always one).
        tokens: tokens to generate in a timing.
        repeats: repeat each timing this many times and take the median.
        llama_cpp: compare in llama.cpp as well, on float32 files; needs `tyr-jax[llama]`.
        compute_dtype: type of weights and activations; `bfloat16` halves their memory.
        progress: show progress.

    Raises:
        UserError: a model or a setting cannot be used.
    """
    options = {"prompts": prompts, "batches": batches, "tokens": tokens, "repeats": repeats}
    cases = with_options(Cases(), options | {"llama_cpp": llama_cpp})
    benchmark.validate(cases)
    dtype = _computed(compute_dtype)
    given = dict(zip(MODELS, map(GivenModel, (dense, pruned)), strict=True))
    models = {}
    with Progress(quiet=not progress) as shown:
        with shown.stage("load models", len(given), "models") as stage:
            for name, one in given.items():
                models[name] = load(one, dtype)
                stage.advance()
        timings = benchmark.measure(models, cases, shown)
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    names = {name: one.name for name, one in given.items()}
    return Benchmark(names, device, benchmark.sizes(models), timings)
