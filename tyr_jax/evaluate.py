"""How good a model is, dense or pruned: `python -m tyr_jax.evaluate MODEL`.

Without more, that is its perplexity. A directory written by `python -m
tyr_jax.prune` is measured on the very windows of text it was measured on when it
was made, and the figures are held against those in its summary. Any other model,
or other text, works too.

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

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from tyr_jax import command, devices, quality
from tyr_jax.data import DataSpec, fingerprint, load_evaluation
from tyr_jax.errors import UserError, first_line
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.io.progress import Progress
from tyr_jax.prepare import check_length
from tyr_jax.summary import read_summary

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


def data_spec(settings: EvaluateSettings, summary: dict[str, Any] | None) -> DataSpec:
    """The text to measure on: the run's own, with what the user asked for in its place."""
    saved = summary["settings"]["data"] if summary else {}
    if settings.evaluation:
        saved = saved | {"calibration": (), "evaluation": settings.evaluation}
    elif not summary:
        saved = {"calibration": (), "evaluation": ("builtin",)}
    asked = {
        field: getattr(settings, field)
        for field in ("evaluation_length", "evaluation_windows", "bos", "chat_template")
        if getattr(settings, field) is not None
    }
    merged = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    return DataSpec(**(merged | asked))


def perplexity_when_pruned(summary: dict[str, Any] | None, name: str, windows: np.ndarray) -> float | None:
    """The run's own figure for text `name`, if it was measured on these very `windows [W, T]`."""
    if not summary or summary["texts"].get(name, {}).get("sha256") != fingerprint(windows):
        return None
    return (summary["searched"] or summary["uniform"])["quality"][name]["perplexity"]


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
    summary = read_summary(settings.model)
    spec = data_spec(settings, summary)
    with devices.in_use(), Progress() as progress:
        model = load(settings.model, progress)
        check_length("--evaluation-length", spec.evaluation_length, model)
        texts = load_evaluation(spec, model.tokenizer)
        with progress.stage("evaluate", sum(map(len, texts.values())), "windows") as stage:
            measured = {
                name: quality.measure(model.params, windows, model.config, on_windows=stage.advance)
                for name, windows in texts.items()
            }
    rows = [
        {
            "text": name,
            "windows": len(texts[name]),
            "length": int(texts[name].shape[1]),
            "bos": spec.bos,
            "perplexity": result.perplexity,
            "perplexity_when_pruned": perplexity_when_pruned(summary, name, texts[name]),
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
        from tyr_jax import harness
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
    table = Table(title=f"perplexity of {model}", title_justify="left")
    for column in ("text", "windows", "perplexity", "when pruned"):
        table.add_column(column, justify="left" if column == "text" else "right")
    for row in rows:
        then = row["perplexity_when_pruned"]
        windows = f"{row['windows']} × {row['length']}"
        table.add_row(row["text"], windows, f"{row['perplexity']:.3f}", f"{then:.3f}" if then else "")
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the evaluation job."""
    command.execute(run, EvaluateSettings, arguments, prog="python -m tyr_jax.evaluate", description=__doc__)


if __name__ == "__main__":
    main()
