"""How many searches a second: one program on the device, the host's loop, and algorithms of evosax. Usage:

  python scripts/bench_searches.py

Each search runs a number of generations of 32 candidates on a synthetic problem of SmolLM2's size. On the
device, 1 to 256 searches run side by side, and the largest number also with each core of a CPU as a device of
its own. The host's loop runs one, with compiled steps and the same compiled fitness. Evolution also runs on
an exact problem, for fewer generations, with candidates that are scored on one sequence of 64 tokens.
Algorithms of evosax run by themselves, without budget and levels, on a sphere of as many dimensions, as one
program too. Times exclude compilation, and are medians of interleaved repeats. The FLOPs are those of the
fitness: on the synthetic problem, for every candidate and sequence, a product of its features with the table
of pairs, and its costs; on the exact one, a forward pass of what the start keeps.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate

from tyr_jax.cli import command
from tyr_jax.model import cost
from tyr_jax.problems import Problem, load_problem, stack_problems, synthetic_problem
from tyr_jax.runtime import devices
from tyr_jax.runtime.timing import medians
from tyr_jax.search import loop
from tyr_jax.search.contract import Query, Search
from tyr_jax.search.device import search_many
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.evosax_adapter import Evosax, algorithm_of
from tyr_jax.space import values_at

DEPTH, SEQUENCES, CANDIDATES = 30, 8, 32
EXACT, EXACT_GENERATIONS = "exact-50-units", 2

ALONE = "CMA_ES", "SNES", "Open_ES"
"""Algorithms of evosax that run on a sphere."""

ON_EXACT = "evolution on an exact problem"
"""How the table calls it."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to measure."""

    generations: int = 50
    """Generations of each search."""
    together: tuple[int, ...] = (1, 16, 256)
    """Searches side by side."""
    repeats: int = 3
    """Timings of each, interleaved."""


answered = jax.jit(lambda problem, query: problem.answer(query))


def on_host(search: Search, problem: Problem) -> np.ndarray:
    """What the host's loop finds."""

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.asarray(answered(problem, Query(candidates, sequences)))

    begun = loop.begin_search(search, jax.random.key(0), np.asarray(problem.start), problem.space)
    return loop.run(search, begun, problem.space, score)


@functools.partial(jax.jit, static_argnames=("name", "generations"))
def evosax_alone(keys: jax.Array, name: str, generations: int) -> jax.Array:
    """The best fitness of an algorithm of evosax on a sphere, for each of `keys`."""
    algorithm = algorithm_of(name, CANDIDATES, (2, DEPTH))
    parameters = algorithm.default_params

    def one(key: jax.Array) -> jax.Array:
        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            asked, state = algorithm.ask(key, state, parameters)
            fitness = jnp.sum((asked - 1.0) ** 2, axis=(1, 2))
            return algorithm.tell(key, asked, fitness, state, parameters)[0], None

        begun = algorithm.init(key, jnp.zeros((2, DEPTH)), parameters)
        return jax.lax.scan(step, begun, jax.random.split(key, generations))[0].best_fitness

    return jax.vmap(one)(keys)


def made() -> Problem:
    """The problem."""
    return synthetic_problem(depth=DEPTH, sequences=SEQUENCES, length=128, noise=0.5)


def searches_of(generations: int) -> dict[str, Search]:
    """The searches on it, by name."""
    text = SEQUENCES * 128
    return {
        "evolution": Evolution(generations, CANDIDATES, (1,), (text,)),
        "CMA-ES on levels": Evosax(generations, "CMA_ES", CANDIDATES, score_tokens=text),
    }


def together(bench: Bench, count: int) -> dict[str, Callable[[], Any]]:
    """Runs of `count` searches as one program, by search."""
    many, keys = stack_problems([made()] * count), jax.random.split(jax.random.key(0), count)
    exact = load_problem(EXACT)
    search = Evolution(EXACT_GENERATIONS, CANDIDATES, (1,), (exact.space.length,))
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(search_many, search, keys, many)
        for name, search in searches_of(bench.generations).items()
    }
    return runs | {ON_EXACT: functools.partial(search_many, search, keys, exact, shared=True)}


def divided(bench: Bench, count: int, cores: int) -> dict[str, float]:
    """Seconds that `count` searches take on as many devices as there are `cores`, by search. For a process of
    its own, because JAX divides the CPU only once."""
    jax.config.update("jax_num_cpu_devices", cores)
    with devices.in_use():
        return medians(together(bench, count), bench.repeats)


def flops_of_runs(bench: Bench) -> dict[str, float]:
    """FLOPs of the fitness in a run, by search."""
    sites, candidates = 2 * DEPTH, bench.generations * (CANDIDATES + 1)
    tables = candidates * SEQUENCES * (2 * sites * sites + 2 * sites * 9)
    exact = load_problem(EXACT)
    config, length = exact.scoring.config, exact.space.length
    kept = values_at(np.asarray(exact.space.kept), np.asarray(exact.start))
    token = cost.block_flops(config, kept, length) + cost.head_flops(config)
    forward = EXACT_GENERATIONS * (CANDIDATES + 1) * length * token
    return dict.fromkeys(searches_of(1), float(tables)) | {ON_EXACT: forward}


def main(bench: Bench) -> None:
    """Print a row for each way to run and number of searches."""
    problem, searches = made(), searches_of(bench.generations)
    runs: dict[tuple[str, str, int], Callable[[], Any]] = {}
    for count in bench.together:
        keys = jax.random.split(jax.random.key(0), count)
        runs |= {(name, "one program", count): run for name, run in together(bench, count).items()}
        for name in ALONE:
            alone = functools.partial(evosax_alone, keys, name, bench.generations)
            runs[f"evosax's {name} on a sphere", "one program", count] = alone
    for name, search in searches.items():
        runs[name, "the host's loop", 1] = functools.partial(on_host, search, problem)
    found = medians({str(what): run for what, run in runs.items()}, bench.repeats)
    times = {what: found[str(what)] for what in runs}
    cores, most = os.cpu_count() or 1, max(bench.together)
    if jax.default_backend() == "cpu" and most % cores == 0:
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            for name, seconds in apart.submit(divided, bench, most, cores).result().items():
                times[name, f"one program on {cores} devices", most] = seconds
    flops, rate = flops_of_runs(bench), matmul_rate()
    print_header("search", "how", "side by side", "searches/s", "candidates/s", "of the matmul rate")
    for (name, how, count), seconds in sorted(times.items()):
        speed = count / seconds
        generations = EXACT_GENERATIONS if name == ON_EXACT else bench.generations
        candidates = f"{speed * generations * CANDIDATES:,.0f}"
        share = f"{speed * flops[name] / rate:.1%}" if name in flops else "–"
        print_row(name, how, count, f"{speed:,.1f}", candidates, share)


if __name__ == "__main__":
    command.execute(main, Bench, None, prog="python scripts/bench_searches.py", description=__doc__)
