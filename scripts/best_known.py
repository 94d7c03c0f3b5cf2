"""Find the best distributions known for the exact problems, which regret is measured against.

  python scripts/best_known.py

Searches of several kinds run on the held-out text itself, one after the other, each from the best so far,
with several seeds. The last one tries every exchange of a level between two sites. The file of the package is
written anew after each problem. What it holds is only replaced by something better.
"""

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import commit, machine

from tyr_jax.cli import command
from tyr_jax.files import write_json
from tyr_jax.problems import ExactProblem, load_problem, problem_names
from tyr_jax.problems.exact import BEST, best_known
from tyr_jax.search.contract import Search
from tyr_jax.search.descent import Descent
from tyr_jax.search.device import search_many
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.exchange import Exchange

EVERY = (*problem_names(tuning=True), *problem_names())


@dataclasses.dataclass(frozen=True)
class Hunt:
    """How long to search."""

    problems: tuple[str, ...] = EVERY
    """Exact problems."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds; each begins at the problem's start."""
    descents: int = 12
    """Steps of descent; 0 for none."""
    generations: int = 60
    """Generations of evolution, with 32 candidates each."""
    exchanges: int = 2
    """Times that the best of all exchanges is made; 0 for none."""
    output: Path = BEST
    """The file."""


def searches_of(hunt: Hunt, tokens: int) -> list[Search]:
    """The searches of a seed, for a text of so many tokens."""
    few = tokens // 8
    every: list[Search] = [
        Descent(hunt.descents, tokens=tokens // 2),
        Evolution(hunt.generations, 32, (8, 2), (few, tokens)),
        Descent(hunt.descents, reach=2, tokens=tokens // 2),
        Exchange(hunt.exchanges, swaps=10_000, score_tokens=tokens),
    ]
    return [search for search in every if search.generations]


def found_by(hunt: Hunt, problem: ExactProblem, seed: int) -> np.ndarray:
    """The best levels `[S, L]` that the searches of a seed find on the held-out text."""
    tokens, best = problem.held_out_text.tokens, np.asarray(problem.start)
    oracle = problem.replace(
        text=problem.held_out_text,
        space=problem.space.replace(sequences=len(tokens), length=tokens.shape[1]),
    )
    for number, search in enumerate(searches_of(hunt, tokens.size)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        trace = search_many(search, key[None], oracle, jnp.asarray(best)[None], shared=True)
        ends = np.unique(np.concatenate([best[None], np.asarray(trace.levels[0])]), axis=0)
        values = np.asarray(problem.held_out(ends))
        best = ends[values.argmin()]
        print(f"  seed {seed}, {search.name}: {values.min():.5f}", flush=True)
    return best


def main(hunt: Hunt) -> None:
    """Search, and write what is better."""
    for name in hunt.problems:
        began, problem = time.monotonic(), load_problem(name)
        print(f"{name}: start {float(problem.held_out(problem.start)):.5f}", flush=True)
        found = [np.asarray(problem.best), *(found_by(hunt, problem, seed) for seed in hunt.seeds)]
        values = np.asarray(problem.held_out(np.stack(found)))
        best = found[int(values.argmin())]
        start = float(problem.held_out(problem.start))
        facts = best_known() | {name: {"levels": best.tolist(), "kl": float(values.min()), "start": start}}
        written: dict[str, Any] = {
            "problems": {each: facts[each] for each in EVERY if each in facts},
            "script": "python scripts/best_known.py",
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
        }
        write_json(hunt.output, written)
        print(f"{name}: {values.min():.5f}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    command.execute(main, Hunt, None, prog="python scripts/best_known.py", description=__doc__)
