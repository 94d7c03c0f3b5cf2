"""How fast the dense model runs: our forward, compared with torch's. Usage:

  python scripts/bench_forward.py

It prints the FLOPs executed per token, the tokens per second (median), and the share of the matmul rate that
these reach. Attention is counted as it is computed, in chunks of the causal half. The matmul rate is that of
the same type, measured in the same run.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate
from on_model import OnModel, torch_model

from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model import attention, decoder
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.prediction import log_normaliser
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime.timing import medians
from tyr_jax.settings import ComputeType


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence."""
    dtypes: tuple[ComputeType, ...] = ("float32", "bfloat16")
    """Types of weights and activations."""
    batch_tokens: int = 4096
    """Tokens that run at a time."""
    repeats: int = 5
    """Timings of each, interleaved."""


def torch_forward(config: ModelConfig, tokens: np.ndarray, dtype: ComputeType) -> Callable[[], object]:
    """A forward to the logits with transformers' Llama of the same shape."""
    import torch

    model = torch_model(config, dtype).eval()
    inputs = torch.from_numpy(tokens).long()

    def run() -> object:
        with torch.inference_mode():
            return model(inputs, use_cache=False).logits.shape

    return run


@functools.partial(jax.jit, static_argnames="config")
def normaliser(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Blocks and head: the log-normaliser of the logits, which costs as much as the whole head."""
    return log_normaliser(decoder.head(params), decoder.hidden_states(params, tokens, config))


def programs(model: LoadedModel, tokens: np.ndarray, dtype: ComputeType) -> dict[str, Callable[[], object]]:
    """What is timed on `tokens [B, T]`, by name."""
    inputs, config = jnp.asarray(tokens), model.config
    runs: dict[str, Callable[[], object]] = {
        "blocks": functools.partial(decoder.hidden_states, model.params, inputs, config),
        "blocks and head": functools.partial(normaliser, model.params, inputs, config),
    }
    if importlib.util.find_spec("torch"):
        runs["torch, logits"] = torch_forward(config, tokens, dtype)
    return runs


def flops_of_programs(config: ModelConfig, length: int) -> dict[str, float]:
    """FLOPs that each program executes for a token of a sequence of `length` tokens."""
    head, units = head_flops(config), unit_counts(config)
    blocks = block_flops(config, units, length, attention.QUERY_CHUNK)
    return {
        "blocks": blocks,
        "blocks and head": blocks + head,
        "torch, logits": block_flops(config, units, length, length) + head,
    }


def main(bench: Bench) -> None:
    """Print a row per length, program and type."""
    models = {dtype: bench.load(dtype) for dtype in bench.dtypes}
    config = next(iter(models.values())).config
    rates = {dtype: matmul_rate(dtype=dtype) for dtype in bench.dtypes}
    shown = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    print(f"matmul rate: {shown}; {bench.batch_tokens} tokens at a time")
    print_header("T", "type", "program", "MFLOP/token", "tokens/s", "of the matmul rate")
    for length in bench.lengths:
        tokens = np.random.default_rng(0).integers(0, config.vocab, (bench.batch_tokens // length, length))
        flops = flops_of_programs(config, length)
        runs = {
            (dtype, name): run
            for dtype, model in models.items()
            for name, run in programs(model, tokens, dtype).items()
        }
        for (dtype, name), time in medians(runs, bench.repeats).items():
            speed = bench.batch_tokens / time
            share = speed * flops[name] / rates[dtype]
            print_row(length, dtype, name, f"{flops[name] / 1e6:.0f}", f"{speed:.0f}", f"{share:.0%}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
