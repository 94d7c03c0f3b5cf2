"""The order of stages (Algorithm 4): rounds of supernet and search, then refit, compress and measure.

Everything that joins stages is here; each stage itself is a pure function elsewhere. Side effects are the
progress display, the event log and, at the end, the output directory.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax import quality
from tyr_jax.config import Settings, validate
from tyr_jax.data import Splits, load_splits
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.io.output import EventLog
from tyr_jax.io.progress import Progress
from tyr_jax.model.prediction import Prediction
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.supernet import PruningSettings, Supernet, build_supernet
from tyr_jax.quality import Quality
from tyr_jax.search import evolve, nested, space, surrogate
from tyr_jax.search.nested import Nested
from tyr_jax.search.objective import Batch
from tyr_jax.search.population import teacher_targets
from tyr_jax.search.space import Kind, LevelGrid

Qualities = dict[str, Quality]
"""Quality by name of the text."""

Tell = Callable[[int], None]
"""Told how much is done."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """The model to prune, its text and its answers on it, and the type that weights are written in."""

    model: LoadedModel
    splits: Splits
    kinds: tuple[Kind, Kind]
    budgets: tuple[int, int]
    teachers: dict[str, Prediction]
    quality: Qualities
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model: physically smaller params and config, units kept `[2, L]`, and how good it is."""

    params: Params
    config: ModelConfig
    kept: np.ndarray
    quality: Qualities


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a run found; `rounds` has a record per round."""

    dense: Dense
    uniform: Pruned
    searched: Pruned | None
    rounds: list[dict[str, Any]]

    @property
    def final(self) -> Pruned:
        """The model to write: the searched one, or the uniform one where nothing was searched."""
        return self.searched or self.uniform


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage of one run shares."""

    settings: Settings
    progress: Progress
    events: EventLog


def measure_texts(params: Params, config: ModelConfig, dense: Dense, run: Run, name: str) -> Qualities:
    """Quality of a pruned model on every evaluation text."""
    texts = dense.splits.evaluation
    result = {}
    with run.progress.stage(f"evaluate {name}", sum(map(len, texts.values())), "windows") as stage:
        for text, windows in texts.items():
            teacher = dense.teachers[text]
            result[text] = quality.measure(params, windows, config, teacher, stage.advance)
    record_quality(run, name, result)
    return result


def record_quality(run: Run, name: str, result: Qualities) -> None:
    """Log the quality of the model called `name`."""
    run.events.write("quality", model=name, texts={text: q._asdict() for text, q in result.items()})


def prepare(run: Run) -> Dense:
    """Load model and text, check that the target is possible, and record the dense model's answers.

    Raises:
        UserError: anything about the model, the text or the target that cannot work.
    """
    settings = run.settings
    with run.progress.stage("load model", 1, "models") as stage:
        model = load_model(settings.model)
        stage.advance()
    if not model.config.uniform:
        raise UserError(
            f"{settings.model} is pruned already: its layers differ; prune the dense model instead"
        )
    kinds = settings.pruning.kinds(model.config)
    budgets = target_budgets(kinds, model.config.depth, settings.sparsity)
    check_length("--sequence-length", settings.data.sequence_length, model)
    if settings.rounds.rounds:
        check_length("--search-length", settings.data.search_length, model)
    check_length("--evaluation-length", settings.data.evaluation_length, model)
    with run.progress.stage("read text", 1, "texts") as stage:
        splits = load_splits(settings.data, model.tokenizer, settings.seed)
        stage.advance()
    texts = splits.evaluation
    teachers, measured = {}, {}
    with run.progress.stage("evaluate dense", sum(map(len, texts.values())), "windows") as stage:
        for name, windows in texts.items():
            teachers[name], measured[name] = quality.teach(model.params, windows, model.config, stage.advance)
    record_quality(run, "dense", measured)
    dtype = model.stored_dtype if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
    return Dense(model, splits, kinds, budgets, teachers, measured, dtype)


def target_budgets(kinds: tuple[Kind, Kind], depth: int, sparsity: float) -> tuple[int, int]:
    """Units that each kind keeps in all.

    Raises:
        UserError: the sparsity, in whole units, would leave a kind intact or remove it altogether.
    """
    attention, ffn = (space.unit_budget(kind, depth, sparsity) for kind in kinds)
    return attention, ffn


def check_length(flag: str, length: int, model: LoadedModel) -> None:
    """Sequences must fit the model's context.

    Raises:
        UserError: a sequence length beyond the model's positions.
    """
    limit = model.config.max_positions
    if length > limit:
        raise UserError(f"{flag} is {length}, but {model.source} has only {limit} positions; lower it")


def fold(run: Run, dense: Dense, grid: LevelGrid, pruning: PruningSettings, name: str) -> Supernet:
    """Build the supernet of `grid` on the calibration text, with progress."""
    model = dense.model
    with run.progress.stage(name, 2 * model.config.depth, "sites") as stage:

        def on_site(site: str, damping: float) -> None:
            raised = damping > pruning.damping * 1.01
            stage.advance(note=f"{site}: damping raised to {damping:.2g}" if raised else site)
            if raised:
                run.events.write("damping raised", site=site, damping=damping, stage=name)

        return build_supernet(
            model.params,
            (dense.splits.calibration, dense.splits.openings),
            model.config,
            grid,
            pruning,
            seed=run.settings.seed,
            on_site=on_site,
        )


def first_parent(supernet: Supernet, grid: LevelGrid, start: str) -> np.ndarray:
    """The levels `[2, L]` that a search starts from: its centre, or the best by estimate."""
    if start == "estimate":
        return surrogate.estimated_start(supernet.error, supernet.share, grid.exists)
    return space.centre_distribution(grid)


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: the supernet around where the last one ended, nested, its layer `error [2, L, E]`, and the
    search text with the dense model's answers."""

    run: Run
    dense: Dense
    pool: Batch
    number: int
    grid: LevelGrid
    net: Nested
    error: np.ndarray

    @property
    def name(self) -> str:
        """What the progress display calls it."""
        return f"round {self.number}/{self.run.settings.rounds.rounds}"

    def score(self, candidates: np.ndarray, sequences: np.ndarray, on_tokens: Tell) -> np.ndarray:
        """Objective `[C]` of `candidates [C, 2, L]` on `sequences [s]` of the search text."""
        config, objective = self.dense.model.config, self.run.settings.objective
        return nested.score_population(
            self.net, candidates, self.pool, sequences, config, objective, on_tokens
        )

    def slopes(self, levels: np.ndarray, sequences: np.ndarray, on_tokens: Tell) -> np.ndarray:
        """Slopes `[2, L, E]` of the objective from `levels [2, L]`, on `sequences [s]` of the search text."""
        config, objective = self.dense.model.config, self.run.settings.objective
        return nested.pool_slopes(self.net, levels, self.pool, sequences, config, objective, on_tokens)


def descend(this: Round, start: np.ndarray) -> tuple[np.ndarray, list[list[float]]]:
    """The levels `[2, L]` that steps down the objective's slopes lead to from `start [2, L]`, and the
    objectives met on the way."""
    settings, sequences = this.run.settings, len(this.pool.tokens)
    steps, length = settings.rounds.descent_steps, settings.data.search_length
    count = max(1, min(settings.rounds.descent_tokens // length, sequences // 2))
    rng = np.random.default_rng((settings.seed, this.number))
    orders = [rng.permutation(sequences) for _ in range(steps)]
    # Tokens of slopes, and candidate-tokens of scoring the proposals and what they came from.
    total = steps * (2 + len(surrogate.CAUTIONS)) * count * length
    with this.run.progress.stage(f"{this.name}: descent", total, "tokens") as stage:
        return surrogate.descend(
            start,
            this.error,
            this.grid.exists,
            functools.partial(this.slopes, on_tokens=stage.advance),
            functools.partial(this.score, on_tokens=stage.advance),
            [(order[:count], order[count : 2 * count]) for order in orders],
        )


def evolution(this: Round, start: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The levels `[2, L]` that the evolutionary search finds from `start`, and a record per generation."""
    run, settings = this.run, this.run.settings
    schedule, length = settings.search, settings.data.search_length
    spent, history = 0, []
    total = schedule.generations * schedule.candidate_tokens(length)
    with run.progress.stage(f"{this.name}: search", total, "candidate-tokens") as stage:

        def spend(tokens: int) -> None:
            nonlocal spent
            spent += tokens
            stage.advance(tokens)

        def on_generation(state: evolve.EvolutionState, parent: float) -> None:
            fitness = float(state.fitness)
            note = f"generation {int(state.generation)}/{schedule.generations}, objective {fitness:.4f}"
            stage.advance(0, note)
            record = {"generation": int(state.generation), "objective": fitness, "parent": parent}
            history.append(record | {"candidate_tokens": spent})
            run.events.write("generation", round=this.number, **history[-1])

        state = evolve.evolve(
            evolve.init(jax.random.fold_in(jax.random.key(settings.seed), this.number), start),
            this.grid.exists,
            functools.partial(this.score, on_tokens=spend),
            len(this.pool.tokens),
            length,
            schedule,
            on_generation,
        )
    return np.asarray(state.parent), history


def search_round(
    run: Run, dense: Dense, grid: LevelGrid, pool: Batch, number: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """One round: build the supernet of `grid`, search it (Algorithms 2 and 3).

    Returns the units kept `[2, L]` that it found, and a record.
    """
    settings, model, rounds = run.settings, dense.model, run.settings.rounds
    supernet = fold(run, dense, grid, settings.pruning, f"round {number}/{rounds.rounds}: supernet")
    start = first_parent(supernet, grid, rounds.start if number == 1 else "uniform")
    net, error = nested.nest(model.params, supernet, model.config), np.asarray(supernet.error)
    del supernet
    this = Round(run, dense, pool, number, grid, net, error)
    start, descent = descend(this, start) if rounds.descent_steps else (start, [])
    levels, history = evolution(this, start)
    found = space.kept_units(grid, levels)
    steps = dict(zip(space.KINDS, map(int, grid.step), strict=True))
    record = {"round": number, "step": steps, "descent": descent, "kept": kept_by_kind(found)}
    run.events.write("round", **record)
    return found, record | {"history": history}


def kept_by_kind(kept: np.ndarray) -> dict[str, list[int]]:
    """Units kept per layer, by kind, from `[2, L]`."""
    return dict(zip(space.KINDS, kept.tolist(), strict=True))


def realise(run: Run, dense: Dense, kept: np.ndarray, grid: LevelGrid | None, name: str) -> Pruned:
    """The physically smaller model that keeps `kept [2, L]` units, measured with weights as written.

    A supernet's weights were fitted to the expectation over many distributions. Once one is chosen, every
    site is pruned anew to its one level, seeing what the chosen layers before it really pass on; the
    uniform baseline gets the same, so that the two compare. With `--no-refit` the weights are those of the
    supernet of `grid`, in which the distribution was found (None where none was built).
    """
    model, settings = dense.model, run.settings
    pruning = settings.pruning
    if settings.rounds.refit or grid is None:
        grid = space.level_grid(dense.kinds, kept, 1, settings.rounds.interval)
        pruning = dataclasses.replace(pruning, accumulation="centre")
    supernet = fold(run, dense, grid, pruning, f"prune {name}")
    levels = space.levels_of(grid, kept)
    params, config = compress(model.params, supernet, levels, model.config, pruning.neuron_multiple)
    params = jax.tree.map(lambda array: array.astype(dense.dtype).astype(array.dtype), params)
    return Pruned(params, config, kept, measure_texts(params, config, dense, run, name))


def round_grid(run: Run, dense: Dense, kept: np.ndarray, number: int) -> LevelGrid:
    """The levels of a round around `kept [2, L]`: their distance halves every round."""
    rounds = run.settings.rounds
    return space.level_grid(dense.kinds, kept, rounds.levels, rounds.interval / 2 ** (number - 1))


def search_rounds(
    run: Run, dense: Dense, kept: np.ndarray
) -> tuple[np.ndarray, LevelGrid, list[dict[str, Any]]]:
    """(units kept `[2, L]`, the last round's levels, a record per round): from `kept`, each round around the
    last one's answer."""
    settings, model = run.settings, dense.model
    records = []
    with run.progress.stage(
        "dense model's answers on the search text", len(dense.splits.search), "sequences"
    ) as stage:
        pool = teacher_targets(
            model.params, dense.splits.search, model.config, settings.objective, stage.advance
        )
    for number in range(1, settings.rounds.rounds + 1):
        grid = round_grid(run, dense, kept, number)
        kept, record = search_round(run, dense, grid, pool, number)
        records.append(record)
    return kept, grid, records


def prune_model(settings: Settings, progress: Progress, events: EventLog) -> Outcome:
    """Prune a model as `settings` say (Algorithm 4).

    Raises:
        UserError: anything in the settings, the model or the text that cannot work.
    """
    validate(settings)
    run = Run(settings, progress, events)
    return prune_prepared(run, prepare(run))


def prune_prepared(run: Run, dense: Dense) -> Outcome:
    """Prune a model that `prepare` has read, to the budgets in `dense` (which may be those of another
    sparsity: `target_budgets`)."""
    centres = space.uniform_centres(dense.kinds, dense.model.config.depth, dense.budgets)
    if not run.settings.rounds.rounds:
        return Outcome(dense, realise(run, dense, centres, None, "uniform"), None, [])
    uniform = realise(run, dense, centres, round_grid(run, dense, centres, 1), "uniform")
    kept, grid, records = search_rounds(run, dense, centres)
    return Outcome(dense, uniform, realise(run, dense, kept, grid, "searched"), records)
