"""What the benchmarks share: fair timings, FLOPs of a model, the machine's matmul rate."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import ModelConfig


def seconds(run: Callable[[], object]) -> float:
    """How long `run` takes, until the arrays it returns are there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def medians(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each of `runs`, called once untimed (`warm_up`) and then in turn, so that all meet
    the same noise."""
    for run in runs.values() if warm_up else ():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_rate(size: int = 1536, rows: int = 4096) -> float:
    """FLOP/s of a float32 product, the median of ten."""
    a, b = jnp.ones((rows, size)), jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return 2 * rows * size * size / medians({"": lambda: product(a, b)}, 10)[""]


def dense_units(config: ModelConfig) -> np.ndarray:
    """Heads and neurons of every layer `[2, L]`."""
    return np.array([[layer.heads, layer.ffn] for layer in config.layers]).T


def block_flops(config: ModelConfig, units: np.ndarray, length: int, chunk: int = 1) -> float:
    """FLOPs of a token in all blocks with `units [2, L]` heads and neurons, attention computed in chunks of
    `chunk` query rows (1: what the causal half needs)."""
    heads, neurons = units.astype(float)
    hidden, dim = config.hidden, config.head_dim
    kv = np.minimum(heads, config.dense_shape.kv_heads)
    keys = np.mean([min(length, (row // chunk + 1) * chunk) for row in range(length)])
    attention = 4 * hidden * dim * (heads + kv) + 4 * dim * heads * keys
    return float(np.sum(attention + 6 * hidden * neurons))


def head_flops(config: ModelConfig) -> float:
    """FLOPs of a token in the head."""
    return 2.0 * config.hidden * config.vocab
