"""How long it takes to score a population: at full width, and with only the units that are kept. Usage:

  python scripts/bench_search.py

For each sparsity, offspring of the uniform distribution are scored on random tokens, in a supernet of
arbitrary weights. The plain formulation runs them all in one `vmap` at full width. The other computes only
the units that are kept. It prints:
- the FLOPs that a candidate-token needs: units that are kept, and the head; attention over the causal half;
- the candidate-tokens per second (median);
- the shares that these reach of the matmul rate and of the dense forward's rate (blocks and head, the same
  tokens), both measured in the same run;
- the ratio of the two formulations.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_forward import normaliser
from full_width import score_candidates
from markdown_table import print_header, print_row
from matmul_rate import matmul_rate
from on_model import OnModel

from tyr_jax import space
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet, empty_supernet
from tyr_jax.runtime.timing import medians
from tyr_jax.scoring import nested, scorer
from tyr_jax.scoring.objective import KL
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.draws import neighbours
from tyr_jax.space import LevelGrid


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    sparsities: tuple[float, ...] = (0.25, 0.5)
    """Targets."""
    sequence_length: int = 512
    """Tokens of a sequence."""
    candidates: int = 32
    """Candidates of a population."""
    repeats: int = 5
    """Timings of each, interleaved."""


def random_supernet(config: ModelConfig, grid: space.LevelGrid) -> Supernet:
    """A supernet of equal weights with units removed in random order. The values do not affect the time."""
    rng, empty = np.random.default_rng(0), empty_supernet(jnp.float32, config, grid, PruningSettings())

    def order(ranks: jax.Array) -> jax.Array:
        return jnp.asarray(np.stack([rng.permutation(ranks.shape[-1]) for _ in range(len(ranks))]))

    weights = {name: jnp.full_like(stack, 0.01) for name, stack in empty.weights.items()}
    return empty.replace(weights=weights, ranks={name: order(ranks) for name, ranks in empty.ranks.items()})


def random_offspring(grid: LevelGrid, count: int) -> np.ndarray:
    """Offspring `[C, S, L]` of the uniform distribution."""
    centre = space.centre_distribution(grid)
    choice = SearchSpace.around(grid, centre, 1, 1)
    draw = functools.partial(neighbours, space=choice, count=count, max_shifts=4)
    return np.asarray(jax.jit(draw)(jax.random.key(0), jnp.asarray(centre)))


def main(bench: Bench) -> None:
    """Print a row per sparsity and formulation."""
    model = bench.load()
    params, config, objective = model.params, model.config, KL()
    kinds, length = PruningSettings().kinds(config), bench.sequence_length
    tokens = np.random.default_rng(0).integers(0, config.vocab, (1, length))
    pool = teacher_targets(params, tokens, config, objective)
    rate = matmul_rate()
    dense_flops = block_flops(config, unit_counts(config), length) + head_flops(config)
    print(f"matmul rate {rate / 1e9:.0f} GFLOP/s, T = {length}, {bench.candidates} candidates")
    columns = ("needed MFLOP/token", "tokens/s", "of the matmul rate", "of the forward's", "ratio")
    print_header("sparsity", "formulation", *columns)
    for sparsity in bench.sparsities:
        grid = space.uniform_grid(kinds, config.depth, sparsity, 9, 0.125)
        supernet = random_supernet(config, grid)
        candidates = random_offspring(grid, bench.candidates)
        net = nested.nest(params, supernet, config)
        runs: dict[str, Callable[[], object]] = {
            "dense forward": functools.partial(normaliser, params, jnp.asarray(tokens), config),
            "full width": functools.partial(
                score_candidates,
                params,
                supernet,
                jnp.asarray(candidates),
                pool,
                config,
                objective,
            ),
            "kept units": functools.partial(
                scorer.score_population, net, candidates, pool, np.arange(1), config, objective
            ),
        }
        times = medians(runs, bench.repeats)
        forward_rate = length * dense_flops / times.pop("dense forward")
        units = space.kept_units(grid, space.centre_distribution(grid))
        flops = block_flops(config, units, length) + head_flops(config)
        for name, time in times.items():
            speed = bench.candidates * length / time
            shares = (f"{speed * flops / whole:.0%}" for whole in (rate, forward_rate))
            cells = (f"{flops / 1e6:.0f}", f"{speed:.0f}", *shares, f"{times['full width'] / time:.2f}")
            print_row(f"{sparsity:.1%}", name, *cells)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
