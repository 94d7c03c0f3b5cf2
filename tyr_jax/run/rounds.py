"""Rounds of supernet and search, each around the distribution that the last one found (Algorithm 4)."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax import space
from tyr_jax.components import broken, guarded
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.prediction import Prediction
from tyr_jax.model.spec import ModelConfig
from tyr_jax.options import as_json
from tyr_jax.pruning.prices import Pricing, level_prices
from tyr_jax.pruning.settings import Resource
from tyr_jax.pruning.supernet import Supernet, at_levels, level_index, takes_all
from tyr_jax.pruning.target import Target
from tyr_jax.run import resume
from tyr_jax.run.fold import fold, fold_plan
from tyr_jax.run.prepare import Dense, Run
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import TEMPORARY
from tyr_jax.scoring import nested, scorer, slopes
from tyr_jax.scoring.nested import Nested
from tyr_jax.scoring.objective import TeacherBatch
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.search import loop, surrogate
from tyr_jax.search.contract import SLOPE_COST, SearchSpace, Sites
from tyr_jax.space import Budget, Kind, LevelGrid, Levels
from tyr_jax.workspace import records
from tyr_jax.workspace.facts import RoundFacts, SearchFacts
from tyr_jax.workspace.pytrees import SAVED
from tyr_jax.workspace.records import Step
from tyr_jax.workspace.store import Saved, Store

Tell = Callable[[int], None]
"""Callback that is given the amount of work just done."""

Ranks = dict[str, np.ndarray]
"""Ranks `[L, U]` of units, last removed first, by kind of site."""


@dataclasses.dataclass(frozen=True)
class SearchProgress:
    """Where a search stands: units kept `[S, L]`, and a record per round.

    `grid` has the levels of the supernet that they were found in; before the first round, those it will have.
    `ranks` has the ranks `[L, U]` of units there, for kinds whose price depends on which units are kept. With
    `--no-refit`, `supernet` is that of the last round, unless several targets share it.
    """

    kept: np.ndarray
    grid: LevelGrid
    rounds: list[records.RoundRecord]
    ranks: Ranks = dataclasses.field(default_factory=dict)
    supernet: Supernet | None = None


def round_grid(run: Run, dense: Dense, kept: np.ndarray, number: int) -> LevelGrid:
    """The levels of round `number` around `kept [S, L]`; their spacing halves every round."""
    rounds = run.settings.rounds
    return space.level_grid(
        dense.kinds, kept, rounds.levels, rounds.interval / 2 ** (number - 1), dense.whole
    )


def by_kind(kinds: Sequence[Kind], rows: np.ndarray) -> dict[str, Any]:
    """A number for every kind, or for every layer of it, by the kind's name, from `[S]` or `[S, L]`."""
    return dict(zip((kind.name for kind in kinds), rows.tolist(), strict=True))


def first_parent(sites: Sites, budget: Budget, centre: Levels) -> Levels:
    """The levels `[S, L]` that a search starts from: the nearest to the `centre` that meet the budget.

    Raises:
        UserError: no levels meet the budget.
    """
    found = surrogate.nearest(budget, sites.exists, centre)
    if found is None:
        raise UserError(
            "no levels around the current distribution meet the budget; raise --levels or --interval"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of a run: its `number`; the `grid` of levels around the last round's distribution; its
    supernet, nested, as `net`; what the fold found out about its `sites`; the budget; and the search text
    with the predictions of the dense model of `config` as `pool`."""

    run: Run
    config: ModelConfig
    pool: TeacherBatch
    number: int
    grid: LevelGrid
    net: Nested
    sites: Sites
    budget: Budget

    @property
    def store(self) -> Store:
        """The store of its steps."""
        return work_of(self.run, self.number)

    @property
    def name(self) -> str:
        """Its name in the progress display."""
        return f"round {self.number}/{self.run.settings.rounds.rounds}"

    def score(
        self, candidates: np.ndarray, sequences: np.ndarray, on_tokens: Tell, search: str, step: int
    ) -> np.ndarray:
        """Objective `[C]` of `candidates [C, S, L]` on `sequences [s]` of the search text, for a `step` of
        the search of this name.

        Raises:
            UserError: no candidate has a finite objective.
        """
        values = scorer.score_population(
            self.net, candidates, self.pool, sequences, self.config, self.run.settings.objective, on_tokens
        )
        lost = int(np.sum(~np.isfinite(values)))
        if lost:
            where = {"round": self.number, "stage": f"{self.name}: {search}", "step": step}
            self.run.events.write("objective not finite", **where, candidates=lost)
        if lost == len(values):
            if ":" in (objective := self.run.settings.objective).name:
                raise broken(objective, f"is not finite for any candidate of round {self.number}")
            raise UserError(
                f"the objective is not finite for any candidate of round {self.number}: the model overflows "
                "on the search text; check its weights, or run it in --compute-dtype float32"
            )
        return values

    def space(self) -> SearchSpace:
        """What a search may choose from."""
        return SearchSpace(self.grid.kept, self.grid.exists, self.budget, self.sites, *self.pool.tokens.shape)

    def slopes(self, levels: np.ndarray, sequences: np.ndarray, on_tokens: Tell) -> np.ndarray:
        """Slopes `[P, S, L, E]` of the objective from `levels [S, L]`, on parts of `sequences [s]` of the
        search text."""
        return slopes.pool_slopes(
            self.net, levels, self.pool, sequences, self.config, self.run.settings.objective, on_tokens
        )


def search_key(this: Round, position: int) -> jax.Array:
    """The key of the search at a `position` of the chain.

    The words of a first search's key are the seed and the round: descent draws its text from these words.
    """
    settings = this.run.settings
    if position == len(settings.search) - 1:
        return jax.random.fold_in(jax.random.key(settings.seed), this.number)
    words = jnp.array([settings.seed, this.number], jnp.uint32)
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    return jax.random.fold_in(key, position) if position else key


def run_search(this: Round, position: int, start: Levels) -> tuple[Levels, list[Step]]:
    """Run the search at a `position` of the chain from `start`: the levels `[S, L]` found, and a record of
    every step that has one.

    Raises:
        UserError: the search breaks its contract.
    """
    run, search, piece = this.run, this.run.settings.search[position], f"search-{position}"
    space, key = this.space(), search_key(this, position)
    begun = Saved(loop.begin_search(search, key, start, space), SearchFacts(history=[], spent=0))
    done, (state, facts) = this.store.last_step(piece, begun)
    history, spent = facts.history, facts.spent
    with guarded(search, "queries"):
        total = search.candidate_tokens(space)
    with run.progress.stage(f"{this.name}: {search.name}", total, "candidate-tokens") as stage:
        if done:
            stage.advance(spent, note=resume.KEPT)

        def spend(tokens: int) -> None:
            nonlocal spent
            spent += tokens
            stage.advance(tokens)

        def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
            return this.score(candidates, sequences, spend, search.name, done)

        def on_step(step: int, state: Any, answer: np.ndarray) -> None:
            nonlocal done
            done = step
            with guarded(search, "record"):
                record = search.record(state)
            if record is None:
                return
            noted = loop.checked_record(search, record)
            entry = as_json({"generation": step, "objective": float(answer.min()), **noted})
            entry |= {"candidate_tokens": spent, "search": search.name}
            history.append(Step(**entry))
            best = entry["objective"]
            told = "not finite" if best is None else f"{best:.4f}"
            stage.advance(0, f"generation {entry['generation']}, objective {told}")
            this.store.save_step(piece, step, state, SearchFacts(history=history, spent=spent))
            run.events.write("generation", round=this.number, **entry)

        slopes = functools.partial(this.slopes, on_tokens=lambda tokens: spend(SLOPE_COST * tokens))
        return loop.run(search, state, space, score, done, on_step, slopes), history


def work_of(run: Run, number: int) -> Store:
    """The store of a round's steps."""
    return run.store.part(f"work-{number}")


def search_in_turn(this: Round, start: Levels) -> tuple[Levels, list[Step]]:
    """Run the searches of the chain, each from what the one before it found: (the levels `[S, L]` found, the
    records of all steps)."""
    levels, history = start, []
    for position in range(len(this.run.settings.search)):
        levels, steps = run_search(this, position, levels)
        history += steps
    return levels, history


def supernet_of_round(run: Run, dense: Dense, grid: LevelGrid, number: int) -> Supernet:
    """Build the supernet that a round searches."""
    name = f"round {number}/{run.settings.rounds.rounds}: supernet"
    return fold(run, dense.model, dense.splits, fold_plan(run, dense, grid), name, work_of(run, number))


class PricedGrid(NamedTuple):
    """The levels of a round, its supernet, and the `prices [R, S, L, E]` of the limited resources. Of the
    kinds in `shared`, the weights are those of the supernet that the levels were chosen from. `ranks` has the
    ranks of units there, for kinds whose price depends on which units are kept."""

    grid: LevelGrid
    supernet: Supernet
    prices: np.ndarray
    shared: list[str]
    ranks: Ranks


def priced_grid(
    run: Run, config: ModelConfig, target: Target, grid: LevelGrid, supernet: Supernet
) -> PricedGrid:
    """The levels of `grid` with their prices. Where resources are limited, levels that cost as much as a
    denser one are left out of the grid and of the supernet."""
    ranks = settled_ranks(supernet)
    priced = functools.partial(
        level_prices, config, run.settings.pruning, ranks=ranks, resources=tuple(target.limits)
    )
    prices = priced(grid.kept)
    better = space.worthwhile_grid(grid, prices) if target.limits else grid
    if better is grid:
        return PricedGrid(grid, supernet, prices, list(supernet.weights), ranks)
    index = level_index(supernet, better)
    shared = [
        kind.name
        for row, kind in enumerate(supernet.kinds)
        if takes_all(index[row], supernet.weights[kind.name].shape[1])
    ]
    supernet = at_levels(supernet, index, better, run.scratch or TEMPORARY)
    return PricedGrid(better, supernet, priced(better.kept), shared, ranks)


def search_round(
    run: Run,
    dense: Dense,
    pool: TeacherBatch,
    target: Target,
    progress: SearchProgress,
    shared: Supernet | None = None,
) -> SearchProgress:
    """Run the next round after `progress`: build a supernet around it and search it (Algorithms 2 and 3).

    If a `shared` supernet is given, which has the round's levels among others, none is built.
    """
    rounds, config, number = run.settings.rounds, dense.model.config, len(progress.rounds) + 1
    built = round_grid(run, dense, progress.kept, number)
    scratch = run.scratch or TEMPORARY
    if shared is None:
        whole = supernet_of_round(run, dense, built, number)
    else:
        whole = at_levels(shared, level_index(shared, built), built, scratch)
    grid, supernet, prices, shared_weights, ranks = priced_grid(run, config, target, built, whole)
    last = number == rounds.rounds and not rounds.refit and shared is None
    for_models = whole if last else None
    del whole
    budget = target.budget(grid.kept, prices)
    sites = Sites(devices.fetch(supernet.error), devices.fetch(supernet.share), grid.exists)
    centre = space.levels_of(grid, progress.kept)
    start = first_parent(sites, budget, centre)
    net = nested.nest(dense.model.params, supernet, config, consume=True, scratch=scratch)
    this = Round(run, config, pool, number, grid, net, sites, budget)
    levels, history = search_in_turn(this, start)
    kept = space.kept_units(grid, levels)
    if target.limits and rounds.refit:
        kept = widened(this, dense.kinds[-1], levels, target.spare(prices, levels))
    if for_models is not None:
        found = nested.restored(net, supernet, config, scratch=scratch)
        for_models = put_back(for_models, found, shared_weights)
    step, by_layer = by_kind(dense.kinds, grid.step), by_kind(dense.kinds, kept)
    record = records.RoundRecord(round=number, step=step, kept=by_layer, history=history)
    return save_round(
        run,
        SearchProgress(
            kept,
            built if shared is None else progress.grid,
            [*progress.rounds, record],
            ranks if target.limits else {},
            for_models,
        ),
    )


def save_round(run: Run, progress: SearchProgress) -> SearchProgress:
    """Save and log the last round of `progress`, which is returned."""
    record = progress.rounds[-1]
    tree = progress.kept, vars(progress.grid), progress.ranks or None
    run.store.save_step("round", record.round, tree, RoundFacts(rounds=progress.rounds))
    run.events.write(
        "round", **{name: value for name, value in record.as_json().items() if name != "history"}
    )
    return progress


def settled_ranks(supernet: Supernet) -> Ranks:
    """The ranks `[L, U]` of units, by kind, for kinds whose price depends on which units are kept."""
    kinds = [kind.name for kind in supernet.kinds if kind.spreads is not None]
    return {name: devices.fetch(supernet.ranks[name]) for name in kinds}


def put_back(whole: Supernet, found: Supernet, shared: Sequence[str]) -> Supernet:
    """The `whole` supernet of a round after its search, which has overwritten the weights of the kinds
    `shared`; these are taken from what was `found` again."""
    return whole.replace(weights=whole.weights | {name: found.weights[name] for name in shared})


def widened(this: Round, kind: Kind, levels: Levels, spare: dict[Resource, int]) -> np.ndarray:
    """Spend what is `spare` of the resources on more units of the last `kind` of site, such as neurons, where
    they are estimated to help most: units `[S, L]`, from those at `levels [S, L]`."""
    kept = space.kept_units(this.grid, levels)
    before, at = kept[-1], levels[-1]
    sites = Sites(*(field[-1] for field in this.sites))

    def with_more(count: int) -> np.ndarray:
        return surrogate.widened(before, at, sites, this.grid.kept[-1], count, kind.multiple)

    def too_many(count: int) -> bool:
        """Whether so many steps of units more take more than is spare of some resource."""

        def taken(resource: Resource) -> int:
            pricing = Pricing.of(this.config, this.run.settings.pruning, resource)
            each = functools.partial(pricing.level, pricing.kinds[-1])
            return sum(map(each, with_more(count).tolist())) - sum(map(each, before.tolist()))

        return any(taken(resource) > left for resource, left in spare.items())

    most = this.config.depth * kind.units // kind.multiple
    more = bisect.bisect_left(range(most + 1), True, key=too_many) - 1
    return np.concatenate([kept[:-1], with_more(more)[None]])


def search_pool(run: Run, model: LoadedModel, text: np.ndarray) -> TeacherBatch:
    """The search text `[B, T]` with the dense model's predictions."""
    with run.progress.stage("dense model's predictions on the search text", len(text), "sequences") as stage:
        saved = run.store.load("pool", like=TeacherBatch(SAVED, Prediction(SAVED, SAVED, SAVED), SAVED))
        if saved is not None:
            stage.advance(len(text), note=resume.KEPT)
            return jax.tree.map(jnp.asarray, saved.tree)
        pool = teacher_targets(model.params, text, model.config, run.settings.objective, stage.advance)
        run.store.save("pool", pool)
    return pool


def search(
    run: Run, dense: Dense, pool: TeacherBatch, target: Target, progress: SearchProgress
) -> SearchProgress:
    """Run all rounds that `progress` still lacks."""
    while True:
        # Once a round is saved, its steps are no longer needed.
        work_of(run, len(progress.rounds)).clear()
        if len(progress.rounds) >= run.settings.rounds.rounds:
            return progress
        progress = search_round(run, dense, pool, target, progress)


def progress_so_far(run: Run, start: SearchProgress) -> SearchProgress:
    """Where the search stood when it was interrupted; `start` if no round was finished."""
    begun = Saved((start.kept, vars(start.grid), None), RoundFacts(rounds=[]))
    done, ((kept, grid, ranks), facts) = run.store.last_step("round", begun)
    return SearchProgress(kept, LevelGrid(**grid), facts.rounds, ranks or {}) if done else start


def first_rounds(
    run: Run,
    parts: Sequence[Run],
    dense: Dense,
    pool: TeacherBatch,
    starts: list[SearchProgress],
) -> list[SearchProgress]:
    """Run the first round for each of several targets, from `starts`, on one supernet with all levels."""
    if any(not start.rounds for start in starts):
        supernet = supernet_of_round(run, dense, starts[0].grid, 1)
        starts = [
            start if start.rounds else search_round(part, dense, pool, target, start, supernet)
            for part, target, start in zip(parts, dense.targets, starts, strict=True)
        ]
    work_of(run, 1).clear()
    return starts
