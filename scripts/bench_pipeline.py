"""How long the whole job takes, stage by stage, in the plain formulation and in this project's. Usage:

  python scripts/bench_pipeline.py

The plain version follows the method as it is written. It prunes every level of the supernet from scratch,
with forwards of its own, and scores candidates in one `vmap` at full width. Both versions use the same text,
levels, offspring and generations. They run one after the other in one run, and compilation is not counted.
Stages that are the same in both are timed once. Both searches score the same candidates, so they should end
with the same distribution. The last line says whether they do.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from full_width import score_candidates
from markdown_table import print_header, print_row
from on_model import OnText

from tyr_jax import space
from tyr_jax.data import Splits
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime.batches import BATCH_TOKENS
from tyr_jax.runtime.timing import seconds
from tyr_jax.scoring import nested, scorer
from tyr_jax.scoring.objective import KL, TeacherBatch
from tyr_jax.scoring.teacher import take, teacher_targets
from tyr_jax.search import loop
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.evolution import Evolution
from tyr_jax.space import LevelGrid

OBJECTIVE = KL()

PRUNING = PruningSettings(accumulation="centre")
"""Costs as much as the default, and is also defined for a supernet whose only level keeps nothing."""


@dataclasses.dataclass(frozen=True)
class Bench(OnText):
    """What to measure."""

    sparsity: float = 0.5
    """Target."""
    levels: int = 9
    """Levels of a site."""
    calibration_tokens: int = 8192
    """Tokens that layers are pruned on."""
    length: int = 512
    """Tokens of a sequence."""
    generations: int = 8
    """Generations of the search."""
    offspring: int = 32
    """Offspring of a generation; 8, 2 and 1 of them survive its stages."""
    stage_tokens: tuple[int, ...] = (512, 1024, 4096)
    """Tokens that the stages score on."""


def single(grid: LevelGrid, level: int) -> LevelGrid:
    """One level of `grid`."""
    part = slice(level, level + 1)
    return dataclasses.replace(grid, kept=grid.kept[..., part], exists=grid.exists[..., part])


class World(NamedTuple):
    """A model, its text, and the levels of its sites."""

    model: LoadedModel
    splits: Splits
    grid: LevelGrid


def make_world(bench: Bench) -> World:
    """The input of both versions."""
    model = bench.load()
    kinds, depth = PRUNING.kinds(model.config), model.config.depth
    grid = space.uniform_grid(kinds, depth, bench.sparsity, bench.levels, 0.125)
    amounts = {"calibration_tokens": bench.calibration_tokens, "calibration_openings": 0}
    splits = bench.splits(model, bench.length, search_tokens=2 * max(bench.stage_tokens), **amounts)
    return World(model, splits, grid)


def fold(world: World, grid: LevelGrid, sequences: int | None = None) -> Supernet:
    """The supernet of `grid` on the calibration text, or on its first sequences."""
    tokens = world.splits.calibration[:sequences]
    return build_supernet(world.model.params, [tokens], FoldPlan(world.model.config, grid, PRUNING))


def time_folds(world: World, bench: Bench) -> tuple[float, float, float]:
    """Seconds to build a supernet level by level, to build one in one pass, and to build a single level."""
    levels = [single(world.grid, level) for level in range(bench.levels)]
    for grid in (levels[0], world.grid):
        fold(world, grid, max(1, BATCH_TOKENS // bench.length))
    *by_level, one_pass = (seconds(functools.partial(fold, world, grid)) for grid in [*levels, world.grid])
    return sum(by_level), one_pass, by_level[0]


def time_searches(world: World, pool: TeacherBatch, bench: Bench) -> tuple[float, float, int]:
    """Seconds of the search with the plain score and with ours, and at how many sites the results differ."""
    params, config, grid = world.model.params, world.model.config, world.grid
    supernet = fold(world, grid)
    net = nested.nest(params, supernet, config)
    schedule = Evolution(bench.generations, bench.offspring, (8, 2, 1), bench.stage_tokens)
    centre = space.centre_distribution(grid)
    choice = SearchSpace.around(grid, centre, len(pool.tokens), bench.length)

    def plain(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        def score(sequence: np.ndarray) -> jax.Array:
            batch = take(pool, sequence)
            return score_candidates(params, supernet, jnp.asarray(candidates), batch, config, OBJECTIVE)

        return np.mean([score(sequence) for sequence in sequences[:, None]], axis=0)

    def ours(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return scorer.score_population(net, candidates, pool, sequences, config, OBJECTIVE)

    def search(score: loop.Scorer, generations: int) -> tuple[float, np.ndarray]:
        few = dataclasses.replace(schedule, generations=generations)
        start = time.perf_counter()
        found = loop.run(few, loop.begin_search(few, jax.random.key(0), centre, choice), choice, score)
        return time.perf_counter() - start, found

    for score in (plain, ours):
        search(score, 1)
    (before, one), (after, other) = (search(score, bench.generations) for score in (plain, ours))
    return before, after, int(np.sum(one != other))


def main(bench: Bench) -> None:
    """Print a row per stage."""
    world = make_world(bench)
    params, config = world.model.params, world.model.config

    def answer() -> TeacherBatch:
        return teacher_targets(params, world.splits.search, config, OBJECTIVE)

    pool = answer()
    answering = seconds(answer)
    plain_fold, our_fold, one_level = time_folds(world, bench)
    plain_search, our_search, differ = time_searches(world, pool, bench)
    rows = {
        "dense model's predictions": (answering, answering),
        "supernet": (plain_fold, our_fold),
        "search": (plain_search, our_search),
        "pruning to the answer": (one_level, one_level),
    }
    rows["all"] = tuple(np.sum(list(rows.values()), axis=0))
    print_header("stage", "plain, s", "ours, s", "ratio")
    for name, (plain, ours) in rows.items():
        print_row(name, f"{plain:.1f}", f"{ours:.1f}", f"{plain / ours:.2f}")
    print(f"\nthe answers of the two searches differ at {differ} of {world.grid.exists[..., 0].size} sites")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
