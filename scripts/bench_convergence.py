"""How fast a search converges, in candidate-tokens: the paper's search and ours. Rerun:

  python scripts/bench_convergence.py

At each sparsity, all searches run on the same supernet and draw from the same pool of text. The results are
scored on text that no search saw. The paper's search starts from the uniform distribution: 32 offspring,
stages 8 → 2 → 1 on 256, 1,024 and 4,096 tokens, 25 generations. Ours starts from the additive estimate and
descends first. Slopes count as the candidate-tokens that take the same time, measured in the same run.
"""

import dataclasses
import functools
import statistics
from typing import NamedTuple

import jax
import numpy as np
import tyro
from markdown_table import print_header, print_row
from on_model import OnText

from tyr_jax import space
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.runtime.timing import medians
from tyr_jax.scoring import nested, slopes
from tyr_jax.scoring.objective import KL, TeacherBatch
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.search import loop, surrogate
from tyr_jax.search.contract import SearchSpace, Sites
from tyr_jax.search.evolution import Evolution, EvolutionState
from tyr_jax.space import Fitness
from tyr_jax.workspace.progress import Progress

OBJECTIVE = KL()

PAPER = Evolution(generations=25, offspring=32, survivors=(8, 2, 1), stage_tokens=(256, 1024, 4096))


@dataclasses.dataclass(frozen=True)
class Bench(OnText):
    """What to measure."""

    sparsities: tuple[float, ...] = (0.25, 0.5)
    """Targets."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the searches."""
    sequence_length: int = 256
    """Tokens of a sequence."""
    calibration_tokens: int = 16384
    """Tokens that the supernet is built on."""
    search_tokens: int = 32768
    """Tokens that the searches draw from."""
    held_out_tokens: int = 16384
    """Tokens that the results are scored on."""
    descent_tokens: int = 2048
    """Tokens for the slopes of each descent step, and as many for scoring its proposals."""
    descent_steps: int = 6
    """Number of descent steps of our search."""
    paper: bool = True
    """Also run the paper's search."""
    generations: int = 25
    """Generations of the paper's search."""
    our_share: float = 0.5
    """Our search stops when it has spent this share of the paper's candidate-tokens."""


class World(NamedTuple):
    """A nested supernet, what its fold measured at its sites, and the texts to search on and to judge on."""

    config: ModelConfig
    grid: space.LevelGrid
    net: nested.Nested
    sites: Sites
    budget: space.Budget
    pool: TeacherBatch
    held_out: TeacherBatch

    def score(self, candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """Objective `[C]` on sequences of the search text."""
        return nested.score_population(self.net, candidates, self.pool, sequences, self.config, OBJECTIVE)

    def slopes(self, levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        """Slopes `[P, 2, L, E]` on parts of sequences of the search text."""
        return slopes.pool_slopes(self.net, levels, self.pool, sequences, self.config, OBJECTIVE)

    def judge(self, candidates: np.ndarray) -> np.ndarray:
        """Objective `[C]` on the held-out text."""
        everything = np.arange(len(self.held_out.tokens))
        return nested.score_population(
            self.net, candidates, self.held_out, everything, self.config, OBJECTIVE
        )


Trace = list[tuple[int, np.ndarray]]
"""(candidate-tokens spent, levels `[2, L]`) in the course of a search."""


def make_world(bench: Bench, sparsity: float) -> World:
    """The supernet and the texts for one sparsity."""
    model = bench.load()
    search_tokens = bench.search_tokens + bench.held_out_tokens
    amounts = {"calibration_tokens": bench.calibration_tokens, "search_tokens": search_tokens}
    splits = bench.splits(model, bench.sequence_length, **amounts)
    settings, config = PruningSettings(), model.config
    kinds = settings.kinds(config)
    grid = space.uniform_grid(kinds, config.depth, sparsity, 9, 0.125)
    texts = (splits.calibration, splits.openings)
    supernet = build_supernet(model.params, texts, FoldPlan(config, grid, settings))
    net = nested.nest(model.params, supernet, config)
    held_out = bench.held_out_tokens // bench.sequence_length
    pools = (
        teacher_targets(model.params, tokens, config, OBJECTIVE)
        for tokens in (splits.search[held_out:], splits.search[:held_out])
    )
    sites = Sites(np.asarray(supernet.error), np.asarray(supernet.share), grid.exists)
    centre = space.centre_distribution(grid)
    budget = space.Budget.of_units(grid.kept, space.kept_units(grid, centre).sum(axis=-1))
    return World(config, grid, net, sites, budget, *pools)


def evolved(world: World, start: np.ndarray, schedule: Evolution, seed: int, spent: int = 0) -> Trace:
    """Evolve from `start [2, L]`, which has already cost `spent` candidate-tokens."""
    length = world.pool.tokens.shape[1]
    trace = [(spent, start)]

    most = world.pool.tokens.size
    schedule = dataclasses.replace(
        schedule, stage_tokens=tuple(min(tokens, most) for tokens in schedule.stage_tokens)
    )
    choice = SearchSpace(
        world.grid.kept, world.grid.exists, world.budget, world.sites, len(world.pool.tokens), length
    )

    def record(step: int, state: EvolutionState, _: Fitness) -> None:
        if not state.stage:
            trace.append(
                (trace[-1][0] + generation_tokens(schedule, length), np.asarray(schedule.best(state)))
            )

    begun = loop.begin(schedule, jax.random.key(seed), start, choice)
    loop.run(schedule, begun, choice, world.score, on_step=record)
    return trace


def generation_tokens(schedule: Evolution, length: int) -> int:
    """Candidate-tokens of a generation."""
    return sum(size * count * length for size, count in schedule.generation_queries(length))


def ours(world: World, bench: Bench, seed: int, budget: int, slope_cost: float) -> Trace:
    """Start at the estimate, descend, then evolve until `budget` candidate-tokens are spent."""
    length = bench.sequence_length
    count = bench.descent_tokens // length
    step_cost = round(count * length * (slope_cost + 1 + len(surrogate.CAUTIONS)))
    rng = np.random.default_rng(seed)
    centre = space.centre_distribution(world.grid)
    start = surrogate.estimated_start(world.sites, world.budget, centre)
    trace = [(0, centre if start is None else start)]
    for _ in range(bench.descent_steps):
        spent, levels = trace[-1]
        order = rng.permutation(len(world.pool.tokens))
        text = order[:count], order[count : 2 * count]
        better, _ = surrogate.descend(
            levels, world.sites, world.budget, world.slopes, world.score, text[0], text[1]
        )
        trace.append((spent + step_cost, better))
    spent, levels = trace[-1]
    schedule = Evolution(offspring=16, survivors=(4, 1, 1), stage_tokens=(512, 1024, 4096))
    schedule = dataclasses.replace(
        schedule, generations=max(1, (budget - spent) // generation_tokens(schedule, length))
    )
    return [*trace, *evolved(world, levels, schedule, seed, spent)]


def slope_cost(world: World) -> float:
    """Number of candidate-tokens that take as long as the slopes of one token."""
    centre = space.centre_distribution(world.grid)
    sequences = np.arange(8)
    population_of = np.repeat(centre[None], 2, axis=0)
    times = medians(
        {
            "slopes": functools.partial(world.slopes, centre, sequences),
            "scores": functools.partial(world.score, population_of, sequences),
        },
        3,
    )
    return 2 * times["slopes"] / times["scores"]


def at_budget(trace: Trace, budget: float) -> np.ndarray:
    """Levels `[2, L]` that a search had after at most `budget` candidate-tokens."""
    return max((point for point in trace if point[0] <= budget), key=lambda point: point[0])[1]


def main(bench: Bench) -> None:
    """Print a row per sparsity, search and budget."""
    schedule = dataclasses.replace(PAPER, generations=bench.generations)
    whole = schedule.generations * generation_tokens(schedule, bench.sequence_length)
    print(f"T = {bench.sequence_length}, whole budget {whole:,} candidate-tokens")
    print_header("sparsity", "search", "candidate-tokens", "held-out KL, median", "by seed")
    for sparsity in bench.sparsities:
        world = make_world(bench, sparsity)
        cost = slope_cost(world)
        centre = space.centre_distribution(world.grid)
        print_row(f"{sparsity:.1%}", "none (uniform)", 0, f"{world.judge(centre[None])[0]:.4f}", "")
        with Progress() as progress, progress.stage("searches", 2 * len(bench.seeds), "searches") as stage:
            traces: dict[str, list[Trace]] = {"the paper's": [], "ours": []}
            for seed in bench.seeds:
                if bench.paper:
                    traces["the paper's"].append(evolved(world, centre, schedule, seed))
                stage.advance()
                traces["ours"].append(ours(world, bench, seed, round(bench.our_share * whole), cost))
                stage.advance()
        for name, runs in ((name, runs) for name, runs in traces.items() if runs):
            most = 1.0 if name == "the paper's" else bench.our_share
            for share in (share for share in (0.1, 0.2, 0.5, 1.0) if share <= most):
                found = np.stack([at_budget(trace, share * whole) for trace in runs])
                values = world.judge(found)
                each = " / ".join(f"{value:.4f}" for value in values)
                median = f"{statistics.median(values):.4f}"
                print_row(f"{sparsity:.1%}", name, f"{share * whole:,.0f}", median, each)


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
