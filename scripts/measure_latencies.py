"""Measure how long a model's attention and FFN take at every size, on the device at hand. Usage:

  python scripts/measure_latencies.py --model builtin --output latencies.json

The table is what `python -m tyr_jax.prune --budget latency --latencies latencies.json` counts in. It has FFNs
of several widths, and attention of every number of heads and key/value heads that a pruned layer can have.
(Where groups keep different numbers of heads, some key/value heads are duplicated.) Each is a layer of random
weights, whose time is that of a compiled forward pass of --tokens tokens, a median of --repeats, all sizes in
turn. With a short --tokens, such as 1, the table is one of decoding without a cache.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from markdown_table import print_header, print_row

from tyr_jax.cli import command
from tyr_jax.files import write_json
from tyr_jax.io.checkpoint import load_config
from tyr_jax.model import decoder
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning.latency import Latencies
from tyr_jax.runtime.timing import medians


@dataclasses.dataclass(frozen=True)
class Measured:
    """What to measure."""

    model: str = "builtin"
    """The dense model, of which the configuration is read."""
    output: Path = Path("latencies.json")
    """File of the table."""
    tokens: int = 512
    """Tokens of the sequence."""
    batch: int = 1
    """Sequences that run together."""
    widths: int = 9
    """Widths of the FFN that are measured, at even distances."""
    repeats: int = 7
    """Timings of each size; the median counts."""


Sizes = dict[tuple[int, ...], Callable[[], Any]]


def layer_of(config: ModelConfig, shape: LayerShape) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """A model of one layer of this shape, and that layer."""
    one = dataclasses.replace(config, layers=(shape,), positions=config.positions[-1:], vocab=8)
    return one, layer_block(random_params(one, jax.random.key(0))["blocks"], 0)


def attention_runs(config: ModelConfig, x: jax.Array) -> Sizes:
    """Forward passes of attention, by heads and key/value heads."""
    runs: Sizes = {}
    dense = config.dense_shape
    most = dense.heads // dense.kv_heads
    for size in range(1, most + 1):
        # `tyr_jax.pruning.cut.head_layout` groups heads at no greater cost than the dense model's.
        for groups in range(1, dense.kv_heads * (most + 1) // (size + 1) + 1):
            shape = dataclasses.replace(dense, heads=groups * size, kv_heads=groups)
            one, block = layer_of(config, shape)
            rope = decoder.rope_tables(one, x.shape[1])
            run = jax.jit(functools.partial(decoder.add_attention, config=one))
            runs[groups * size, groups] = functools.partial(run, block, x, rope)
    return runs


def ffn_runs(config: ModelConfig, x: jax.Array, count: int) -> Sizes:
    """Forward passes of FFNs, by width."""
    runs: Sizes = {}
    dense = config.dense_shape
    for width in np.unique(np.linspace(0, dense.ffn, count + 1).round().astype(int))[1:]:
        one, block = layer_of(config, dataclasses.replace(dense, ffn=int(width)))
        run = jax.jit(functools.partial(decoder.add_ffn, config=one))
        runs[int(width),] = functools.partial(run, block, x)
    return runs


def main(asked: Measured) -> None:
    """Measure, print and write the table."""
    config, _ = load_config(asked.model)
    shape = asked.batch, asked.tokens, config.hidden
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    attention, ffn = attention_runs(config, x), ffn_runs(config, x, asked.widths)
    times = medians({str(size): run for size, run in (attention | ffn).items()}, asked.repeats)
    table = Latencies(
        device=jax.devices()[0].device_kind,
        tokens=asked.batch * asked.tokens,
        attention=tuple((heads, groups, times[str((heads, groups))]) for heads, groups in attention),
        ffn=tuple((width, times[str((width,))]) for (width,) in ffn),
    )
    print_header("heads", "key/value heads", "neurons", "ms")
    for heads, groups, seconds in table.attention:
        print_row(heads, groups, "–", f"{seconds * 1e3:.2f}")
    for width, seconds in table.ffn:
        print_row("–", "–", width, f"{seconds * 1e3:.2f}")
    write_json(asked.output, table.model_dump(mode="json"))


if __name__ == "__main__":
    command.execute(main, Measured, None, prog="python scripts/measure_latencies.py", description=__doc__)
