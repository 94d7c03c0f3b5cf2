"""How fast the dense model runs: our forward, compared with torch's. Usage:

  python scripts/bench_forward.py

It prints the FLOPs executed per token, the tokens per second (median), and the share of the matmul rate that
these reach. Attention is counted as it is computed, in chunks of the causal half. The matmul rate is measured
in the same run.
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

from tyr_jax.model import attention, decoder
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.prediction import log_normaliser
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime.timing import medians


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence."""
    batch_tokens: int = 4096
    """Tokens that run at a time."""
    repeats: int = 5
    """Timings of each, interleaved."""


def torch_forward(config: ModelConfig, tokens: np.ndarray) -> Callable[[], object]:
    """A forward to the logits with transformers' Llama of the same shape."""
    import torch

    model = torch_model(config).eval()
    inputs = torch.from_numpy(tokens).long()

    def run() -> object:
        with torch.inference_mode():
            return model(inputs, use_cache=False).logits.shape

    return run


@functools.partial(jax.jit, static_argnames="config")
def normaliser(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Blocks and head: the log-normaliser of the logits, which costs as much as the whole head."""
    return log_normaliser(decoder.head(params), decoder.hidden_states(params, tokens, config))


def main(bench: Bench) -> None:
    """Print a row per length and program."""
    model = bench.load()
    params, config = model.params, model.config
    rate = matmul_rate()
    print(f"matmul rate {rate / 1e9:.0f} GFLOP/s, {bench.batch_tokens} tokens at a time")
    print_header("T", "program", "MFLOP/token", "tokens/s", "of the matmul rate")
    head, units = head_flops(config), unit_counts(config)
    for length in bench.lengths:
        tokens = np.random.default_rng(0).integers(0, config.vocab, (bench.batch_tokens // length, length))
        inputs = jnp.asarray(tokens)
        blocks = block_flops(config, units, length, attention.QUERY_CHUNK)
        flops = {"blocks": blocks, "blocks and head": blocks + head}
        runs: dict[str, Callable[[], object]] = {
            "blocks": functools.partial(decoder.hidden_states, params, inputs, config),
            "blocks and head": functools.partial(normaliser, params, inputs, config),
        }
        if importlib.util.find_spec("torch"):
            runs["torch, logits"] = torch_forward(config, tokens)
            flops["torch, logits"] = block_flops(config, units, length, length) + head
        for name, time in medians(runs, bench.repeats).items():
            speed = bench.batch_tokens / time
            share = speed * flops[name] / rate
            print_row(length, name, f"{flops[name] / 1e6:.0f}", f"{speed:.0f}", f"{share:.0%}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
