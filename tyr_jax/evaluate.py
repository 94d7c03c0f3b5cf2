"""Perplexity of a model, dense or pruned: `python -m tyr_jax.evaluate MODEL`.

A directory written by `python -m tyr_jax.prune` is measured on the very windows
of text it was measured on when it was made, and the figures are held against
those in its summary. Any other model, or other text, works too.

Examples:

  python -m tyr_jax.evaluate pruned

  python -m tyr_jax.evaluate builtin --evaluation my-text.txt \\
      --evaluation-windows 20
"""

import dataclasses
import json
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from tyr_jax import command, devices, quality
from tyr_jax.data import DataSpec, fingerprint, load_evaluation
from tyr_jax.io.checkpoint import load_model
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
    summary = read_summary(settings.model)
    spec = data_spec(settings, summary)
    with devices.in_use(), Progress() as progress:
        with progress.stage("load model", 1, "models") as stage:
            model = load_model(settings.model)
            params = devices.spread(model.params, model.config.hidden)
            stage.advance()
        check_length("--evaluation-length", spec.evaluation_length, model)
        texts = load_evaluation(spec, model.tokenizer)
        with progress.stage("evaluate", sum(map(len, texts.values())), "windows") as stage:
            measured = {
                name: quality.measure(params, windows, model.config, on_windows=stage.advance)
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
