"""Measure a tabulated problem on a model: score candidates of a supernet, and fit tables to them. The
package's problems were made by:

  python scripts/make_problem.py --sparsity 0.25 --name smollm2-25
  python scripts/make_problem.py --sparsity 0.5 --name smollm2-50
  python scripts/make_problem.py --sparsity 0.75 --name smollm2-75 --rounds 6
  python scripts/make_problem.py --model gemma-3-270m.gguf --sparsity 0.5 --name gemma3-50 \\
      --walks 260 --rounds 5 --finds 192 --search-tokens 512 --held-out-tokens 256

A first set of candidates spreads over the space: every site alone at every level, and random shifts from the
start. Then searches of several kinds run on the fitted tables. What they find, with neighbours, is really
scored and added, so that the tables hold where searches go. The error that the datasheet states is that of
the last such set before it was added. Scores are kept in a directory of their own; an interrupted run
continues.
"""

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from compare_searches import SETTINGS, configured
from jobs import Results
from measure import commit, machine
from problem_fit import Scores, errors_of, fit_problem
from world import OBJECTIVE, OnSupernet, World, make_world

from tyr_jax import space
from tyr_jax.cli import command
from tyr_jax.errors import UserError, require
from tyr_jax.problems import Problem, save_problem, stack_problems
from tyr_jax.scoring.scorer import score_population
from tyr_jax.search.contract import Query, SearchSpace
from tyr_jax.search.device import search_many
from tyr_jax.search.draws import neighbours
from tyr_jax.search.registry import SEARCHES
from tyr_jax.space import mutate

PROPOSING = ("descent", "evolution", "exchange", "distribution", "lagrangian", "relaxation")
"""Searches that propose candidates, one of each kind."""

RUNS = 4
"""Runs of each of them."""


@dataclasses.dataclass(frozen=True)
class Measured(OnSupernet):
    """What to measure."""

    sparsity: float = 0.5
    """Target, in units of each kind."""
    name: str = "smollm2-50"
    """Name of the problem."""
    output: Path = Path("tyr_jax/problems/data")
    """Directory of the file."""
    scores: Path = Path("runs/problems")
    """Directory of the scores. Scores of another model, target or text need another one."""
    walks: int = 500
    """Candidates by random shifts from the start."""
    rounds: int = 4
    """Rounds in which candidates found by searching the tables are scored and added."""
    finds: int = 250
    """Candidates added in each of these rounds."""
    passes: int = 64
    """Budget of a search on the tables, in candidate-tokens per token of the search text."""
    sequence_length: int = 128
    """Tokens of a sequence."""
    search_tokens: int = 1024
    """Tokens of the search text."""
    held_out_tokens: int = 512
    """Tokens of the held-out text."""
    calibration_tokens: int = 16384
    """Tokens to prune on."""


Scorer = Callable[[np.ndarray], Scores]


def scorer(world: World) -> Scorer:
    """Scores of candidates on each sequence of the search text, and on the held-out text."""

    def score(levels: np.ndarray) -> Scores:
        each = functools.partial(
            score_population,
            world.net,
            levels,
            world.pool,
            config=world.config,
            objective=OBJECTIVE,
        )
        search = [each(sequences=np.array([s])) for s in range(len(world.pool.tokens))]
        return Scores(levels, np.column_stack(search), world.judge(levels))

    return score


def kept(file: Path, levels: np.ndarray, score: Scorer, batch: int = 64) -> Scores:
    """Scores of candidates `levels [n, S, L]`, a batch at a time, kept in `file`.

    Raises:
        UserError: Scores are kept of other candidates.
    """
    parts = []
    for number, start in enumerate(range(0, len(levels), batch)):
        part, began = file.with_name(f"{file.name}-{number}.npz"), time.monotonic()
        if not part.is_file():
            unfinished = part.with_name(f"unfinished-{part.name}")
            np.savez(unfinished, *score(levels[start : start + batch]))
            unfinished.replace(part)
        with np.load(part) as stored:
            parts.append(Scores(*(stored[name] for name in stored.files)))
        if not np.array_equal(parts[-1].levels, levels[start : start + batch]):
            raise UserError(f"{part} has scores of other candidates; name another directory with --scores")
        left = (time.monotonic() - began) * (len(levels) - start - batch) / batch
        print(
            f"{file.name}: {min(start + batch, len(levels))}/{len(levels)}, {max(0, left):.0f} s left",
            flush=True,
        )
    return functools.reduce(Scores.joined, parts)


def spread(choice: SearchSpace, start: np.ndarray, asked: Measured) -> np.ndarray:
    """The first candidates: the start, every site alone at every level, and random walks of many lengths."""
    singles = [start]
    for site in np.argwhere(np.asarray(choice.exists)):
        if site[2] != start[site[0], site[1]]:
            alone = start.copy()
            alone[site[0], site[1]] = site[2]
            singles.append(alone)
    keys = jax.random.split(jax.random.key(1), asked.walks)
    exists = jnp.asarray(choice.exists)

    def walk(key: jax.Array, steps: jax.Array) -> jax.Array:
        def step(number: int, levels: jax.Array) -> jax.Array:
            return mutate(jax.random.fold_in(key, number), levels, exists, choice.budget, 1)

        return jax.lax.fori_loop(0, steps, step, jnp.asarray(start))

    steps = jnp.asarray(np.geomspace(1, start.size, asked.walks).round().astype(int))
    return np.concatenate([np.stack(singles), np.asarray(jax.jit(jax.vmap(walk))(keys, steps))])


def best_of(levels: np.ndarray, problem: Problem) -> np.ndarray:
    """The one of `levels [n, S, L]` with the lowest objective on the search text, in the tables."""
    every = Query(levels, np.arange(problem.space.sequences))
    return np.asarray(levels[int(np.argmin(problem.answer(every)))])


def finds(problem: Problem, asked: Measured, number: int) -> np.ndarray:
    """What searches on the tables find, on their way too, with neighbours: `[n, S, L]`, no two alike."""
    keys = jax.random.split(jax.random.key(100 + number), RUNS)
    many = stack_problems([problem] * RUNS)
    rng = np.random.default_rng(number)
    chosen: list[np.ndarray] = []
    budget = asked.passes * problem.space.sequences * problem.space.length
    for name in PROPOSING:
        search = configured(SEARCHES[name], SETTINGS[name][0], problem.space, budget)
        on_way = np.asarray(search_many(search, keys, many).levels).reshape(-1, *problem.start.shape)
        on_way = np.unique(on_way, axis=0)
        chosen.append(best_of(on_way, problem))
        chosen.extend(rng.permutation(on_way)[1 : asked.finds // (2 * len(PROPOSING))])
    best = jnp.asarray(best_of(np.stack(chosen), problem))
    around = neighbours(keys[0], best, problem.space, asked.finds - len(chosen), 8)
    return np.unique(np.concatenate([np.stack(chosen), np.asarray(around)]), axis=0)


def measured(asked: Measured, world: World) -> Iterator[tuple[Problem, Scores, dict[str, float]]]:
    """(problem, all scores, errors on the last set before it was added), round by round."""
    start = space.centre_distribution(world.grid)
    choice = world.space()
    score, file = scorer(world), asked.scores / asked.name
    measured_on = dataclasses.replace(
        asked, output=Path(), scores=Path(), walks=0, rounds=0, finds=0, passes=0
    )
    Results.of(asked.scores / f"{asked.name}.json", measured_on).get("measured", lambda: True)
    scores = kept(file.with_name(f"{asked.name}-spread"), spread(choice, start, asked), score)
    problem = fit_problem(choice, start, scores)
    yield problem, scores, {}
    for number in range(1, asked.rounds + 1):
        fresh = kept(file.with_name(f"{asked.name}-finds{number}"), finds(problem, asked, number), score)
        errors = errors_of(problem, fresh)
        scores = scores.joined(fresh)
        problem = fit_problem(choice, start, scores)
        yield problem, scores, errors


def main(asked: Measured) -> None:
    """Measure, fit and write the problem.

    Raises:
        UserError: A round has no place for a candidate of each search and a neighbour.
    """
    least = 2 * len(PROPOSING)
    require(asked.finds >= least, "--finds", asked.finds, f"at least {least}")
    world = make_world(asked, asked.sparsity)
    for problem, scores, errors in measured(asked, world):  # noqa: B007
        told = {name: round(value, 4) for name, value in errors.items()}
        print(f"{len(scores.levels)} candidates:", told, flush=True)
    datasheet = {
        "model": dataclasses.asdict(world.origin),
        "sparsity": asked.sparsity,
        "budget": "units of each kind",
        "units between levels": world.grid.step.tolist(),
        "calibration": list(asked.calibration),
        "calibration tokens": asked.calibration_tokens,
        "search tokens": asked.search_tokens,
        "held-out tokens": asked.held_out_tokens,
        "candidates scored": len(scores.levels),
        "rounds of searching the tables": asked.rounds,
        "candidates added in a round": asked.finds,
        "objective": "KL to the dense model's predictions, per token",
        "best held-out objective scored": float(scores.held_out.min()),
        "held-out objective of the start": float(scores.held_out[0]),
        "errors": errors,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
    }
    save_problem(problem, asked.output / f"{asked.name}.npz", datasheet)
    print(f"written to {asked.output / asked.name}.npz")


if __name__ == "__main__":
    command.execute(main, Measured, None, prog="python scripts/make_problem.py", description=__doc__)
