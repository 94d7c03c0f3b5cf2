"""Time a dense and a pruned model in turn, on prompts and the tokens after them, in JAX and llama.cpp."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError, require
from tyr_jax.evaluation import generation
from tyr_jax.evaluation.settings import BenchmarkSettings
from tyr_jax.io import deci, llama_cpp
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.cost import block_flops, cache_bytes, decode_bytes, head_flops, unit_counts
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import count_parameters
from tyr_jax.runtime.timing import medians
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.records import MEASURES, MODELS, Sizes, Timing

Models = dict[str, LoadedModel]
"""The models, under the keys `dense` and `pruned`."""

Runs = dict[str, Callable[[], object]]
"""The function to time, by model."""


MOST_TOKENS = 2**22
"""Maximum number of tokens of all sequences of a case, prompts and what follows them."""


def validate(settings: BenchmarkSettings) -> None:
    """Check every value that can be checked before anything is read.

    Raises:
        UserError: names the flag and what is wanted.
    """
    for flag, values in (("--prompts", settings.prompts), ("--batches", settings.batches)):
        require(min(values, default=0) >= 1, flag, values, "numbers of at least 1")
    for flag, value in (("--tokens", settings.tokens), ("--repeats", settings.repeats)):
        require(value >= 1, flag, value, "at least 1")
    most = max(settings.batches) * settings.longest
    require(most <= MOST_TOKENS, "--batches × (--prompts + --tokens)", most, f"at most {MOST_TOKENS:,}")
    if settings.llama_cpp:
        llama_cpp.bindings()


def prefill_flops(config: ModelConfig, length: int) -> float:
    """FLOPs of a prompt of `length` tokens: all blocks, and the head after the last token."""
    return length * block_flops(config, unit_counts(config), length) + head_flops(config)


def read_bytes(config: ModelConfig, length: int, batch: int, itemsize: int) -> float:
    """Bytes of weights and cache read to decode a token of each of `batch` sequences of `length`."""
    cache = cache_bytes(config.layers, config.head_dim, itemsize)
    return decode_bytes(config, itemsize) + batch * length * cache


def decoding(params: Any, config: ModelConfig, start: Any, length: int, count: int) -> Callable[[], object]:
    """A function that decodes `count` steps from `start`, the (logits, cache) after prompts of `length`.

    Every call decodes at the same positions, and reuses the cache.
    """
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


def jax_runs(models: Models, length: int, batch: int, count: int) -> tuple[Runs, Runs]:
    """(prefill, `count` decoding steps after it) for each model, on `batch` prompts of `length` tokens."""
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
    """`jax_runs` in llama.cpp, for one sequence."""
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


@dataclasses.dataclass(frozen=True)
class Case:
    """One of the cases: `engine` runs `batch` prompts of `length` tokens, in numbers of `itemsize` bytes."""

    engine: str
    length: int
    batch: int
    itemsize: int


def compare(runs: tuple[Runs, Runs], models: Models, case: Case, settings: BenchmarkSettings) -> list[Timing]:
    """Time one case: a timing of the prompt, and one of the tokens after it."""
    configs = {name: model.config for name, model in models.items()}
    run = case.length, case.batch, case.itemsize
    limits = (
        {name: prefill_flops(config, case.length) for name, config in configs.items()},
        {name: read_bytes(config, *run) for name, config in configs.items()},
    )
    units = (1.0, settings.tokens)
    timings = []
    for measure, work, limit, unit in zip(MEASURES, runs, limits, units, strict=True):
        seconds = medians(work, settings.repeats)
        dense, pruned = (seconds[model] / unit for model in MODELS)
        timings.append(
            Timing(
                engine=case.engine,
                prompt=case.length,
                batch=case.batch,
                measure=measure,
                dense=dense,
                pruned=pruned,
                limit=limit["dense"] / limit["pruned"],
            )
        )
    return timings


def computed_itemsize(model: LoadedModel) -> int:
    """Bytes of a number while a model runs in JAX."""
    return model.params["embed"].dtype.itemsize


def sizes(models: Models) -> Sizes:
    """Parameters, bytes, and cache bytes per token of each model."""
    return {
        name: {
            "parameters": count_parameters(model.config)[1],
            "bytes": count_parameters(model.config)[1] * model.stored_dtype.itemsize,
            "cache_bytes_per_token": cache_bytes(
                model.config.layers, model.config.head_dim, computed_itemsize(model)
            ),
        }
        for name, model in models.items()
    }


def time_models(models: Models, settings: BenchmarkSettings, progress: Progress) -> list[Timing]:
    """Time every case in JAX, and in llama.cpp if `settings` ask for it.

    Raises:
        UserError: a model has too few positions for the longest case.
    """
    for model in models.values():
        if settings.longest > model.config.context:
            raise UserError(
                f"--prompts and --tokens need {settings.longest} positions, but {model.source} has only "
                f"{model.config.context}; lower them"
            )
    timings = []
    pairs = [(length, batch) for length in settings.prompts for batch in settings.batches]
    itemsize = computed_itemsize(models["dense"])
    with progress.stage("JAX", len(pairs), "cases") as stage:
        for length, batch in pairs:
            runs = jax_runs(models, length, batch, settings.tokens)
            timings += compare(runs, models, Case("JAX", length, batch, itemsize), settings)
            stage.advance()
    return timings + (time_in_llama_cpp(models, settings, progress) if settings.llama_cpp else [])


def time_in_llama_cpp(models: Models, settings: BenchmarkSettings, progress: Progress) -> list[Timing]:
    """Time every prompt length in llama.cpp, on float32 files."""
    timings = []
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        sessions = {}
        for name, model in models.items():
            path = Path(directory) / f"{name}.gguf"
            deci.write_gguf(path, model.config, model.params, model.tokenizer, "f32")
            sessions[name] = stack.enter_context(llama_cpp.session(path, settings.longest))
        with progress.stage("llama.cpp", len(settings.prompts), "cases") as stage:
            for length in settings.prompts:
                runs = llama_runs(sessions, length, settings.tokens)
                timings += compare(runs, models, Case("llama.cpp", length, 1, 4), settings)
                stage.advance()
    return timings
