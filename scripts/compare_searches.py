"""Compare every search on every tabulated problem, at equal candidate-tokens. Usage:

  python scripts/compare_searches.py

Each search first chooses among its SETTINGS on synthetic problems that are used for nothing else. Then it
runs with ten seeds on each group of problems: on synthetic ones, whose optimum is known, with a problem of
its own for each seed; on tables measured on models, with other random draws. All runs of a search are one
program on the device.

The tables show how much of the objective's excess over the optimum is left on held-out text, where the start
has all of it, and whether a search differs from the best one (Wilcoxon's signed-rank test over seeds,
corrected by Holm). A search of your own takes part as --with MODULE:NAME.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from scipy.stats import wilcoxon

from tyr_jax.cli import command
from tyr_jax.components import find
from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.problems import Problem, load_problem, problem_names, stack_problems, synthetic_problem
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

POINTS = 24
"""Points of a curve."""

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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare."""

    searches: tuple[str, ...] = tuple(SETTINGS)
    """Searches of the package, by their names in SETTINGS."""
    with_: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Searches of your own, as MODULE:NAME. They must be traceable, and run with their defaults."""
    problems: tuple[str, ...] = (*SYNTHETIC, *problem_names())
    """Groups of synthetic problems, names of measured ones, or .npz files."""
    seeds: int = 10
    """Runs of each search on each problem."""
    passes: int = 256
    """Budget of a run, in candidate-tokens per token of the search text."""
    results: Path = Path("runs/comparison.json")
    """File that gets all curves."""


def class_of(name: str) -> type[Search]:
    """The search of a name: of those in SETTINGS, without the options after it."""
    return find(SEARCHES, name.split()[0] if name in SETTINGS else name, Search)


def group_of(name: str, seeds: Sequence[int]) -> Problem:
    """The problems of a group, one for each seed, stacked."""
    if name in SYNTHETIC:
        return stack_problems([synthetic_problem(seed, **SIZE, **SYNTHETIC[name]) for seed in seeds])
    return stack_problems([load_problem(name)[0]] * len(seeds))


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


def generation_tokens(search: Search, space: SearchSpace) -> int:
    """Candidate-tokens of a generation."""
    return search.candidate_tokens(space) * search.stages(space) // search.steps(space)


def as_paid(search: Search, space: SearchSpace, budget: int) -> Search:
    """A search with as many generations as the budget pays for."""
    generations = max(1, budget // generation_tokens(search, space))
    return dataclasses.replace(search, generations=generations)  # type: ignore[type-var]


def first_of(problems: Problem) -> Problem:
    """The first of stacked problems."""
    return jax.tree.map(lambda leaf: leaf[0], problems)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The held-out objective `values [R, P]` of each run after `tokens [P]` candidate-tokens, and the
    `seconds` that a run took, side by side with the others."""

    tokens: np.ndarray
    values: np.ndarray
    seconds: float


held_out = jax.jit(jax.vmap(lambda problem, levels: problem.held_out(levels)))
"""The objective `[R, ...]` on the held-out text of each of R problems, of levels `[R, ..., S, L]`."""


def check_budget(search: Search, problems: Problem, levels: np.ndarray) -> None:
    """Check the `levels [R, G, S, L]` that a search has found on stacked problems after each generation.

    Raises:
        UserError: some do not meet the budget; names the search.
    """
    for index, found in enumerate(levels):
        budget = jax.tree.map(lambda leaf, at=index: np.asarray(leaf[at]), problems.space.budget)
        if not budget.allows(found).all():
            raise UserError(f"{search.name} has found levels that do not meet the budget")


def run(search: Search, problems: Problem, key: int, budget: int) -> Curves:
    """Run a search on stacked problems, each with a key of its own.

    Raises:
        UserError: the search does not keep to the budget.
    """
    runs = len(problems.start)
    keys = jax.random.split(jax.random.key(key), runs)
    compiled = search_many.lower(search, keys, problems).compile()
    began = time.monotonic()
    levels = jax.block_until_ready(compiled(keys, problems).levels)
    seconds = (time.monotonic() - began) / runs
    check_budget(search, problems, np.asarray(levels))
    values = np.asarray(held_out(problems, levels))
    start = np.asarray(held_out(problems, problems.start[:, None]))
    cost = generation_tokens(search, first_of(problems).space)
    points = np.geomspace(budget / 256, budget, POINTS)
    done = np.minimum((points // cost).astype(int), values.shape[1])
    every = np.concatenate([start, values], axis=1)
    return Curves(points, every[:, done], seconds)


def excess(problems: Problem, values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The share of the start's excess over the `best [R]` that is left at `values [R, ...]`."""
    start = np.asarray(jax.vmap(lambda problem: problem.held_out(problem.start))(problems))
    shape = (-1, *[1] * (values.ndim - 1))
    return (values - best.reshape(shape)) / (start - best).reshape(shape)


def chosen_settings(asked: Comparison) -> dict[str, Options]:
    """The settings of each search with the least mean excess on the tuning problems."""
    groups = [group_of(name, range(TUNING, TUNING + 3)) for name in SYNTHETIC]
    problems = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)
    found = {}
    for name in asked.searches:
        losses = []
        for options in SETTINGS.get(name, [{}]):
            space = first_of(problems).space
            budget = asked.passes * space.sequences * space.length
            search = configured(class_of(name), options, space, budget)
            values = run(search, problems, TUNING, budget).values[:, -1]
            losses.append(float(excess(problems, values, np.asarray(problems.optimum)).mean()))
        found[name] = SETTINGS.get(name, [{}])[int(np.argmin(losses))]
        print(f"{name}: {found[name]}, of {np.round(losses, 4).tolist()}", flush=True)
        jax.clear_caches()  # Compiled programs would reach Linux's limit on memory mappings.
    return found


def compared(asked: Comparison, settings: Mapping[str, Options]) -> dict[str, dict[str, Curves]]:
    """The curves of every search on every group of problems."""
    classes = {name: class_of(name) for name in (*asked.searches, *asked.with_)}
    found: dict[str, dict[str, Curves]] = {}
    for group in asked.problems:
        problems = group_of(group, range(asked.seeds))
        space = first_of(problems).space
        budget = asked.passes * space.sequences * space.length
        found[group] = {}
        for name, search in classes.items():
            made = configured(search, settings.get(name, {}), space, budget)
            found[group][name] = run(made, problems, 0, budget)
            end = found[group][name].values[:, -1]
            print(f"{group}, {name}: {np.median(end):.4f}, {found[group][name].seconds:.3f} s", flush=True)
        jax.clear_caches()
    return found


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
    """Choose settings, run everything, print the tables and write the curves."""
    settings = chosen_settings(asked)
    found = compared(asked, settings)
    written: dict[str, Any] = {"settings": settings, "seeds": asked.seeds, "groups": {}}
    print_header("problems", "search", "excess left, median", "quartiles", "p against the best", "s per run")
    for group, curves in found.items():
        problems = group_of(group, range(asked.seeds))
        known = np.asarray(problems.optimum)
        # Without a known optimum, all runs have the same problem.
        least = min(float(each.values.min()) for each in curves.values())
        best = np.where(np.isnan(known), least, known)
        ends = {name: excess(problems, each.values[:, -1], best) for name, each in curves.items()}
        chance = adjusted(ends)
        for name in sorted(ends, key=lambda name: float(np.median(ends[name]))):
            low, middle, high = np.percentile(ends[name], (25, 50, 75))
            quartiles = f"{low:.2%}–{high:.2%}"
            print_row(
                group, name, f"{middle:.2%}", quartiles, f"{chance[name]:.3f}", f"{curves[name].seconds:.3f}"
            )
        written["groups"][group] = {
            name: {
                "tokens": each.tokens.tolist(),
                "excess": shortened(excess(problems, each.values, best)),
                "objective": shortened(each.values[:, -1]),
                "seconds": each.seconds,
            }
            for name, each in curves.items()
        }
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.results, json.loads(json.dumps(written)))


if __name__ == "__main__":
    command.execute(main, Comparison, None, prog="python scripts/compare_searches.py", description=__doc__)
