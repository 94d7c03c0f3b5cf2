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

import jax
import numpy as np
import tyro
from markdown_table import print_header, print_row
from world import OnSupernet, World, make_world

from tyr_jax import space
from tyr_jax.runtime.timing import medians
from tyr_jax.search import loop, surrogate
from tyr_jax.search.evolution import Evolution, EvolutionState
from tyr_jax.space import Fitness
from tyr_jax.workspace.progress import Progress

PAPER = Evolution(generations=25, offspring=32, survivors=(8, 2, 1), stage_tokens=(256, 1024, 4096))


@dataclasses.dataclass(frozen=True)
class Bench(OnSupernet):
    """What to measure."""

    sparsities: tuple[float, ...] = (0.25, 0.5)
    """Targets."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the searches."""
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


Trace = list[tuple[int, np.ndarray]]
"""(candidate-tokens spent, levels `[2, L]`) in the course of a search."""


def evolved(world: World, start: np.ndarray, schedule: Evolution, seed: int, spent: int = 0) -> Trace:
    """Evolve from `start [2, L]`, which has already cost `spent` candidate-tokens."""
    length = world.pool.tokens.shape[1]
    trace = [(spent, start)]

    most = world.pool.tokens.size
    schedule = dataclasses.replace(
        schedule, stage_tokens=tuple(min(tokens, most) for tokens in schedule.stage_tokens)
    )
    choice = world.space()

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
