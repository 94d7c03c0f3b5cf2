"""How much faster a pruned model runs in JAX and in llama.cpp, next to the limit by FLOPs or bytes. Usage:

  python scripts/bench_serving.py builtin pruned

It prints how many times faster than the dense model the pruned one is, for the first token and for each token
after it. Times are medians, and the two models take turns. Next to each is the most that the FLOPs of a
prompt or the bytes of a token allow.
"""

import dataclasses
from typing import Annotated

import tyro
from markdown_table import print_header, print_row

import tyr_jax
from tyr_jax.cli import command
from tyr_jax.evaluation.settings import BenchmarkSettings
from tyr_jax.workspace.records import MEASURES, Timing


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to compare."""

    dense: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DENSE")]
    """The dense model."""
    pruned: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """The pruned model."""
    settings: command.Flat[BenchmarkSettings] = dataclasses.field(
        default_factory=lambda: BenchmarkSettings(repeats=9, llama_cpp=True)
    )


def main(bench: Bench) -> None:
    """Print a row per engine, prompt and batch."""
    found = tyr_jax.benchmark_model(bench.dense, bench.pruned, settings=bench.settings)
    cases: dict[tuple[str, int, int], dict[str, Timing]] = {}
    for timing in found.timings:
        cases.setdefault((timing.engine, timing.prompt, timing.batch), {})[timing.measure] = timing
    columns = [column for measure in MEASURES for column in (measure, "at best")]
    print_header("engine", "prompt", "batch", *columns)
    for case, timings in cases.items():
        cells = [
            f"{ratio:.2f}×"
            for measure in MEASURES
            for ratio in (timings[measure].ratio, timings[measure].limit)
        ]
        print_row(*case, *cells)


if __name__ == "__main__":
    command.execute(main, Bench, None, prog="python scripts/bench_serving.py", description=__doc__)
