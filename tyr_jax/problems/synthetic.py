"""Synthetic problems of known optimum, with knobs for size, interaction, ruggedness and noise.

Axis letters: `L` layers, `E` levels, `B` sequences; `d_i` level steps from the optimum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.problems.problem import Problem
from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import Kind, centre_distribution, level_grid, mutate

HEADS, NEURONS = 16, 1024
"""Units of a layer of a synthetic problem."""


def synthetic_problem(
    seed: int = 0,
    depth: int = 16,
    levels: int = 9,
    interaction: float = 0.5,
    ruggedness: float = 0.0,
    noise: float = 0.0,
    sequences: int = 32,
    length: int = 256,
    shifts: int = 64,
) -> Problem:
    """A problem whose optimum is known, because its objective is zero there and nowhere negative.

    With `d_i` the level steps of site i from the optimum and `w_i` its weight, the objective is

        Σ_i w_i d_i² + ½ Σ_{i≠j} M_ij d_i d_j + ruggedness · Σ_i w_i (1 − cos π d_i)

    where M is drawn so that the sum of the first two terms is never negative. The optimum is the start after
    many random shifts, so it meets the budget.

    Args:
        seed: of all draws.
        depth: layers.
        levels: levels of every site.
        interaction: strength of M, from 0 (none) to 1 (as strong as stays non-negative).
        ruggedness: a level an odd number of steps from the optimum costs 2 · ruggedness · w_i more. Above
            1.5, the level two steps from the optimum is a local minimum of its site; above 3.5, the one four
            steps away as well.
        noise: standard deviation of the differences between sequences, per site, relative to the mean weight.
        sequences: sequences of the search text.
        length: tokens of each.
        shifts: random sparsity shifts between start and optimum.

    Raises:
        UserError: a knob is out of range.
    """
    require(depth >= 1, "depth", depth, "at least 1")
    require(levels >= 3 and levels % 2 == 1, "levels", levels, "odd, and at least 3")
    require(0 <= interaction <= 1, "interaction", interaction, "from 0 to 1")
    require(ruggedness >= 0, "ruggedness", ruggedness, "at least 0")
    require(noise >= 0, "noise", noise, "at least 0")
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 2)
    kinds = Kind("attention", HEADS, 1), Kind("ffn", NEURONS, 8)
    centres = np.repeat([[HEADS // 2], [NEURONS // 2]], depth, axis=1)
    grid = level_grid(kinds, centres, levels, 1 / (levels - 1) if levels <= HEADS else 1 / HEADS)
    start = centre_distribution(grid)
    space = SearchSpace.around(grid, start, sequences, length)
    exists = jnp.asarray(space.exists)

    def shifted(step: int, levels: jax.Array) -> jax.Array:
        return mutate(jax.random.fold_in(keys[0], step), levels, exists, space.budget, 1)

    best = np.asarray(jax.lax.fori_loop(0, shifts, shifted, jnp.asarray(start)))
    away = (np.arange(levels) - best[..., None]).astype(float)
    weight = np.exp(rng.normal(size=(2, depth))) / (2 * depth)
    alone = weight[..., None] * (away**2 + ruggedness * (1 - np.cos(np.pi * away)))
    drawn = rng.normal(size=(2 * depth, 2 * depth))
    symmetric = drawn + drawn.T
    np.fill_diagonal(symmetric, 0)
    # Σ w d² + ½ dᵀMd ≥ 0 if the least eigenvalue of M, divided by the roots of the weights, is at least −2.
    scaled = 2 * symmetric / max(-np.linalg.eigvalsh(symmetric)[0], 1e-12)
    pairs = interaction * np.sqrt(np.outer(weight, weight)) * scaled
    table = jnp.asarray(alone, jnp.float32)
    problem = Problem(
        space=space,
        start=jnp.asarray(start),
        alone=jnp.repeat(table[None], sequences, axis=0),
        feature=jnp.asarray(away, jnp.float32),
        pairs=jnp.asarray(pairs, jnp.float32),
        held_out_alone=table,
        optimum=jnp.float32(0),
    )
    return problem.with_noise(keys[1], noise * float(weight.mean()))
