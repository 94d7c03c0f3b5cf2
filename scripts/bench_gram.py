"""How much symmetry saves in computing XᵀX, compared with the whole product. Usage:

  python scripts/bench_gram.py

The widths are those of attention and FFN of SmolLM2 and of Llama-3.1-8B. The shares are of the whole
product's FLOPs, of its time (medians, in one run), and of the matmul rate.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate

from tyr_jax.pruning import hessian, linalg
from tyr_jax.runtime.timing import medians


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to measure."""

    widths: tuple[int, ...] = (576, 1536, 4096, 14336)
    """Channels of a site."""
    tokens: int = 4096
    """Tokens that run at a time."""
    repeats: int = 9
    """Timings, interleaved."""


@functools.partial(jax.jit, donate_argnums=0)
def whole(gram: jax.Array, x: jax.Array) -> jax.Array:
    """Add XᵀX without making use of its symmetry."""
    return gram + linalg.matmul(x.T, x)


def main(bench: Bench) -> None:
    """Print a row per width."""
    rate, functions = matmul_rate(), {"whole": whole, "half": jax.jit(hessian.update, donate_argnums=0)}
    shares = "of its FLOPs", "of its time", "of the matmul rate"
    print_header("channels", "blocks", "whole, s", "by symmetry, s", *shares)
    for width in bench.widths:
        x = jnp.asarray(np.random.default_rng(0).standard_normal((bench.tokens, width), np.float32))
        grams = {name: hessian.init(width) for name in functions}

        def add(name: str, grams: dict[str, jax.Array] = grams, x: jax.Array = x) -> jax.Array:
            grams[name] = functions[name](grams[name], x)
            return grams[name]

        times = medians({name: functools.partial(add, name) for name in functions}, bench.repeats)
        flops = hessian.gram_flops(width, bench.tokens)
        of_flops, of_time = flops / (2 * bench.tokens * width**2), times["half"] / times["whole"]
        cells = *times.values(), of_flops, of_time, flops / times["half"] / rate
        print_row(width, len(hessian.block_edges(width)) - 1, *(f"{cell:.3f}" for cell in cells))


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
