"""Recovery training of a pruned model, as a job."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tyr_jax.data import DataSpec, anchored, fingerprint, load_evaluation, parse_source
from tyr_jax.data.sources import describe, leaves
from tyr_jax.errors import UserError, overflow
from tyr_jax.evaluation.provenance import Provenance, provenance_of
from tyr_jax.io.checkpoint import BUILTIN, LoadedModel, check_length, load_model
from tyr_jax.model import decoder
from tyr_jax.model.spec import Params
from tyr_jax.model.tensors import as_stored, cast, of_model
from tyr_jax.options import as_json
from tyr_jax.recovery import adapters, examples, train
from tyr_jax.recovery.examples import Examples
from tyr_jax.recovery.loss import TrainingRows
from tyr_jax.recovery.settings import RecoverySettings, step_rows, step_shape, validate
from tyr_jax.recovery.train import Models, TrainingPlan
from tyr_jax.results import RecoverResult, write_records, write_weights
from tyr_jax.run import resume
from tyr_jax.run.measure import EvaluationTexts, Qualities, evaluate_dense, evaluate_model, figures
from tyr_jax.run.models import GivenModel, NamedModel, load, read_paths
from tyr_jax.run.own_text import own_text
from tyr_jax.run.summary import rounded, versions
from tyr_jax.runtime import devices
from tyr_jax.workspace.facts import TrainingFacts
from tyr_jax.workspace.job import Request, Workspace, open_workspace
from tyr_jax.workspace.records import Recovery, RecoveryQuality, Summary
from tyr_jax.workspace.schema import versioned
from tyr_jax.workspace.store import Saved, Store

OWN_TEXT = 1
"""Distinguishes the seed of text that the dense model generates from other seeds."""

PACKAGES = ("jax", "jaxlib", "optax", "transformers", "numpy")


class Given(NamedTuple):
    """What a user gave: the model to train, and the dense model to learn from, if one was named."""

    model: GivenModel
    teacher: GivenModel | None


class Task(NamedTuple):
    """What to train, on what text, and what to measure it on.

    The `model` and the `summary` of its pruning, if there is one; the dense model as `teacher`, if it is
    needed; the training `rows [steps, A, B, T]`, and how often each source is read for them; the `spec` of
    the text; and the evaluation `windows`.
    """

    model: LoadedModel
    summary: Summary | None
    teacher: LoadedModel | None
    rows: Examples
    passes: dict[str, float]
    spec: DataSpec
    windows: dict[str, np.ndarray]
    plan: TrainingPlan


class Trained(NamedTuple):
    """The trained model as it is written, but in the dtype that it runs in; the quality of the dense, the
    pruned and the trained model; and the loss of every step."""

    model: LoadedModel
    quality: dict[str, Qualities]
    losses: list[float]


def window_length(settings: RecoverySettings, made: Provenance | None) -> int:
    """Tokens in an evaluation window.

    Raises:
        UserError: the model has learnt from some of the text, and windows of another length were held out.
    """
    asked, before = settings.evaluation_length, made.spec.evaluation_length if made else 2048
    known = [source for source in (*settings.data, *settings.evaluation) if made and made.has_learnt(source)]
    if known and asked not in (None, before):
        raise UserError(
            f"{settings.model} was pruned or trained on {', '.join(known)}, with windows of {before} tokens "
            "held out: leave out --evaluation-length, or train and measure on other texts"
        )
    return before if asked is None else asked


def load_teacher(settings: RecoverySettings, given: Given, model: LoadedModel) -> LoadedModel | None:
    """Load the dense model; None if the loss does not need it.

    Raises:
        UserError: none is named, or only by a record that is not trusted; or its head or vocabulary differs.
    """
    if not settings.loss.taught:
        return None
    named = given.teacher
    if named is None:
        summary, _ = given.model.records()
        if summary is None:
            raise UserError(
                f"{settings.model} does not say what it was pruned from: name the dense model with "
                "--teacher, or train with --goal next-token"
            )
        # The keys of the pruned model that no family knows are the dense model's.
        ignored = (*given.model.ignore_keys, *model.hf_config)
        named = GivenModel(NamedModel(summary.settings.model, ignored))
        if named.name != BUILTIN and not settings.trust_record:
            raise UserError(
                f"the record of {settings.model} says that it was pruned from {named.name}: if you trust the "
                "record, load that model with --trust-record, or name the dense model with --teacher"
            )
    teacher = load(named, settings.compute_dtype)
    heads = (decoder.rows_of(decoder.head(one.params)) for one in (model, teacher))
    ours, theirs = (np.asarray(rows, np.float32) for rows in heads)
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"the output head of {named.name} differs from that of {settings.model}; name the model that was "
            "pruned with --teacher"
        )
    return teacher


def taught_text(
    settings: RecoverySettings, teacher: LoadedModel | None, rows: int, workspace: Workspace
) -> np.ndarray | None:
    """The rows `[B, T]` of the source `self`, which the dense model generates; None if there are none.

    Raises:
        UserError: there is no dense model, or it has no token that separates documents.
    """
    if not rows:
        return None
    if teacher is None:
        raise UserError(
            "--data self needs the dense model, which writes that text: train with --goal kd or kd+next-token"
        )
    # Another seed, because pruning with this one used the same text.
    seed = int(np.random.SeedSequence([settings.seed, OWN_TEXT]).generate_state(1)[0])
    shape = rows, settings.sequence_length
    return own_text(teacher, shape, seed, 1.0, workspace.progress, workspace.store)


def data_spec(settings: RecoverySettings, made: Provenance | None) -> DataSpec:
    """The text to train and to measure on. Conversations are not part of it: none of them are held out."""
    sources = leaves(map(parse_source, settings.data))
    texts = [source for source in sources if examples.holds_text(source)]
    held = [source for source in settings.evaluation if made and made.has_learnt(source)]
    return DataSpec(
        calibration=(*(f"{source.label}@{source.weight}" for source in texts), *held),
        evaluation=settings.evaluation,
        sequence_length=settings.sequence_length,
        evaluation_length=window_length(settings, made),
        evaluation_windows=settings.evaluation_windows,
        bos=settings.bos,
        chat_template=bool(made and made.spec.chat_template),
    )


def prepare(settings: RecoverySettings, given: Given, workspace: Workspace) -> Task:
    """Load models and text.

    Raises:
        UserError: a model or a text cannot be used.
    """
    with workspace.progress.stage("load models", 1, "models") as stage:
        model = load(given.model, settings.compute_dtype)
        teacher = load_teacher(settings, given, model)
        stage.advance()
    summary, recovery = given.model.records()
    made = provenance_of(summary, recovery)
    check_length("--sequence-length", settings.sequence_length, model)
    check_length("--evaluation-length", window_length(settings, made), model)
    models = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    rows_of_step = load_step_rows(workspace.store, settings)
    spec, shape = data_spec(settings, made), step_shape(settings, rows_of_step)
    sources = list(leaves(map(parse_source, settings.data)))
    if count := examples.rows_to_write(sources, math.prod(shape)):
        resume.check_models(workspace.store, models)  # before the teacher's text is kept
    written = taught_text(settings, teacher, count, workspace)
    with workspace.progress.stage("read text", 1, "texts") as stage:
        rows, passes = examples.load(sources, spec, math.prod(shape), model.tokenizer, settings.seed, written)
        rows = Examples(*(array.reshape(*shape, -1) for array in rows))
        windows = load_evaluation(spec, model.tokenizer)
        stage.advance()
    if again := [f"{label} ({times:.1f} passes in all)" for label, times in passes.items() if times > 1]:
        workspace.progress.log(f"repeated to reach --tokens: {', '.join(again)}")
    taught = None if teacher is None else teacher.config
    plan = TrainingPlan(model.config, taught, settings.training, settings.loss, shape[0])
    inputs = [*rows, *windows.values()]
    resume.check_models(workspace.store, models)
    resume.check_inputs(workspace.store, inputs, workspace.progress.log, rows_of_step)
    return Task(model, summary, teacher, rows, passes, spec, windows, plan)


def load_step_rows(store: Store, settings: RecoverySettings) -> int:
    """Rows of a step: as many as when training began, even if the number of devices has changed since."""
    begun = resume.begun_with(store)
    return step_rows(settings) if begun is None or begun.step_rows is None else begun.step_rows


def train_steps(settings: RecoverySettings, workspace: Workspace, task: Task) -> tuple[Any, list[float]]:
    """Train: (the trained parameters, the loss of every step).

    Raises:
        UserError: the loss is not finite.
    """
    begun = Saved(train.begin_training(task.model.params, task.plan, settings.seed), TrainingFacts(losses=[]))
    done, (state, facts) = workspace.store.last_step("step", begun)
    losses = facts.losses
    models = Models(
        adapters.frozen(task.model.params, settings.training.method),
        None if task.teacher is None else task.teacher.params,
    )
    tokens = task.rows.tokens[0].size
    with workspace.progress.stage("train", task.plan.steps * tokens, "tokens") as stage:
        if done:
            stage.advance(done * tokens, note=resume.KEPT)
        for number in range(done + 1, task.plan.steps + 1):
            rows = TrainingRows(*(devices.place(jnp.asarray(array[number - 1]), 1) for array in task.rows))
            state, loss = train.step(state, models, rows, task.plan)
            losses.append(float(loss))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss of step {number} is not finite; lower --learning-rate or raise --warmup, and "
                    "start over with --restart"
                )
            workspace.events.write("step", step=number, loss=losses[-1])
            if number % settings.save_every == 0 or number == task.plan.steps:
                workspace.store.save_step("step", number, state, TrainingFacts(losses=losses))
            stage.advance(tokens, note=f"loss {losses[-1]:.4f}")
    return state.trained, losses


def merged(settings: RecoverySettings, model: LoadedModel, trained: Any) -> LoadedModel:
    """The model with the trained parameters merged in, its weights rounded to the dtype to write."""
    training = settings.training
    rest = adapters.frozen(model.params, training.method)
    params: Params = adapters.merged(rest, trained, training.method, training.scale)
    dtype = model.stored_dtype if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
    compute = jnp.dtype(settings.compute_dtype)
    params = of_model(lambda tensors: cast(as_stored(tensors, dtype, model.config), compute), params)
    return dataclasses.replace(model, params=params, stored_dtype=dtype, source=f"{model.source}, recovered")


def train_and_measure(settings: RecoverySettings, workspace: Workspace, task: Task) -> Trained:
    """Train, and measure before and after.

    Raises:
        UserError: a model overflows, or the loss is not finite.
    """
    model, dense = task.model, Qualities()
    texts = EvaluationTexts(task.windows, {})
    if task.teacher is not None:
        texts, dense = evaluate_dense(workspace, task.teacher, task.windows)
    before = evaluate_model(workspace, "pruned", model.params, model.config, texts)
    for name, measured in before.items():
        # If it is not finite before training, the learning rate is not the cause.
        if not math.isfinite(measured.perplexity):
            raise overflow(f"{model.source} on {name}")
    trained, losses = train_steps(settings, workspace, task)
    final = merged(settings, model, trained)
    after = evaluate_model(workspace, "recovered", final.params, final.config, texts)
    return Trained(final, {"dense": dense, "pruned": before, "recovered": after}, losses)


def record_of(
    settings: RecoverySettings,
    request: Request,
    task: Task,
    trained: Trained,
    seconds: Mapping[str, float],
) -> Recovery:
    """The record of the training, its inputs and its results, which took so many `seconds` by stage."""
    sources = leaves(map(parse_source, settings.data))
    return Recovery(
        arguments=list(request.arguments),
        settings=as_json(settings),
        versions=versions(PACKAGES),
        sources=[describe(source) for source in sources],
        text=as_json(task.spec),
        fingerprints={name: fingerprint(windows) for name, windows in task.windows.items()},
        passes={label: round(times, 2) for label, times in task.passes.items()},
        learning_rate=settings.training.rate(task.model.config.hidden),
        trained_tokens=task.rows.tokens.size,
        losses=trained.losses,
        quality=RecoveryQuality(**{name: figures(each) for name, each in trained.quality.items()}),
        seconds=rounded(seconds),
    )


def recover(settings: RecoverySettings, request: Request, given: Given) -> RecoverResult:
    """Train a model, and write its directory if there is to be one.

    Raises:
        UserError: the settings, the models or the text cannot be used.
    """
    validate(settings)
    data, evaluation = (tuple(map(anchored, names)) for names in (settings.data, settings.evaluation))
    settings = dataclasses.replace(settings, data=data, evaluation=evaluation)
    models = [one for one in (given.model, given.teacher) if one is not None]
    with open_workspace(settings, request, read_paths(models, (*data, *evaluation))) as workspace:
        task = prepare(settings, given, workspace)
        trained = train_and_measure(settings, workspace, task)
        if workspace.staging is not None:
            write_weights(workspace.staging, trained.model, workspace.progress)
        record = record_of(settings, request, task, trained, workspace.progress.timings)
        made = None if task.summary is None else versioned(task.summary)
        records = made, workspace.events, versioned(record)
        if workspace.staging is None:
            return RecoverResult(lambda: trained.model, *records)
        write_records(workspace.staging, task.summary, record)
    keys = tuple(trained.model.hf_config)
    read = functools.partial(
        load_model, str(settings.output.resolve()), settings.compute_dtype, ignore_keys=keys
    )
    return RecoverResult(read, *records, settings.output)
