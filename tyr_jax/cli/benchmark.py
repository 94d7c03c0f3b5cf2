"""Is it faster? `python -m tyr_jax.benchmark DENSE PRUNED`.

Time to the first token and tokens a second after it, of a dense model and a
pruned one, in turn and in one run, in JAX and (with --llama-cpp) in llama.cpp;
beside each ratio the one that FLOPs or bytes would allow.

Example:

  python -m tyr_jax.benchmark builtin pruned --prompts 128 1024 --batches 1 8
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from tyr_jax.cli import command
from tyr_jax.errors import UserError, require
from tyr_jax.evaluation import generation
from tyr_jax.evaluation.speed import MEASURES, NAME, Timing, as_json
from tyr_jax.io import deci, llama_cpp
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.cost import block_flops, cache_bytes, decode_bytes, head_flops, unit_counts
from tyr_jax.model.spec import ModelConfig, count_parameters
from tyr_jax.report import write_report
from tyr_jax.report.summary import read_summary
from tyr_jax.runtime.timing import medians
from tyr_jax.workspace.files import write_json
from tyr_jax.workspace.progress import Progress

MODELS = ("dense", "pruned")


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """What to compare, and on what."""

    dense: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DENSE")]
    """The dense model: a directory, a .gguf file, a hub id, or `builtin`."""
    pruned: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """The pruned one."""
    prompts: tuple[int, ...] = (128, 512)
    """Lengths of the prompt, in tokens."""
    batches: tuple[int, ...] = (1, 4)
    """Sequences that run together (llama.cpp: one)."""
    tokens: int = 16
    """Tokens that are generated in a timing."""
    repeats: int = 5
    """Timings of each, dense and pruned in turn; the median counts."""
    llama_cpp: bool = False
    """Compare in llama.cpp as well, on float32 files; needs `tyr-jax[llama]`."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Where to write the figures as JSON (default: benchmark.json in the pruned model's directory)."""


def validate(settings: BenchmarkSettings) -> None:
    """Check every value that can be checked before anything is read.

    Raises:
        UserError: names the flag and what is wanted.
    """
    for flag, values in (("--prompts", settings.prompts), ("--batches", settings.batches)):
        require(min(values, default=0) >= 1, flag, values, "numbers from 1 on")
    for flag, value in (("--tokens", settings.tokens), ("--repeats", settings.repeats)):
        require(value >= 1, flag, value, "at least 1")
    if settings.llama_cpp:
        llama_cpp.bindings()


def prefill_flops(config: ModelConfig, length: int) -> float:
    """FLOPs of a prompt of `length` tokens: all blocks, and the head after the last token."""
    return length * block_flops(config, unit_counts(config), length) + head_flops(config)


def read_bytes(config: ModelConfig, length: int, batch: int) -> float:
    """Bytes of float32 weights and cache read for the next tokens of `batch` sequences of `length`."""
    return decode_bytes(config, 4) + batch * length * cache_bytes(config.layers, config.head_dim, 4)


Runs = dict[str, Callable[[], object]]
"""What to time, by model."""


def decoding(params: Any, config: ModelConfig, start: Any, length: int, count: int) -> Callable[[], object]:
    """`count` steps from `start`, (logits, cache) after prompts of `length`; again and again on its cache."""
    state = [start]
    key, lengths = jax.random.key(0), jnp.full(len(start[0]), length)

    def run() -> object:
        logits, cache = state.pop()
        for step in range(count):
            tokens = generation.sample(logits, key, step, generation.Sampling())
            logits, cache = generation.decode(params, tokens, lengths + step, cache, config)
        state.append((logits, cache))
        return logits

    return run


def jax_runs(models: dict[str, LoadedModel], length: int, batch: int, count: int) -> tuple[Runs, Runs]:
    """(prefills, `count` steps after one) of `batch` prompts of `length` tokens."""
    prompts, lengths = jnp.ones((batch, length), jnp.int32), jnp.full(batch, length)
    prefills: Runs = {}
    steps: Runs = {}
    for name, model in models.items():
        params, config = generation.unstack(model.params, model.config), model.config
        prefill = functools.partial(generation.prefill, params, prompts, lengths, config, length + count)
        prefills[name] = prefill
        steps[name] = decoding(params, config, prefill(), length, count)
    return prefills, steps


def llama_runs(sessions: dict[str, llama_cpp.Session], length: int, count: int) -> tuple[Runs, Runs]:
    """The same in llama.cpp, for one sequence."""
    prompt = np.ones(length, int)

    def prefill(session: llama_cpp.Session) -> None:
        session.clear()
        session.run(prompt, 0)

    def decode(session: llama_cpp.Session) -> None:
        session.forget(length)
        for step in range(count):
            session.run(prompt[:1], length + step)

    return tuple(
        {name: functools.partial(work, session) for name, session in sessions.items()}
        for work in (prefill, decode)
    )  # type: ignore[return-value]


def compare(
    runs: tuple[Runs, Runs],
    configs: dict[str, ModelConfig],
    engine: str,
    length: int,
    batch: int,
    settings: BenchmarkSettings,
) -> list[Timing]:
    """A timing of the prompt and one of the tokens after it."""
    limits = (
        {name: prefill_flops(config, length) for name, config in configs.items()},
        {name: read_bytes(config, length, batch) for name, config in configs.items()},
    )
    units = (1.0, settings.tokens)
    timings = []
    for measure, work, limit, unit in zip(MEASURES, runs, limits, units, strict=True):
        seconds = medians(work, settings.repeats)
        dense, pruned = (seconds[model] / unit for model in MODELS)
        allowed = limit["dense"] / limit["pruned"]
        timings.append(Timing(engine, length, batch, measure, dense, pruned, allowed))
    return timings


def sizes(models: dict[str, LoadedModel]) -> dict[str, dict[str, int]]:
    """Parameters, bytes in the type they are stored in, and bytes of float32 cache for a token."""
    return {
        name: {
            "parameters": count_parameters(model.config)[1],
            "bytes": count_parameters(model.config)[1] * model.stored_dtype.itemsize,
            "cache_bytes_per_token": cache_bytes(model.config.layers, model.config.head_dim, 4),
        }
        for name, model in models.items()
    }


def measure(models: dict[str, LoadedModel], settings: BenchmarkSettings, progress: Progress) -> list[Timing]:
    """All timings: both engines, every length and batch."""
    configs = {name: model.config for name, model in models.items()}
    cases = [(length, batch) for length in settings.prompts for batch in settings.batches]
    timings = []
    with progress.stage("JAX", len(cases), "cases") as stage:
        for length, batch in cases:
            runs = jax_runs(models, length, batch, settings.tokens)
            timings += compare(runs, configs, "JAX", length, batch, settings)
            stage.advance()
    if not settings.llama_cpp:
        return timings
    slots = max(settings.prompts) + settings.tokens
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        sessions = {}
        for name, model in models.items():
            path = Path(directory) / f"{name}.gguf"
            deci.write_gguf(path, model.config, model.params, model.tokenizer, "f32")
            sessions[name] = stack.enter_context(llama_cpp.session(path, slots))
        with progress.stage("llama.cpp", len(settings.prompts), "cases") as stage:
            for length in settings.prompts:
                runs = llama_runs(sessions, length, settings.tokens)
                timings += compare(runs, configs, "llama.cpp", length, 1, settings)
                stage.advance()
    return timings


def print_tables(timings: list[Timing], sizes: dict[str, dict[str, int]]) -> None:
    """Print what `measure` and `sizes` found."""
    table = Table(title="seconds, medians", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "prompt", "batch", *MODELS, "faster", "at best"):
        table.add_column(column, justify="right" if column else "left")
    for timing in timings:
        cells = [f"{timing.engine}, {timing.measure}", str(timing.prompt), str(timing.batch)]
        cells += [f"{timing.dense:.4f}", f"{timing.pruned:.4f}"]
        table.add_row(*cells, f"{timing.ratio:.2f}×", f"{timing.limit:.2f}×")
    console = Console()
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", *MODELS):
        table.add_column(column, justify="right" if column else "left")
    for label, key in (
        ("parameters", "parameters"),
        ("bytes", "bytes"),
        ("cache bytes for a token", "cache_bytes_per_token"),
    ):
        table.add_row(label, *(f"{sizes[model][key]:,}" for model in MODELS))
    console.print(table)


def run(settings: BenchmarkSettings) -> None:
    """Load both models, time them, print and write the figures, and show them in the pruned model's report.

    Raises:
        UserError: anything about the models, the output or the settings that cannot work.
    """
    validate(settings)
    names = {"dense": settings.dense, "pruned": settings.pruned}
    directory = Path(settings.pruned)
    output = settings.output or (directory / NAME if directory.is_dir() else Path(NAME))
    with Progress() as progress:
        models = {}
        with progress.stage("load models", 2, "models") as stage:
            for name, source in names.items():
                models[name] = load_model(source)
                stage.advance()
        longest = max(settings.prompts) + settings.tokens
        for model in models.values():
            if longest > model.config.max_positions:
                raise UserError(
                    f"--prompts and --tokens need {longest} positions, but {model.source} has only "
                    f"{model.config.max_positions}; lower them"
                )
        timings = measure(models, settings, progress)
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    rows = [as_json(timing) for timing in timings]
    result: dict[str, Any] = {"models": names, "device": device, "sizes": sizes(models), "rows": rows}
    print_tables(timings, result["sizes"])
    try:
        write_json(output, result)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; choose another with --output"
        ) from error
    print(f"written to {output}")
    if output == directory / NAME and (summary := read_summary(directory)):
        for path in write_report(directory, summary):
            print(f"written to {path}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the benchmark."""
    command.execute(
        run, BenchmarkSettings, arguments, prog="python -m tyr_jax.benchmark", description=__doc__
    )


if __name__ == "__main__":
    main()
