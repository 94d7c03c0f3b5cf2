"""Compare searches on a model itself, at equal candidate-tokens. Usage:

  python scripts/compare_on_model.py --settings docs/measurements/comparison.json

All searches choose from the same supernet and draw from the same text. What they find, and what they would
have found in a part of the budget, is scored on held-out text that none of them saw. With --settings, each
search has the settings that it chose on synthetic problems in the record of `compare_searches.py`. Options
after its name, as in --searches "descent --reach 2", replace them. The p-value is that of Welch's test
over seeds, corrected by Holm. With several --objectives, each search minimises each of them (paper, Table 5).
Searches that have been run are kept in --results and not run again.
"""

import dataclasses
import functools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from compare_searches import SETTINGS, Options, adjusted, as_paid, class_of, configured
from jobs import Results
from markdown_table import print_header, print_row
from scipy.stats import ttest_ind
from world import OBJECTIVE, OnSupernet, World, make_world

from tyr_jax import space
from tyr_jax.cli import command
from tyr_jax.components import find
from tyr_jax.scoring.objective import OBJECTIVES, Objective, Perplexity
from tyr_jax.search import loop
from tyr_jax.search.contract import SLOPE_COST, Search, SearchSpace
from tyr_jax.workspace.progress import Progress


@dataclasses.dataclass(frozen=True)
class Comparison(OnSupernet):
    """What to compare."""

    sparsity: float = 0.5
    """Target, in units of each kind."""
    searches: tuple[str, ...] = (*SETTINGS,)
    """Searches to run, each in one argument with its options."""
    objectives: tuple[str, ...] = ("kl",)
    """Objectives that the searches minimise."""
    settings: Path | None = None
    """What `compare_searches.py` has written, or its record; without one, each search has the first of its
    settings."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each search."""
    passes: int = 36
    """Budget of a run, in candidate-tokens per token of the search text."""
    sequence_length: int = 128
    """Tokens of a sequence."""
    search_tokens: int = 2048
    """Tokens of the search text."""
    held_out_tokens: int = 4096
    """Tokens of the held-out text."""
    results: Path = Path("runs/compare_on_model.json")
    """File of the results."""


def chosen(asked: Comparison) -> dict[str, Options]:
    """The settings of the searches, by their names."""
    found = {name: options[0] for name, options in SETTINGS.items()}
    if asked.settings is None:
        return found
    written = json.loads(asked.settings.read_text())
    # The script writes them by themselves, and measure.py within its record.
    written = written if "settings" in written else written["results"]
    return found | {
        name: {key: tuple(v) if isinstance(v, list) else v for key, v in each["settings"].items()}
        for name, each in written["results"].items()
        if name in SETTINGS
    }


def made(asked: str, settings: dict[str, Options], space: SearchSpace, budget: int) -> Search:
    """The search that a name, with or without options after it, asks for."""
    name, *options = asked.split()
    known = settings.get(asked, settings.get(name, {}))
    search = configured(class_of(name), known, space, budget)
    if not options:
        return search
    changed = command.parse(type(search), options, prog=name, description="", default=search)
    return as_paid(changed, space, budget)


PARTS = 1 / 16, 1 / 8, 1 / 4, 1 / 2
"""Parts of the budget after which the best so far is judged, beside the end."""


def run(
    name: str, world: World, search: Search, seed: int, budget: int, progress: Progress
) -> dict[str, Any]:
    """What the search of a name finds: its KL and log-perplexity on held-out text, the candidate-tokens and
    seconds that it took, and the KL as a curve over the parts of the budget."""
    choice, began = world.space(), time.monotonic()
    start = space.centre_distribution(world.grid)
    length, spent = choice.length, 0
    total = search.candidate_tokens(choice)
    with progress.stage(f"{name}, seed {seed}", total, "candidate-tokens") as stage:

        def spend(tokens: int) -> None:
            nonlocal spent
            spent += tokens
            stage.advance(tokens)

        def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
            values = world.score(candidates, sequences)
            spend(len(candidates) * len(sequences) * length)
            return values

        def slopes(levels: np.ndarray, sequences: np.ndarray) -> np.ndarray:
            values = world.slopes(levels, sequences)
            spend(SLOPE_COST * len(sequences) * length)
            return values

        points: list[tuple[int, float, np.ndarray]] = []

        def watch(_: int, state: Any, __: np.ndarray) -> None:
            left = [part for part in PARTS if part * budget > (points[-1][0] if points else 0)]
            if left and spent >= left[0] * budget and search.record(state) is not None:
                points.append((spent, time.monotonic() - began, np.asarray(search.best(state))))

        begun = loop.begin_search(search, jax.random.key(seed), start, choice)
        found = loop.run(search, begun, choice, score, on_step=watch, slopes=slopes)
    if points and points[-1][0] == spent:
        points.pop()
    points.append((spent, time.monotonic() - began, found))
    tokens, seconds, levels = zip(*points, strict=True)
    kept, which = np.unique(np.stack(levels), axis=0, return_inverse=True)
    curve = world.judge(kept)[which.reshape(-1)].tolist()
    return judged(world, found) | {
        "search": name,
        "tokens": spent,
        "seconds": seconds[-1],
        "curve": {"tokens": tokens, "seconds": seconds, "kl": curve},
    }


def welch(one: np.ndarray, other: np.ndarray) -> float:
    """The p-value of Welch's test of values that are not paired: 1 for single values, which tell nothing of
    chance, and 0 where neither varies."""
    if min(len(one), len(other)) < 2:
        return 1.0
    if not one.std() and not other.std():
        return 0.0
    return float(ttest_ind(one, other, equal_var=False).pvalue)


def judged(world: World, levels: np.ndarray) -> dict[str, float]:
    """KL and log-perplexity on held-out text of `levels [S, L]`."""
    objectives = {"kl": OBJECTIVE, "log_perplexity": Perplexity()}
    return {name: float(world.judge(levels[None], each)[0]) for name, each in objectives.items()}


def main(asked: Comparison) -> None:
    """Run what is missing, then print a row per search."""
    settings = chosen(asked)
    common = dataclasses.replace(asked, searches=(), objectives=(), seeds=(), settings=None, results=Path())
    results = Results.of(asked.results, common)
    world = make_world(asked, asked.sparsity)
    start = judged(world, space.centre_distribution(world.grid))
    budget = asked.passes * world.pool.tokens.size
    each = {}
    with Progress() as progress:
        for objective in asked.objectives:
            scored = world.scored_by(find(OBJECTIVES, objective, Objective)())
            for name in asked.searches:
                search = made(name, settings, scored.space(), budget)
                each[name, objective] = [
                    results.get(
                        f"{search} by {objective}, seed {seed}",
                        functools.partial(run, name, scored, search, seed, budget, progress),
                    )
                    for seed in asked.seeds
                ]
    print_table(start, each)


def print_table(start: dict[str, float], each: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Print a row for the start, and one per search and objective, those of the least KL first."""

    def median(runs: list[dict[str, Any]], what: str) -> float:
        return statistics.median(run[what] for run in runs)

    columns = "p against the best", "held-out perplexity", "candidate-tokens", "minutes"
    print_header("search", "objective", "held-out KL, median", "by seed", *columns)
    perplexity = f"{math.exp(start['log_perplexity']):.2f}"
    print_row("the start", "", f"{start['kl']:.4f}", "", "", perplexity, 0, "")
    chance = adjusted({name: np.array([run["kl"] for run in runs]) for name, runs in each.items()}, welch)
    for (name, objective), runs in sorted(each.items(), key=lambda item: median(item[1], "kl")):
        by_seed = " / ".join(f"{run['kl']:.4f}" for run in runs)
        perplexity = f"{math.exp(median(runs, 'log_perplexity')):.2f}"
        found = f"{median(runs, 'kl'):.4f}", by_seed, f"{chance[name, objective]:.3f}", perplexity
        spent = f"{median(runs, 'tokens'):,.0f}", f"{median(runs, 'seconds') / 60:.1f}"
        print_row(name, objective, *found, *spent)


if __name__ == "__main__":
    command.execute(main, Comparison, None, prog="python scripts/compare_on_model.py", description=__doc__)
