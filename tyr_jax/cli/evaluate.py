"""How good a model is, dense or pruned: `python -m tyr_jax.evaluate MODEL`.

Without more, that is its perplexity. A directory written by `python -m
tyr_jax.prune` or `finetune` is measured on the very windows of text it was
measured on when it was made, and the figures are held against those of then.
Any other model, or other text, works too; of text that the model has learnt
from, only what was held out is read.

With --tasks, it is what lm-evaluation-harness makes of it (pip install
'tyr-jax[tasks]'): the harness's own questions, prompts and metrics.

Examples:

  python -m tyr_jax.evaluate pruned

  python -m tyr_jax.evaluate builtin --evaluation my-text.txt \\
      --evaluation-windows 20

  python -m tyr_jax.evaluate pruned --tasks arc_easy,hellaswag --limit 200
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from tyr_jax.cli import command
from tyr_jax.data import DataSpec, evaluation_sources, load_evaluation
from tyr_jax.errors import UserError, first_line
from tyr_jax.evaluation import quality
from tyr_jax.io.checkpoint import LoadedModel, check_length, load_model
from tyr_jax.report.provenance import Provenance, provenance_of
from tyr_jax.runtime import devices
from tyr_jax.workspace.progress import Progress

OPTIONAL = tyro.conf.arg(help_behavior_hint="")
"""For options whose default is said in words."""


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What to measure, and on what."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    evaluation: Annotated[tuple[str, ...], OPTIONAL] = ()
    """Texts: `builtin`, .txt, .jsonl or .parquet files, hub datasets (default: those the model was measured
    on when it was pruned, or else `builtin`)."""
    evaluation_length: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """Tokens in a window (default: as when it was pruned, or else 2048)."""
    evaluation_windows: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """At most this many windows of each text (default: as when it was pruned, or else 20)."""
    bos: Annotated[bool | None, OPTIONAL] = None
    """Start every window with the tokenizer's BOS (default: as when it was pruned, or else not)."""
    chat_template: Annotated[bool | None, OPTIONAL] = None
    """Render conversations with the model's chat template (default: likewise)."""
    tasks: Annotated[str, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = ""
    """Tasks of lm-evaluation-harness to answer, in place of perplexity."""
    num_fewshot: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """Examples before a question (default: as the task has it)."""
    limit: Annotated[int | None, OPTIONAL, tyro.conf.arg(metavar="INT")] = None
    """At most this many questions of each task (default: all)."""
    data_dir: Annotated[Path | None, OPTIONAL, tyro.conf.arg(metavar="DIR")] = None
    """Where the tasks' datasets are, each under its name on the hub, such as DIR/allenai/ai2_arc (default:
    the hub)."""
    json: bool = False
    """Print JSON on stdout in place of the table."""


def data_spec(settings: EvaluateSettings, made: Provenance | None) -> DataSpec:
    """The text to measure on: what the model was measured on when it was made, with what the user asked for
    in its place. Of text that it has learnt from, the windows that were held out.

    Raises:
        UserError: there are none of the length that is asked for.
    """
    asked = {
        field: getattr(settings, field)
        for field in ("evaluation_length", "evaluation_windows", "bos", "chat_template")
        if getattr(settings, field) is not None
    }
    if made is None:
        return DataSpec(calibration=(), evaluation=settings.evaluation or ("builtin",), **asked)
    spec = dataclasses.replace(made.spec, **asked)
    if settings.evaluation:
        held = tuple(source for source in settings.evaluation if made.has_learnt(source))
        others = tuple(source for source in settings.evaluation if source not in held)
        spec = dataclasses.replace(spec, calibration=held, evaluation=others)
    if spec.calibration and spec.evaluation_length != made.spec.evaluation_length:
        raise UserError(
            f"{settings.model} has learnt from {', '.join(spec.calibration)}, of which windows of "
            f"{made.spec.evaluation_length} tokens were held out: leave out --evaluation-length, or name "
            "other texts with --evaluation"
        )
    return spec


def run(settings: EvaluateSettings) -> None:
    """Measure and print."""
    if settings.tasks:
        on_tasks(settings)
    else:
        on_texts(settings)


def load(name: str, progress: Progress) -> LoadedModel:
    """The model of that name, its weights divided among the devices."""
    with progress.stage("load model", 1, "models") as stage:
        model = load_model(name)
        model = dataclasses.replace(model, params=devices.spread(model.params, model.config.hidden))
        stage.advance()
    return model


def on_texts(settings: EvaluateSettings) -> None:
    """Perplexity on every text."""
    made = provenance_of(settings.model)
    spec = data_spec(settings, made)
    with devices.in_use(), Progress() as progress:
        model = load(settings.model, progress)
        check_length("--evaluation-length", spec.evaluation_length, model)
        texts = load_evaluation(spec, model.tokenizer)
        with progress.stage("evaluate", sum(map(len, texts.values())), "windows") as stage:
            measured = {
                name: quality.measure(model.params, windows, model.config, on_windows=stage.advance)
                for name, windows in texts.items()
            }
    sources = evaluation_sources(spec)
    rows = [
        {
            "text": name,
            "source": sources[name][0],
            "part": sources[name][1],
            "windows": len(texts[name]),
            "length": int(texts[name].shape[1]),
            "tokens": int(texts[name].size),
            "bos": spec.bos,
            "perplexity": result.perplexity,
            "perplexity_when_made": made and made.perplexity(name, texts[name]),
        }
        for name, result in measured.items()
    ]
    if settings.json:
        print(json.dumps({"model": settings.model, "texts": rows}, indent=2))
    else:
        print_rows(settings.model, rows)


def on_tasks(settings: EvaluateSettings) -> None:
    """Metrics of every task and group of tasks, with their standard errors.

    Raises:
        UserError: lm-evaluation-harness is not installed.
    """
    try:
        from tyr_jax.evaluation import harness
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-evaluation-harness ({first_line(error)}): pip install 'tyr-jax[tasks]'"
        ) from None
    names = [name.strip() for name in settings.tasks.split(",") if name.strip()]
    with devices.in_use(), Progress() as progress:
        tasks = harness.load_tasks(names, settings.data_dir)
        model = load(settings.model, progress)
        results = harness.evaluate(
            model, tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, progress=progress
        )
    rows = harness.rows(results)
    if settings.json:
        print(json.dumps({"model": settings.model, "tasks": rows}, indent=2))
    else:
        print_tasks(settings.model, rows)


def print_tasks(model: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of metrics."""
    table = Table(title=f"tasks of {model}", title_justify="left")
    for column in ("task", "shots", "questions", "metric", "value", "± standard error"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for row in rows:
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        shots = "" if row["shots"] is None else str(row["shots"])
        table.add_row(row["task"], shots, str(row["questions"]), row["metric"], f"{row['value']:.4f}", error)
    Console().print(table)


def print_rows(model: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of perplexities."""
    bos = "with" if rows[0]["bos"] else "without"
    table = Table(title=f"perplexity of {model}, {bos} BOS", title_justify="left")
    for column in ("text", "part", "windows", "tokens", "perplexity", "when made"):
        table.add_column(column, justify="left" if column in ("text", "part") else "right")
    for row in rows:
        then = row["perplexity_when_made"]
        windows, tokens = f"{row['windows']} × {row['length']}", f"{row['tokens']:,}"
        figures = f"{row['perplexity']:.3f}", f"{then:.3f}" if then else ""
        table.add_row(row["text"], row["part"], windows, tokens, *figures)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the evaluation job."""
    command.execute(run, EvaluateSettings, arguments, prog="python -m tyr_jax.evaluate", description=__doc__)


if __name__ == "__main__":
    main()
