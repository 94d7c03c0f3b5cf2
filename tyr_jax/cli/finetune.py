"""Win back what pruning lost: `python -m tyr_jax.finetune PRUNED --teacher DENSE`.

A short training on text, of the pruned model as it is: by default of a low-rank
change of every projection (LoRA), which learns the dense model's predictions and
is added to the weights in the end. What is written loads wherever the pruned
model does.

Examples:

  python -m tyr_jax.finetune pruned --output recovered
      on the embedded text, taught by the model that was pruned

  python -m tyr_jax.finetune pruned --data alpaca.jsonl --goal next-token \\
      --tokens 3000000 --output chatty
      on the answers of conversations, in rows of messages, or of instruction,
      input and output; they are written as the model's chat template does
"""

import dataclasses
import importlib.metadata
import math
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from tyr_jax import __version__
from tyr_jax.cli import command
from tyr_jax.data import DataSpec, anchored, fingerprint, load_evaluation, parse_source
from tyr_jax.data.sources import describe, leaves
from tyr_jax.errors import UserError, require
from tyr_jax.evaluation import quality
from tyr_jax.evaluation.quality import Quality
from tyr_jax.io.checkpoint import LoadedModel, check_length, load_model, save_model
from tyr_jax.model import decoder
from tyr_jax.model.prediction import Prediction
from tyr_jax.recovery import adapters, examples, train
from tyr_jax.recovery.examples import Examples
from tyr_jax.recovery.loss import Loss, TrainingRows
from tyr_jax.recovery.train import Models, Plan, State, Training
from tyr_jax.report import summary, write_report
from tyr_jax.report.provenance import RECOVERY, Provenance, provenance_of
from tyr_jax.run import resume
from tyr_jax.run.prepare import Qualities
from tyr_jax.runtime import devices
from tyr_jax.settings import ComputeType, WeightType
from tyr_jax.workspace import files, job
from tyr_jax.workspace.files import write_json
from tyr_jax.workspace.job import Workspace
from tyr_jax.workspace.store import Store

ROW_TOKENS = 4096
"""Tokens that are trained on at a time on a device, of those of a step."""

STEP_TOKENS = 2048
"""Tokens of a step, where nothing is said: a few hundred thousand tokens then make enough steps."""

OPTIONAL = tyro.conf.arg(help_behavior_hint="")
"""For options whose default is said in words."""

PACKAGES = ("jax", "jaxlib", "optax", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """Everything that determines a recovered model."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """What to train: a directory, a .gguf file, a hub id, or `builtin`."""
    teacher: Annotated[str | None, tyro.conf.arg(metavar="DENSE", help_behavior_hint="")] = None
    """The dense model to learn from (default: the one that was pruned)."""
    data: tuple[str, ...] = ("builtin",)
    """Text to train on, each SOURCE[@WEIGHT] as for pruning: `builtin`, a .txt, .jsonl or .parquet file, or a
    hub dataset. A part of each text is held out, as it was in pruning. Of conversations the answers are
    learnt."""
    evaluation: tuple[str, ...] = ()
    """Further texts to measure on."""
    output: Path = Path("recovered")
    """Directory for the recovered model; must not exist yet, or be empty."""
    overwrite: bool = False
    """Replace an output directory that is not empty, once the new model is complete."""
    restart: bool = False
    """Begin anew, where an interrupted run left finished steps. Without it the same command goes on from
    there, and another one is refused."""
    tokens: int = 300_000
    """Tokens to train on, in whole steps; of a text that has fewer, rows are read again."""
    sequence_length: int = 512
    """Tokens of a row."""
    step_tokens: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """Tokens of a step (default: 2048, or as many more as give every device the same rows)."""
    save_every: int = 20
    """Steps after which what is finished is kept: what an interruption costs at most."""
    evaluation_length: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """Tokens in an evaluation window (default: as when it was pruned, or else 2048)."""
    evaluation_windows: int = 20
    """At most this many windows of each evaluation text."""
    bos: bool = False
    """Start every row and window with the tokenizer's BOS."""
    dtype: WeightType = "as-stored"
    """Type of the weights that are written."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations while the models run; what is trained is float32 either way."""
    seed: int = 0
    """Seed of what is drawn of the text, of its order, and of where the changes begin."""
    loss: Loss = dataclasses.field(default_factory=Loss)
    """Objective"""
    training: Training = dataclasses.field(default_factory=Training)
    """Training"""


class Task(NamedTuple):
    """What is trained, on what rows `[steps, A, B, T]`, how often each source is read for them, and what it
    is measured on."""

    model: LoadedModel
    teacher: LoadedModel | None
    rows: Examples
    passes: dict[str, float]
    spec: DataSpec
    texts: dict[str, np.ndarray]
    plan: Plan


def check(settings: FinetuneSettings) -> None:
    """Refuse settings that make no sense, each with its flag.

    Raises:
        UserError: a setting that cannot be.
    """
    training, length = settings.training, settings.sequence_length
    for flag, number, least in (
        ("--sequence-length", length, 2),
        ("--tokens", settings.tokens, length),
        ("--step-tokens", settings.step_tokens, length),
        ("--save-every", settings.save_every, 1),
        ("--evaluation-windows", settings.evaluation_windows, 1),
        ("--rank", training.rank, 1),
    ):
        require(number is None or number >= least, flag, number, f"at least {least}")
    for flag, value in (
        ("--learning-rate", training.learning_rate),
        ("--alpha", training.alpha),
        ("--clip", training.clip),
    ):
        require(value is None or 0 < value < math.inf, flag, value, "above 0 and finite")
    for flag, value in (("--weight-decay", training.weight_decay), ("--hidden", settings.loss.hidden)):
        require(0 <= value < math.inf, flag, value, "0 or more, and finite")
    require(0 <= training.warmup <= 1, "--warmup", training.warmup, "between 0 and 1")
    if settings.loss.hidden and not settings.loss.taught:
        raise UserError("--hidden compares with the dense model's hidden states; give --goal kd beside it")


def window_length(settings: FinetuneSettings, made: Provenance | None) -> int:
    """Tokens in an evaluation window.

    Raises:
        UserError: the model has learnt from some of the text, and windows of another length were held out.
    """
    asked, before = settings.evaluation_length, made.spec.evaluation_length if made else 2048
    known = [source for source in (*settings.data, *settings.evaluation) if made and made.has_learnt(source)]
    if known and asked not in (None, before):
        raise UserError(
            f"{settings.model} has learnt from {', '.join(known)}, of which windows of {before} tokens were "
            "held out: leave out --evaluation-length, or train and measure on other texts"
        )
    return before if asked is None else asked


def teacher_of(settings: FinetuneSettings, model: LoadedModel) -> LoadedModel | None:
    """The dense model, if it is asked.

    Raises:
        UserError: none is named, or it has another head or vocabulary.
    """
    if not settings.loss.taught:
        return None
    name = settings.teacher
    if name is None:
        record = summary.read_summary(settings.model)
        if record is None:
            raise UserError(
                f"{settings.model} does not say what it was pruned from: name the dense model with "
                "--teacher, or train with --goal next-token"
            )
        name = str(record["settings"]["model"])
    teacher = load_model(name, settings.compute_dtype)
    ours, theirs = (np.asarray(decoder.head(one.params), np.float32) for one in (model, teacher))
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{name} has another head than {settings.model}: the teacher must be the model that was pruned"
        )
    return dataclasses.replace(teacher, params=devices.spread(teacher.params, teacher.config.hidden))


def prepare(settings: FinetuneSettings, desk: Workspace) -> Task:
    """Load models and text.

    Raises:
        UserError: anything about them that cannot work.
    """
    check(settings)
    with desk.progress.stage("load models", 1, "models") as stage:
        model = load_model(settings.model, settings.compute_dtype)
        model = dataclasses.replace(model, params=devices.spread(model.params, model.config.hidden))
        teacher = teacher_of(settings, model)
        stage.advance()
    made = provenance_of(settings.model)
    length = window_length(settings, made)
    check_length("--sequence-length", settings.sequence_length, model)
    check_length("--evaluation-length", length, model)
    with desk.progress.stage("read text", 1, "texts") as stage:
        sources = list(leaves(map(parse_source, settings.data)))
        texts = [source for source in sources if examples.holds_text(source)]
        held = [source for source in settings.evaluation if made and made.has_learnt(source)]
        spec = DataSpec(
            calibration=(*(f"{source.label}@{source.weight}" for source in texts), *held),
            evaluation=settings.evaluation,
            sequence_length=settings.sequence_length,
            evaluation_length=length,
            evaluation_windows=settings.evaluation_windows,
            bos=settings.bos,
            chat_template=bool(made and made.spec.chat_template),
        )
        shape = step_shape(settings)
        rows, passes = examples.load(sources, spec, math.prod(shape), model.tokenizer, settings.seed)
        rows = Examples(*(array.reshape(*shape, -1) for array in rows))
        windows = load_evaluation(spec, model.tokenizer)
        stage.advance()
    if again := [f"{label} ({times:.1f} times)" for label, times in passes.items() if times > 1]:
        desk.progress.log(f"read again, for as many tokens: {', '.join(again)}")
    taught = None if teacher is None else teacher.config
    plan = Plan(model.config, taught, settings.training, settings.loss, shape[0])
    resume.check_inputs(desk.store, model.params, [*rows, *windows.values()])
    return Task(model, teacher, rows, passes, spec, windows, plan)


def step_rows(settings: FinetuneSettings) -> int:
    """Rows of a step."""
    if settings.step_tokens is not None:
        return settings.step_tokens // settings.sequence_length
    n = devices.count()
    return n * -(-max(1, STEP_TOKENS // settings.sequence_length) // n)


def step_shape(settings: FinetuneSettings) -> tuple[int, int, int]:
    """(steps, batches of each, rows of each).

    Raises:
        UserError: a step's rows are not a multiple of the number of devices, or there are too few.
    """
    length = settings.sequence_length
    together, count, n = step_rows(settings), settings.tokens // length, devices.count()
    if together % n:
        raise UserError(
            f"a step has {together} rows of {length} tokens, no multiple of the {n} devices: choose another "
            "--step-tokens"
        )
    if count < together:
        raise UserError(
            f"{count} rows are fewer than a step's {together}: raise --tokens or lower --step-tokens"
        )
    most = n * max(1, ROW_TOKENS // length)
    width = max(rows for rows in range(n, together + 1, n) if together % rows == 0 and rows <= most)
    return count // together, together // width, width


def kept_state(store: Store, begun: State) -> tuple[int, State, list[float]]:
    """(steps done, the state after them, their losses), or where training begins."""
    last = store.last_step("step")
    if last is None:
        return 0, begun, []
    done, saved = last
    leaves = [jnp.asarray(array) for array in saved.arrays]
    return done, jax.tree.unflatten(jax.tree.structure(begun), leaves), saved.facts["losses"]


def train_model(settings: FinetuneSettings, desk: Workspace, task: Task) -> tuple[Any, list[float]]:
    """Train: (what is trained, the loss of every step).

    Raises:
        UserError: the loss is not finite.
    """
    begun = train.begin(task.model.params, task.plan, settings.seed)
    done, state, losses = kept_state(desk.store, begun)
    models = Models(
        adapters.frozen(task.model.params, settings.training.method),
        None if task.teacher is None else task.teacher.params,
    )
    tokens = task.rows.tokens[0].size
    with desk.progress.stage("train", task.plan.steps * tokens, "tokens") as stage:
        if done:
            stage.advance(done * tokens, note=resume.KEPT)
        for number in range(done + 1, task.plan.steps + 1):
            rows = TrainingRows(*(devices.place(jnp.asarray(array[number - 1]), 1) for array in task.rows))
            state, loss = train.step(state, models, rows, task.plan)
            losses.append(float(loss))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss of step {number} is not finite; lower --learning-rate, or raise --warmup"
                )
            desk.events.write("step", step=number, loss=losses[-1])
            if number % settings.save_every == 0 or number == task.plan.steps:
                desk.store.save_step("step", number, jax.tree.leaves(state), {"losses": losses})
            stage.advance(tokens, note=f"loss {losses[-1]:.4f}")
    return state.trained, losses


def measure(desk: Workspace, task: Task, params: Any, name: str, dense: dict[str, Prediction]) -> Qualities:
    """Quality of the model called `name` on every evaluation text."""
    count = sum(map(len, task.texts.values()))
    with desk.progress.stage(f"evaluate {name}", count, "windows") as stage:
        found = resume.kept_qualities(desk.store, name)
        if found is not None:
            stage.advance(count, note=resume.KEPT)
            return found
        found = {
            text: quality.measure(params, windows, task.model.config, dense.get(text), stage.advance)
            for text, windows in task.texts.items()
        }
    resume.keep_qualities(desk.store, name, found)
    return found


def evaluate_teacher(desk: Workspace, task: Task) -> tuple[dict[str, Prediction], Qualities]:
    """The dense model's predictions on every evaluation text, and its quality there; nothing without it."""
    if task.teacher is None:
        return {}, {}
    predictions, found = {}, {}
    with desk.progress.stage("evaluate dense", sum(map(len, task.texts.values())), "windows") as stage:
        for text, windows in task.texts.items():
            predictions[text], found[text] = quality.measure_dense(
                task.teacher.params, windows, task.teacher.config, stage.advance
            )
    return predictions, found


def run(settings: FinetuneSettings, arguments: list[str]) -> None:
    """Train, write the output directory, print the table.

    Raises:
        UserError: anything that cannot work.
    """
    data, evaluation = (tuple(map(anchored, names)) for names in (settings.data, settings.evaluation))
    settings = dataclasses.replace(settings, data=data, evaluation=evaluation)
    with job.open_workspace(settings, arguments) as desk:
        task = prepare(settings, desk)
        predictions, dense = evaluate_teacher(desk, task)
        before = measure(desk, task, task.model.params, "pruned", predictions)
        trained, losses = train_model(settings, desk, task)
        training = settings.training
        rest = adapters.frozen(task.model.params, training.method)
        params = adapters.merged(rest, trained, training.method, training.scale)
        dtype = task.model.stored_dtype if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
        compute = jnp.dtype(settings.compute_dtype)
        params = jax.tree.map(lambda array: array.astype(dtype).astype(compute), params)
        after = measure(desk, task, params, "recovered", predictions)
        qualities = {"dense": dense, "pruned": before, "recovered": after}
        write(desk, settings, task, params, dtype)
        record = record_of(settings, arguments, task, qualities, losses)
        record["seconds"] = summary.rounded(desk.progress.timings)
        write_json(desk.staging / RECOVERY, record)
        if pruned := summary.read_summary(desk.staging):
            write_report(desk.staging, pruned, record)
    print_table(record, settings.output)


def write(desk: Workspace, settings: FinetuneSettings, task: Task, params: Any, dtype: np.dtype) -> None:
    """Write the model, and what its directory said of how it was pruned."""
    model = task.model
    with desk.progress.stage("write", 1, "models") as stage:
        save_model(
            desk.staging,
            model.config,
            params,
            model.hf_config,
            model.tokenizer,
            model.generation_config,
            dtype=dtype,
        )
        pruned = Path(settings.model) / "summary.json"
        if pruned.is_file():
            shutil.copy(pruned, desk.staging / pruned.name)
        stage.advance()


def record_of(
    settings: FinetuneSettings,
    arguments: list[str],
    task: Task,
    qualities: dict[str, Qualities],
    losses: list[float],
) -> dict[str, Any]:
    """What was done, with what, and what came of it, as JSON has it."""
    sources = leaves(map(parse_source, settings.data))
    return {
        "arguments": arguments,
        "settings": files.as_json(settings),
        "versions": {"tyr_jax": __version__}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "sources": [describe(source) for source in sources],
        "text": files.as_json(task.spec),
        "fingerprints": {name: fingerprint(windows) for name, windows in task.texts.items()},
        "passes": {label: round(times, 2) for label, times in task.passes.items()},
        "learning_rate": settings.training.rate(task.model.config.hidden),
        "trained_tokens": task.rows.tokens.size,
        "losses": losses,
        "quality": {
            model: {text: figures(measured) for text, measured in found.items()}
            for model, found in qualities.items()
        },
    }


def figures(measured: Quality) -> dict[str, float | None]:
    """A model's quality as JSON has it: without a dense model there is no divergence from it."""
    return {"perplexity": measured.perplexity, "kl": measured.kl if math.isfinite(measured.kl) else None}


def regained(dense: float, pruned: float, recovered: float) -> str:
    """Of what pruning cost in log-perplexity, the share that is there again, from perplexities; a dash where
    it cost nothing."""
    return f"{math.log(pruned / recovered) / math.log(pruned / dense):.0%}" if pruned > dense else "–"


def print_table(record: dict[str, Any], output: Path) -> None:
    """Perplexities before and after."""
    found = record["quality"]
    columns = [name for name in ("dense", "pruned", "recovered") if found[name]]
    table = summary.plain_table(
        f"perplexity of {output}", *columns, *(["regained"] if found["dense"] else [])
    )
    for text in found["pruned"]:
        values = [found[name][text]["perplexity"] for name in columns]
        share = [regained(*values)] if found["dense"] else []
        table.add_row(text, *(f"{value:.3f}" for value in values), *share)
    summary.Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the recovery job."""
    given = sys.argv[1:] if arguments is None else arguments
    command.execute(
        lambda settings: run(settings, given),
        tyro.conf.OmitArgPrefixes[FinetuneSettings],
        given,
        prog="python -m tyr_jax.finetune",
        description=__doc__,
    )


if __name__ == "__main__":
    main()
