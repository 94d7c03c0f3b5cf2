"""Fair timings, for benchmarks."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)


def seconds(run: Callable[[], object]) -> float:
    """Seconds that `run` takes, until the arrays it returns are ready."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def medians(
    runs: Mapping[Name, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[Name, float]:
    """Median seconds of each of `runs`. They are called once untimed (`warm_up`) and then in turn, so that
    all meet the same noise."""
    for run in runs.values() if warm_up else ():
        jax.block_until_ready(run())
    times: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}
