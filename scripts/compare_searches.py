"""Compare every search on problems without a large model, at equal candidate-tokens. Usage:

  python scripts/compare_searches.py
  python scripts/compare_searches.py --problems exact --seeds 20 --passes 16

Each search first chooses among its SETTINGS on problems that are used for nothing else. Then it runs with
every seed on each group of problems: on synthetic ones, whose optimum is known, with a problem of its own for
each seed; on exact ones, which prune a small language model, with other random draws. All runs of a search
are one program. Searches are divided among `--processes`, and an interrupted comparison continues with those
that are missing.

The tables show how much of the objective's excess over the optimum is left on held-out text, where the start
has all of it, and whether a search differs from the best one (Wilcoxon's signed-rank test over seeds,
corrected by Holm). On exact problems, the best distribution known takes the place of the optimum. A search of
your own takes part as --with MODULE:NAME.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jobs import Results
from markdown_table import print_header, print_row
from scipy.stats import wilcoxon

from tyr_jax.cli import command
from tyr_jax.components import find
from tyr_jax.errors import UserError, require
from tyr_jax.problems import (
    ExactProblem,
    Problem,
    load_problem,
    problem_names,
    stack_problems,
    synthetic_problem,
)
from tyr_jax.search.contract import Search, SearchSpace
from tyr_jax.search.device import search_many
from tyr_jax.search.registry import SEARCHES

SYNTHETIC: dict[str, dict[str, Any]] = {
    "smooth": {"interaction": 0.5},
    "interacting": {"interaction": 1.0},
    "rugged": {"interaction": 0.5, "ruggedness": 4.0},
    "noisy": {"interaction": 0.5, "noise": 1.0},
}
"""Groups of synthetic problems, by their knobs."""

SIZE: dict[str, Any] = {"depth": 24, "sequences": 16, "length": 128}
"""Size of the synthetic problems."""

TUNING = 1000
"""First seed of the problems on which settings are chosen."""

POINTS, FIRST = 10, 1 / 128
"""Points of a curve, and the share of the budget at the first one."""

Options = dict[str, Any]

Key = TypeVar("Key")

SETTINGS: dict[str, list[Options]] = {
    "evolution": [
        {"offspring": 32, "survivors": (8, 2, 1), "stage_tokens": (1 / 16, 1 / 4, 1.0)},
        {"offspring": 16, "survivors": (4, 1), "stage_tokens": (1 / 8, 1 / 2)},
        {"offspring": 64, "survivors": (8, 1), "stage_tokens": (1 / 16, 1 / 2)},
    ],
    "blocks": [{"generations": 1}],
    "estimate": [{"generations": 1, "score_tokens": 1.0}],
    "random": [{"candidates": 64, "score_tokens": 1 / 16}, {"candidates": 16, "score_tokens": 1 / 4}],
    "evopress": [
        {"offspring": 32, "survivors": (8, 2, 1), "stage_tokens": (1 / 16, 1 / 4, 1.0)},
        {"offspring": 16, "survivors": (4, 1), "stage_tokens": (1 / 8, 1 / 2)},
        {"offspring": 64, "survivors": (8, 1), "stage_tokens": (1 / 16, 1 / 2)},
    ],
    "genetic": [
        {"parents": 8, "children": 24, "score_tokens": 1 / 8},
        {"parents": 4, "children": 28, "score_tokens": 1 / 8, "crossed": 0.2},
        {"parents": 16, "children": 48, "score_tokens": 1 / 4},
    ],
    "annealing": [
        {"chains": 4, "score_tokens": 1 / 8},
        {"chains": 2, "score_tokens": 1 / 8, "heat": 0.005},
        {"chains": 1, "score_tokens": 1 / 4, "heat": 0.005},
    ],
    "exchange": [
        {"swaps": 16, "score_tokens": 1 / 8},
        {"swaps": 32, "score_tokens": 1 / 8},
        {"swaps": 64, "score_tokens": 1 / 8},
        {"swaps": 1740, "score_tokens": 1 / 16},  # at least as many as are allowed: the best of all
    ],
    "distribution": [
        {"samples": 32, "elite": 8, "score_tokens": 1 / 8},
        {"samples": 64, "elite": 8, "score_tokens": 1 / 16, "learning": 0.3},
        {"samples": 32, "elite": 4, "score_tokens": 1 / 8, "learning": 0.1, "spread": 0.5},
    ],
    "halving": [
        {"candidates": 32, "rungs": 5, "score_tokens": 1 / 16, "max_shifts": 4},
        {"candidates": 64, "rungs": 5, "score_tokens": 1 / 16, "max_shifts": 4},
        {"candidates": 16, "rungs": 4, "score_tokens": 1 / 8, "max_shifts": 3},
    ],
    "additive": [
        {"reach": 1, "probe_tokens": 1 / 8, "score_tokens": 1.0},
        {"reach": 2, "probe_tokens": 1 / 8, "score_tokens": 1.0},
        {"reach": 1, "probe_tokens": 1 / 4, "score_tokens": 1.0},
    ],
    "puzzle": [{"probe_tokens": 1 / 16, "score_tokens": 1.0}],
    "lagrangian": [
        {"reach": 1, "probe_tokens": 1 / 8, "score_tokens": 1.0},
        {"reach": 2, "probe_tokens": 1 / 8, "score_tokens": 1.0},
        {"reach": 1, "probe_tokens": 1 / 4, "score_tokens": 1.0},
    ],
    "relaxation": [
        {"rate": 0.1, "slope_tokens": 1 / 4, "score_tokens": 1 / 4},
        {"rate": 0.3, "slope_tokens": 1 / 4, "score_tokens": 1 / 4},
        {"rate": 0.03, "slope_tokens": 1 / 8, "score_tokens": 1 / 8},
    ],
    "descent": [
        {"tokens": 1 / 4},
        {"tokens": 1 / 2},
        {"tokens": 1 / 4, "reach": 2},
    ],
    "evosax": [
        {"strategy": "CMA_ES", "population": 32, "score_tokens": 1 / 8, "scale": 1.0},
        {"strategy": "Sep_CMA_ES", "population": 32, "score_tokens": 1 / 8, "scale": 1.0},
        {"strategy": "DifferentialEvolution", "population": 32, "score_tokens": 1 / 8, "scale": 1.0},
    ],
    "evosax --logits": [
        {"logits": True, "strategy": "CMA_ES", "population": 32, "score_tokens": 1 / 8, "scale": 4.0},
        {"logits": True, "strategy": "CMA_ES", "population": 32, "score_tokens": 1 / 8, "scale": 16.0},
        {"logits": True, "strategy": "Sep_CMA_ES", "population": 32, "score_tokens": 1 / 8, "scale": 4.0},
    ],
}
"""Settings that a search chooses from; a name may have options after it. Numbers of tokens are shares of the
search text. Without a number of generations, a search has as many as the budget pays for."""

CHAINS: dict[str, list[dict[str, Options]]] = {
    "estimate, descent": [
        {"estimate": {"generations": 1, "score_tokens": 1 / 8}, "descent": {"tokens": tokens}}
        for tokens in (1 / 4, 1 / 2)
    ],
    "estimate, descent, evolution": [
        {
            "estimate": {"generations": 1, "score_tokens": 1 / 8},
            "descent": {"generations": generations, "tokens": 1 / 4},
            "evolution": {"offspring": 16, "survivors": (4, 1), "stage_tokens": (1 / 8, 1 / 2)},
        }
        for generations in (2, 4)
    ],
}
"""Settings that chains choose from, by search; what the others leave of the budget is for the last. The
searches of a chain start from what the one before has found. `tyr_jax.prune` runs the longest by default."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare."""

    searches: tuple[str, ...] = (*SETTINGS, *CHAINS)
    """Searches of the package, by their names in SETTINGS, or chains of them in CHAINS."""
    with_: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Searches of your own, as MODULE:NAME. They must be traceable, and run with their defaults."""
    problems: tuple[str, ...] = (*SYNTHETIC,)
    """Groups of synthetic problems, or names of exact ones; `exact` for all of these."""
    seeds: int = 10
    """Runs of each search on each problem."""
    passes: int = 256
    """Budget of a run, in candidate-tokens per token of the search text."""
    processes: int = 1
    """Processes that each run another search. On a CPU, one for each core is fastest."""
    results: Path = Path("runs/comparison.json")
    """File that keeps the settings and curves of each search."""


def class_of(name: str) -> type[Search]:
    """The search of a name: of those in SETTINGS, without the options after it."""
    return find(SEARCHES, name.split()[0] if name in SETTINGS else name, Search)


class Group(NamedTuple):
    """The problems of `runs` runs: stacked, or one that is `shared` by all."""

    problems: Problem | ExactProblem
    runs: int
    shared: bool = False

    @classmethod
    def of(cls, name: str, seeds: Sequence[int]) -> Self:
        """The problems of a name: of synthetic ones, one for each seed."""
        if name not in SYNTHETIC:
            return cls(load_problem(name), len(seeds), True)
        problems = [synthetic_problem(seed, **SIZE, **SYNTHETIC[name]) for seed in seeds]
        return cls(stack_problems(problems), len(seeds))

    @property
    def first(self) -> Problem | ExactProblem:
        """The problem of the first run."""
        return self.problems if self.shared else jax.tree.map(lambda leaf: leaf[0], self.problems)

    def held_out(self, levels: np.ndarray) -> np.ndarray:
        """The objective `[R, ...]` on the held-out text of each run's problem, of levels `[R, ..., S, L]`."""
        if not self.shared:
            return np.asarray(held_out(self.problems, levels))
        different, place = np.unique(levels.reshape(-1, *levels.shape[-2:]), axis=0, return_inverse=True)
        return np.asarray(self.problems.held_out(different))[place].reshape(levels.shape[:-2])

    def starts(self) -> np.ndarray:
        """The levels that each run starts from, `[R, S, L]`."""
        start = np.asarray(self.problems.start)
        return np.repeat(start[None], self.runs, axis=0) if self.shared else start

    def best(self) -> np.ndarray:
        """The least objective known, `[R]`."""
        return np.broadcast_to(np.asarray(self.problems.optimum), self.runs)

    def excess(self, values: np.ndarray) -> np.ndarray:
        """The share of the start's excess over the best known that is left at `values [R, ...]`."""
        start, best = (
            each.reshape(-1, *[1] * (values.ndim - 1)) for each in (self.held_out(self.starts()), self.best())
        )
        return (values - best) / (start - best)


held_out = jax.jit(jax.vmap(lambda problem, levels: problem.held_out(levels)))
"""The objective `[R, ...]` on the held-out text of each of R stacked problems, of levels `[R, ..., S, L]`."""


def configured(search: type[Search], options: Mapping[str, Any], space: SearchSpace, budget: int) -> Search:
    """A search with its shares of the text in tokens, and, if the options do not say how many generations it
    has, as many as the budget pays for."""
    text = space.sequences * space.length

    def tokens(value: Any) -> Any:
        return tuple(map(tokens, value)) if isinstance(value, tuple) else max(1, round(value * text))

    given = {name: tokens(value) if name.endswith("tokens") else value for name, value in options.items()}
    made = search(**given)
    made = made if "generations" in given else as_paid(made, space, budget)
    made.check()
    return made


def settings_of(name: str) -> Sequence[Options]:
    """The settings that the search or the chain of a name chooses from."""
    return CHAINS.get(name) or SETTINGS.get(name, [{}])


def chain_of(name: str, options: Mapping[str, Any], space: SearchSpace, budget: int) -> list[Search]:
    """The searches that a name stands for, one after the other, with their options."""
    if name not in CHAINS:
        return [configured(class_of(name), options, space, budget)]
    chain: list[Search] = []
    for each in name.split(", "):
        left = budget - sum(search.candidate_tokens(space) for search in chain)
        chain.append(configured(class_of(each), options[each], space, left))
    return chain


def generation_tokens(search: Search, space: SearchSpace) -> int:
    """Candidate-tokens of a generation."""
    return search.candidate_tokens(space) * search.stages(space) // search.steps(space)


def as_paid(search: Search, space: SearchSpace, budget: int) -> Search:
    """A search with as many generations as the budget pays for."""
    generations = max(1, budget // generation_tokens(search, space))
    return dataclasses.replace(search, generations=generations)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class Curves:
    """The held-out objective `values [R, P]` of each run after `tokens [P]` candidate-tokens, and the
    `seconds` that a run took, side by side with the others."""

    tokens: np.ndarray
    values: np.ndarray
    seconds: float


def check_budget(search: Search, group: Group, levels: np.ndarray) -> None:
    """Check the `levels [R, G, S, L]` that a search has found on the problems of a group.

    Raises:
        UserError: some do not meet the budget; names the search.
    """
    for index, found in enumerate(levels):
        shown = (
            group.problems if group.shared else jax.tree.map(lambda leaf, at=index: leaf[at], group.problems)
        )
        if not jax.tree.map(np.asarray, shown.space.budget).allows(found).all():
            raise UserError(f"{search.name} has found levels that do not meet the budget")


def run(chain: Sequence[Search], group: Group, key: int, budget: int) -> Curves:
    """Run searches on the problems of a group, each from what the one before has found, and each run with a
    key of its own.

    Raises:
        UserError: a search does not keep to the budget.
    """
    starts, space, seconds = group.starts(), group.first.space, 0.0
    found, tokens = [starts[:, None]], [0]
    for position, search in enumerate(chain):
        keys = jax.random.split(jax.random.key(key + position), group.runs)
        given = keys, group.problems, jnp.asarray(starts)
        compiled = search_many.lower(search, *given, shared=group.shared).compile()
        began = time.monotonic()
        levels = np.asarray(jax.block_until_ready(compiled(*given).levels))
        seconds += (time.monotonic() - began) / group.runs
        check_budget(search, group, levels)
        tokens += [tokens[-1] + generation_tokens(search, space) * (1 + g) for g in range(levels.shape[1])]
        starts = levels[:, -1]
        found.append(levels)
    points = np.geomspace(FIRST * budget, budget, POINTS)
    done = np.maximum(np.searchsorted(tokens, points, side="right") - 1, 0)
    return Curves(points, group.held_out(np.concatenate(found, axis=1)[:, done]), seconds)


def check_family(problems: Sequence[str]) -> None:
    """Check that `problems` to compare on are of one family, because settings are chosen for one.

    Raises:
        UserError: some are synthetic and some exact.
    """
    if len({name in SYNTHETIC for name in problems}) > 1:
        raise UserError(
            "settings are chosen for synthetic or for exact problems: compare on these in two calls"
        )


def tuning_groups(problems: Sequence[str]) -> list[Group]:
    """The problems on which settings are chosen, of the same family as `problems`."""
    seeds = range(TUNING, TUNING + 3)
    if any(name not in SYNTHETIC for name in problems):
        return [Group.of(name, seeds) for name in problem_names(tuning=True)]
    stacked = [Group.of(name, seeds).problems for name in SYNTHETIC]
    return [Group(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacked), 3 * len(stacked))]


def chosen_settings(name: str, groups: Sequence[Group], passes: int) -> Options:
    """The settings of a search with the least mean excess on the tuning problems."""
    losses = []
    for options in settings_of(name):
        left = []
        for group in groups:
            space = group.first.space
            budget = passes * space.sequences * space.length
            chain = chain_of(name, options, space, budget)
            left.append(group.excess(run(chain, group, TUNING, budget).values[:, -1]))
        losses.append(float(np.mean(left)))
    best = settings_of(name)[int(np.argmin(losses))]
    print(f"{name}: {best}, of {np.round(losses, 4).tolist()}", flush=True)
    return best


def study(name: str, asked: Comparison) -> dict[str, Any]:
    """What becomes of a search: the settings that it chooses, and its curves on every group of problems. Of a
    curve, the candidate-tokens, the excess `[R, P]` that is left, the last objective, and the seconds."""
    own = name in asked.with_
    settings = {} if own else chosen_settings(name, tuning_groups(asked.problems), asked.passes)
    groups = {}
    for called in asked.problems:
        group = Group.of(called, range(asked.seeds))
        space = group.first.space
        budget = asked.passes * space.sequences * space.length
        found = run(chain_of(name, settings, space, budget), group, 0, budget)
        excess = group.excess(found.values)
        print(f"{called}, {name}: {np.median(excess[:, -1]):.2%}, {found.seconds:.3f} s", flush=True)
        groups[called] = {
            "tokens": found.tokens.tolist(),
            "excess": shortened(excess),
            "objective": shortened(found.values[:, -1]),
            "seconds": found.seconds,
        }
    return {"settings": settings, "groups": groups}


def studied(asked: Comparison) -> dict[str, dict[str, Any]]:
    """What becomes of every search. What is known already is not computed again."""
    everyone = (*asked.searches, *asked.with_)
    same = dataclasses.replace(asked, searches=(), with_=(), processes=1, results=Path())
    kept = Results.of(asked.results, same)
    # With a process for each search, compiled programs do not reach Linux's limit on memory mappings.
    with ProcessPoolExecutor(asked.processes, get_context("spawn"), max_tasks_per_child=1) as apart:
        missing = [name for name in everyone if name not in kept.found]
        jobs = {apart.submit(study, name, asked): name for name in missing}
        try:
            for job in as_completed(jobs):
                kept.get(jobs[job], job.result)
        finally:
            apart.shutdown(wait=False, cancel_futures=True)
    return {name: kept.found[name] for name in everyone}


def signed_rank(one: np.ndarray, other: np.ndarray) -> float:
    """The p-value of Wilcoxon's test of values that are paired."""
    return float(wilcoxon(one, other).pvalue)


def adjusted(
    values: Mapping[Key, np.ndarray], test: Callable[[np.ndarray, np.ndarray], float] = signed_rank
) -> dict[Key, float]:
    """The p-value of each search against the best one (by mean) in a `test`, corrected by Holm; 1 for the
    best itself. `values [R]` are by run."""
    best = min(values, key=lambda name: float(values[name].mean()))
    others = {name: other for name, other in values.items() if not np.allclose(other, values[best])}
    raw = {name: test(other, values[best]) for name, other in others.items()}
    corrected, least = dict.fromkeys(values, 1.0), 0.0
    for rank, name in enumerate(sorted(raw, key=raw.__getitem__)):
        least = max(least, min(1.0, raw[name] * (len(raw) - rank)))
        corrected[name] = least
    return corrected


def shortened(values: np.ndarray) -> Any:
    """`values` as lists, to four digits: all that a curve needs, in a fraction of the space."""
    digits = 3 - np.floor(np.log10(np.maximum(np.abs(values), 1e-12))).astype(int)
    return np.vectorize(round, otypes=[float])(values.astype(float), digits).tolist()


def main(asked: Comparison) -> None:
    """Study every search, and print the table."""
    if asked.problems == ("exact",):
        asked = dataclasses.replace(asked, problems=tuple(problem_names()))
    require(asked.processes >= 1, "--processes", asked.processes, "at least 1")
    check_family(asked.problems)
    found = studied(asked)
    print_header("problems", "search", "excess left, median", "quartiles", "p against the best", "s per run")
    for called in asked.problems:
        curves = {name: each["groups"][called] for name, each in found.items()}
        ends = {name: np.asarray(each["excess"])[:, -1] for name, each in curves.items()}
        chance = adjusted(ends)
        for name in sorted(ends, key=lambda name: float(np.median(ends[name]))):
            low, middle, high = np.percentile(ends[name], (25, 50, 75))
            quartiles, seconds = f"{low:.2%}–{high:.2%}", f"{curves[name]['seconds']:.3f}"
            print_row(called, name, f"{middle:.2%}", quartiles, f"{chance[name]:.3f}", seconds)


if __name__ == "__main__":
    command.execute(main, Comparison, None, prog="python scripts/compare_searches.py", description=__doc__)
