"""Is it faster? `python -m tyr_jax.benchmark DENSE PRUNED`.

Measures the time to the first token and the time of each token after it, of a
dense and a pruned model in turn, in JAX and (with --llama-cpp) in llama.cpp.
Each speed-up is shown next to the one that FLOPs or bytes would allow.

Example:

  python -m tyr_jax.benchmark builtin pruned --prompts 128 1024 --batches 1 8
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.evaluation.settings import BenchmarkSettings
from tyr_jax.files import write_json
from tyr_jax.report.files import changed_pages
from tyr_jax.results import claimed_benchmark, is_reported, update_reports
from tyr_jax.workspace.records import Speed


@dataclasses.dataclass(frozen=True)
class BenchmarkArguments:
    """What to compare, and where to write the figures."""

    dense: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DENSE")]
    """The dense model: a directory, a .gguf file, a hub id, or `builtin`."""
    pruned: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """The pruned model, likewise."""
    settings: command.Flat[BenchmarkSettings]
    reading: command.Flat[command.Reading]
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Where to write the figures as JSON (default: benchmark.json in the pruned model's directory)."""
    overwrite: bool = False
    """Replace the figures of an earlier benchmark there."""


def run(asked: BenchmarkArguments) -> None:
    """Time both models, print and write the figures, and show them in the pruned model's report.

    Raises:
        UserError: a problem with the models, the output or the settings.
    """
    directory = Path(asked.pruned)
    output = asked.output or (directory / Speed.file if directory.is_dir() else Path(Speed.file))
    dense, pruned = map(asked.reading.named, (asked.dense, asked.pruned))
    found = None
    try:
        with claimed_benchmark(output, asked.overwrite) as staged:
            found = api.benchmark_model(dense, pruned, settings=asked.settings)
            write_json(staged, found.as_json())
        written = [output, *update_reports(output)]
    finally:
        # Results take long to measure, so they are written before they are shown, and shown even if the write
        # fails.
        if found is not None:
            command.show(found.tables())
    command.tell_written(written)
    command.tell_kept(changed_pages(output.parent) if is_reported(output) else [])


def main(arguments: list[str]) -> None:
    """Entry point of the benchmark."""
    command.execute(
        run, BenchmarkArguments, arguments, prog="python -m tyr_jax.benchmark", description=__doc__
    )
