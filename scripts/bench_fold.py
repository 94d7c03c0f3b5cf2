"""How long it takes to build a supernet: with one level, with nine levels, and by part of the fold. Usage:

  python scripts/bench_fold.py

The fold runs on random tokens. Each part is timed on one site and one batch, and its time is multiplied by
the number of sites and batches. For each fold it prints:
- the FLOPs needed: attention over the causal half, XᵀX over one triangle, nothing for ordering and solves;
- the time (median);
- the share of the matmul rate that the fold reaches; the rate is measured in the same run;
- the ratio to the plain formulation, which is one fold per level.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate
from on_model import OnBatches

from tyr_jax import space
from tyr_jax.model import decoder
from tyr_jax.model.cost import block_flops, unit_counts
from tyr_jax.model.spec import Block, ModelConfig
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning import fold, hessian, stream, supernet
from tyr_jax.pruning.kinds import HEADS, NEURONS, SiteKind
from tyr_jax.pruning.site import PrunedSite
from tyr_jax.runtime.timing import medians


@dataclasses.dataclass(frozen=True)
class Bench(OnBatches):
    """What to measure."""

    tokens: int = 65536
    """Calibration tokens."""
    repeats: int = 1
    """Timings of the whole fold, interleaved. The parts are always timed five times."""


def triangle_flops(size: int, tokens: int) -> float:
    """FLOPs of one triangle of XᵀX."""
    return tokens * size * (size + 1)


def main(bench: Bench) -> None:
    """Print a row per part, then a row per fold."""
    model = bench.load()
    params, config = model.params, model.config
    settings = supernet.PruningSettings()
    kinds, depth, ffn = settings.kinds(config), config.depth, config.dense_shape.ffn
    width = config.dense_shape.heads * config.head_dim
    length, count = bench.sequence_length, bench.tokens // bench.batch_tokens
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (bench.tokens // length, length))
    grids = {levels: space.uniform_grid(kinds, depth, bench.sparsity, levels, 0.125) for levels in (1, 9)}

    def prune(kind: SiteKind) -> PrunedSite:
        row, weight = (HEADS, NEURONS).index(kind), block[kind.output]
        levels, size = (grids[9].kept[row, 0], grids[9].exists[row, 0]), weight.size // config.hidden
        gram = hessian.finish(grams[size])
        site = settings.site(gram, weight.reshape(size, -1), *levels, kind.count(config))
        return kind.prune(site, settings.pruner)

    block = layer_block(params["blocks"], 0)
    inputs = {n: jnp.asarray(rng.standard_normal((bench.batch_tokens, n), np.float32)) for n in (width, ffn)}
    grams = {n: hessian.update(hessian.init(n), x)[None] for n, x in inputs.items()}
    rows = bench.batch_tokens // length
    x = jnp.asarray(rng.standard_normal((rows, length, config.hidden), np.float32))
    heads = inputs[width].reshape(rows, length, -1, config.head_dim)
    neurons = inputs[ffn].reshape(rows, length, ffn)
    residuals = {n: jnp.array(x) for n in (width, ffn)}

    def collect(kind: SiteKind, n: int, statistics: Any = stream.site_statistics) -> jax.Array:
        units, grams[n] = statistics(block, x, grams[n], None, kind, config)
        return units

    def leave(kind: SiteKind, n: int, units: jax.Array) -> jax.Array:
        residuals[n] = stream.add_output(block, residuals[n], units, kind, config)
        return residuals[n]

    alone = jax.jit(functools.partial(decoder.ffn_units, config=config))

    @functools.partial(jax.jit, static_argnames=("kind", "config"), donate_argnames="gram")
    def unhalved(
        block: Block, x: jax.Array, gram: jax.Array, counts: None, kind: SiteKind, config: ModelConfig
    ) -> tuple[jax.Array, jax.Array]:
        units = decoder.ffn_units(block, x, config)
        inputs = units.reshape(-1, ffn)
        return units, gram + inputs.T @ inputs

    rate = matmul_rate()
    parts = medians(
        {
            "attention and its XᵀX": lambda: collect(HEADS, width),
            "gate and up": lambda: alone(block, x),
            "gate, up and their XᵀX": lambda: collect(NEURONS, ffn),
            "gate, up and XᵀX, not by symmetry": lambda: collect(NEURONS, ffn, unhalved),
            "attention output": lambda: leave(HEADS, width, heads),
            "FFN output": lambda: leave(NEURONS, ffn, neurons),
            "order and solves, attention": lambda: prune(HEADS),
            "order and solves, FFN": lambda: prune(NEURONS),
        },
        5,
    )
    print(f"matmul rate {rate / 1e9:.0f} GFLOP/s, {bench.tokens} tokens, T = {length}")
    print_header("part", "times", "seconds in all")
    for name, time in parts.items():
        times = depth * (1 if name.startswith("order") else count)
        print_row(name, times, f"{time * times:.1f}")
    print()
    flops = bench.tokens * block_flops(config, unit_counts(config), length)
    flops += depth * (triangle_flops(width, bench.tokens) + triangle_flops(ffn, bench.tokens))

    def build(levels: int, tokens: np.ndarray) -> supernet.Supernet:
        return fold.build_supernet(
            params,
            [tokens],
            fold.FoldPlan(config, grids[levels], settings),
            batch_tokens=bench.batch_tokens,
        )

    for levels in grids:
        build(levels, tokens[:rows])
    runs = {f"{levels} levels": functools.partial(build, levels, tokens) for levels in grids}
    folds = medians(runs, bench.repeats, warm_up=False)
    print_header("fold", "needed TFLOP", "seconds", "of the matmul rate", "ratio to a fold per level")
    for (name, time), levels in zip(folds.items(), grids, strict=True):
        ratio = levels * folds["1 levels"] / time
        print_row(name, f"{flops / 1e12:.1f}", f"{time:.1f}", f"{flops / time / rate:.0%}", f"{ratio:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
