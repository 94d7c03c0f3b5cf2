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
from tyr_jax.evaluation.benchmark import Cases
from tyr_jax.files import write_json
from tyr_jax.results import Benchmark, claimed_benchmark, update_reports
from tyr_jax.run.models import Computation, NamedModel
from tyr_jax.settings import ComputeType
from tyr_jax.workspace.records import Speed


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to compare, and on what."""

    dense: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DENSE")]
    """The dense model: a directory, a .gguf file, a hub id, or `builtin`."""
    pruned: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """The pruned model, likewise."""
    prompts: tuple[int, ...] = Cases.prompts
    """Lengths of the prompt, in tokens."""
    batches: tuple[int, ...] = Cases.batches
    """Sequences that run together (llama.cpp: one)."""
    tokens: int = Cases.tokens
    """Tokens to generate in each timing."""
    repeats: int = Cases.repeats
    """How often each case is timed, dense and pruned in turn; the median is reported."""
    llama_cpp: bool = Cases.llama_cpp
    """Compare in llama.cpp as well, on float32 files; needs `tyr-jax[llama]`."""
    compute_dtype: ComputeType = Computation.compute_dtype
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Where to write the figures as JSON (default: benchmark.json in the pruned model's directory)."""
    overwrite: bool = False
    """Replace the figures of an earlier benchmark there."""
    family: command.Family = None
    ignore_keys: command.IgnoredKeys = ()


def run(settings: BenchmarkSettings) -> None:
    """Time both models, print and write the figures, and show them in the pruned model's report.

    Raises:
        UserError: a problem with the models, the output or the settings.
    """
    directory = Path(settings.pruned)
    output = settings.output or (directory / Speed.file if directory.is_dir() else Path(Speed.file))
    found = None
    try:
        with claimed_benchmark(output, settings.overwrite) as staged:
            found = measure(settings)
            write_json(staged, found.as_json())
        written = [output, *update_reports(output)]
    finally:
        # Results take long to measure, so they are written before they are shown, and shown even if the write
        # fails.
        if found is not None:
            command.show(found.tables())
    command.tell_written(written)


def measure(settings: BenchmarkSettings) -> Benchmark:
    """Time both models.

    Raises:
        UserError: a problem with the models or the settings.
    """
    return api.benchmark_model(
        NamedModel(settings.dense, settings.ignore_keys),
        NamedModel(settings.pruned, settings.ignore_keys),
        prompts=settings.prompts,
        batches=settings.batches,
        tokens=settings.tokens,
        repeats=settings.repeats,
        llama_cpp=settings.llama_cpp,
        compute_dtype=settings.compute_dtype,
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the benchmark."""
    command.execute(
        run, BenchmarkSettings, arguments, prog="python -m tyr_jax.benchmark", description=__doc__
    )


if __name__ == "__main__":
    main()
