"""The search against scorers whose optimum is known: selection, elitism, repetition and continuation."""

import dataclasses
import itertools
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from tyr_jax import space
from tyr_jax.search import contract, loop
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.evolution import Evolution, EvolutionState
from tyr_jax.space import Fitness, Kind
from tyr_jax.workspace import pytrees

DEPTH, LEVELS, POOL, LENGTH = 4, 5, 12, 8
KINDS = (Kind("attention", 6, 1), Kind("ffn", 48, 8))
GRID = space.level_grid(KINDS, np.array([[3] * DEPTH, [24] * DEPTH]), LEVELS, 1 / 6)
START = space.centre_distribution(GRID)
SPACE = SearchSpace.around(GRID, START, POOL, LENGTH)
SCHEDULE = Evolution(generations=12, offspring=24, survivors=(8, 3, 1), stage_tokens=(8, 16, 40))


def initial(seed: int = 0) -> EvolutionState:
    return SCHEDULE.init(jax.random.key(seed), START, SPACE)


class Recorder:
    """A scorer `base(candidate) + noise(sequence, candidate)` that remembers how it was called."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.standard_normal((2, DEPTH, LEVELS))
        self.noise = noise * rng.standard_normal((POOL, 2, DEPTH, LEVELS))
        self.calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        table = self.table + self.noise[sequences].mean(axis=0)
        values = np.take_along_axis(table[None], candidates[..., None], axis=-1)[..., 0].sum(axis=(1, 2))
        self.calls.append((candidates, sequences, values))
        return values


def changed(**fields: Any) -> Evolution:
    return dataclasses.replace(SCHEDULE, **fields)


def run(
    score: Any, schedule: Evolution = SCHEDULE, state: EvolutionState | None = None, done: int = 0
) -> EvolutionState:
    """The state after the last step."""
    states = [initial() if state is None else state]
    loop.run(schedule, states[0], SPACE, score, done, lambda step, state, _: states.append(state))
    return states[-1]


def select(
    offspring: np.ndarray, parent: np.ndarray, counts: list[int], survivors: list[int], score: Any
) -> tuple[np.ndarray, float, float]:
    """(winner, its fitness, the parent's fitness) of a generation with these offspring.

    Up to and including each stage, candidates are scored on `counts` sequences.
    """
    schedule = Evolution(1, len(offspring), tuple(survivors), tuple(count * LENGTH for count in counts))
    state = schedule.init(jax.random.key(0), parent, SPACE)
    candidates, first = np.concatenate([parent[None], offspring]), 0
    for added, _ in schedule.schedule(LENGTH):
        fitness = score(candidates, np.arange(first, first + added))
        state = schedule.tell(state, candidates, np.where(np.isfinite(fitness), fitness, np.inf))
        candidates, first = np.asarray(state.pool), first + added
    return np.asarray(schedule.best(state)), float(state.fitness), float(state.beaten)


def every_candidate() -> np.ndarray:
    """All distributions `[C, S, L]` on the grid that keep as many units as the start."""
    rows = [row for row in itertools.product(range(LEVELS), repeat=DEPTH) if sum(row) == START[0].sum()]
    return np.array(list(itertools.product(rows, rows)))


def test_the_whole_grid_exists() -> None:
    # `every_candidate` counts levels, which is right only where no level is masked.
    assert GRID.exists.all()
    assert GRID.step.tolist() == [1, 8]


def test_a_small_space_is_searched_to_its_optimum() -> None:
    score = Recorder(seed=1)
    everything = every_candidate()
    values = score(everything, np.arange(POOL))
    best, start = values.min(), float(score(START[None], np.arange(POOL))[0])
    final = run(score)
    found = float(score(np.asarray(final.parent)[None], np.arange(POOL))[0])
    np.testing.assert_allclose(float(final.fitness), found, rtol=1e-6)
    assert found - best < 0.02 * (start - best)
    units = space.kept_units(GRID, np.asarray(final.parent))
    assert units.sum(axis=1).tolist() == [3 * DEPTH, 24 * DEPTH]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    survivors=st.lists(st.integers(1, 24), min_size=0, max_size=3).map(lambda s: sorted(s, reverse=True)),
)
def test_staged_selection_by_brute_force(seed: int, survivors: list[int]) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, LEVELS, (24, 2, DEPTH))
    parent = rng.integers(0, LEVELS, (2, DEPTH))
    score = Recorder(seed, noise=1.0)
    counts = sorted(rng.integers(1, POOL + 1, len(survivors) + 1))
    keeps = [*survivors, 1]
    winner, fitness, parent_fitness = select(pool, parent, counts, keeps, score)
    # As if each stage scored anew on all text so far.
    for count, keep in zip(counts, keeps, strict=True):
        values = score(pool, np.arange(count))
        pool = pool[sorted(range(len(pool)), key=lambda i, v=values: (v[i], i))[:keep]]
    finalists = np.concatenate([parent[None], pool])
    last = score(finalists, np.arange(counts[-1]))
    assert (winner == finalists[last.argmin()]).all()
    # Fitness is summed in float32, and the terms, of size one, may cancel.
    np.testing.assert_allclose((fitness, parent_fitness), (last.min(), last[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_candidate_without_a_finite_objective_never_wins(broken: float, stages: int) -> None:
    offspring = np.stack([START + i for i in range(1, 4)])

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        values = -candidates[:, 0, 0].astype(float)
        # The candidate that would be the best is broken.
        return np.where(candidates[:, 0, 0] == START[0, 0] + 3, broken, values)

    counts, survivors = ([1, 3], [2, 1]) if stages == 2 else ([2], [1])
    winner, fitness, _ = select(offspring, START, counts, survivors, score)
    assert (winner == START + 2).all()
    assert fitness == -(START[0, 0] + 2)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_the_parent_stays_when_nothing_is_finite(broken: float) -> None:
    offspring = np.stack([START + 1, START - 1])

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        return np.where((candidates == START).all(axis=(1, 2)), 7.0, broken)

    winner, fitness, parent = select(offspring, START, [1], [1], score)
    assert (winner == START).all()
    assert fitness == parent == 7.0


def test_a_tie_does_not_replace_the_parent() -> None:
    winner, _, _ = select(
        np.stack([START + 1, START - 1]), START, [1], [1], lambda candidates, _: np.zeros(len(candidates))
    )
    assert (winner == START).all()


def test_stages_score_what_is_left_on_more_tokens() -> None:
    score = Recorder(noise=1.0)
    run(score)
    stages = [score.calls[i : i + 3] for i in range(0, len(score.calls), 3)]
    assert len(stages) == SCHEDULE.generations
    orders = set()
    for first, second, last in stages:
        assert [len(call[0]) for call in (first, second, last)] == [25, 9, 4]
        # No sequence comes twice: one, then another, then three more.
        assert [len(call[1]) for call in (first, second, last)] == [1, 1, 3]
        order = np.concatenate([call[1] for call in (first, second, last)])
        assert len(set(order.tolist())) == 5
        orders.add(tuple(order.tolist()))
        best = first[0][1:][np.argsort(first[2][1:], kind="stable")[:8]]
        assert (second[0][1:] == best).all()
        for candidates, _, _ in (second, last):
            assert (candidates[0] == first[0][0]).all()
    assert len(orders) == SCHEDULE.generations


def test_a_stage_that_adds_no_text_only_narrows() -> None:
    score = Recorder()
    run(score, changed(generations=1, stage_tokens=(8, 9, 40)))
    assert [len(candidates) for candidates, _, _ in score.calls] == [25, 4]


def test_the_parent_of_a_generation_is_the_winner_of_the_last() -> None:
    score, history = Recorder(noise=1.0), []

    def on_step(step: int, state: EvolutionState, _: Fitness) -> None:
        record = SCHEDULE.record(state)
        assert (record is None) == (step % 3 > 0)
        if record is not None:
            assert record["generation"] == step // 3
            history.append((SCHEDULE.best(state), record["objective"], record["parent"]))

    loop.run(SCHEDULE, initial(), SPACE, score, on_step=on_step)
    assert len(history) == SCHEDULE.generations
    parent = START
    for number, (winner, fitness, parent_fitness) in enumerate(history):
        calls = score.calls[3 * number : 3 * number + 3]
        assert (calls[-1][0][0] == parent).all()
        order = np.concatenate([sequences for _, sequences, _ in calls])
        np.testing.assert_allclose(parent_fitness, score(parent[None], order)[0], rtol=1e-6)
        np.testing.assert_allclose(fitness, score(winner[None], order)[0], rtol=1e-6)
        # On the same tokens the next parent is never worse than this one.
        assert fitness <= np.float32(parent_fitness)
        parent = winner


@pytest.mark.parametrize("before", [0, 1, 5, 15])
def test_a_saved_search_continues_to_the_same_end(before: int) -> None:
    states = [initial()]
    whole = loop.run(
        SCHEDULE,
        states[0],
        SPACE,
        Recorder(noise=1.0),
        on_step=lambda step, state, _: states.append(state),
    )
    # Convert the state to plain arrays and back, as for a file. The step may be within a generation.
    restored = pytrees.decode(*pytrees.encode(states[before]), like=states[before])
    resumed = run(Recorder(noise=1.0), state=restored, done=before)
    assert int(resumed.generation) == SCHEDULE.generations
    assert (SCHEDULE.best(resumed) == whole).all()
    assert float(resumed.fitness) == float(states[-1].fitness)
    done = SCHEDULE.steps(SPACE)
    assert (loop.run(SCHEDULE, resumed, SPACE, Recorder(noise=1.0), done) == whole).all()


def test_a_key_determines_the_search() -> None:
    def trace(seed: int) -> list[np.ndarray]:
        score = Recorder(noise=1.0)
        run(score, state=initial(seed))
        return [array for call in score.calls for array in call]

    first, again, other = trace(1), trace(1), trace(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.slow
def test_generations_draw_other_offspring_and_other_sequences() -> None:
    search = changed(survivors=(1,), stage_tokens=(POOL * LENGTH,))
    state = search.init(jax.random.key(0), START, SPACE)
    first = search.ask(state)
    later = search.tell(state, first.candidates, np.array([0.0] + [1.0] * 24))
    assert int(later.generation) == 1
    assert (search.best(later) == START).all()
    second = search.ask(later)
    assert first.candidates.shape == (25, 2, DEPTH)
    assert (first.candidates[0] == second.candidates[0]).all()
    assert (first.candidates != second.candidates).any()
    orders = [query.sequences.tolist() for query in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(POOL))


def test_asking_compiles_once() -> None:
    run(Recorder(), changed(generations=1))
    before = contract.traced_ask._cache_size(), contract.traced_tell._cache_size()
    run(Recorder(), changed(generations=1), initial(5))
    assert (contract.traced_ask._cache_size(), contract.traced_tell._cache_size()) == before


@pytest.mark.parametrize(
    ("schedule", "sizes", "tokens"),
    [
        # All on 2 K tokens, 17 on 14 K more, 5 on 112 K more: the parent is one of them.
        (Evolution(), (129, 17, 5), 129 * 2048 + 17 * 14336 + 5 * 114688),
        (Evolution(offspring=10, survivors=(1,), stage_tokens=(4096,)), (11,), 11 * 4096),
        # Fewer tokens than a sequence has are still one sequence.
        (Evolution(offspring=6, survivors=(2, 1), stage_tokens=(5, 5000)), (7, 3), 10 * 2048),
    ],
    ids=["paper", "one stage", "short"],
)
def test_cost_of_a_generation(schedule: Evolution, sizes: tuple[int, ...], tokens: int) -> None:
    choice = SPACE.replace(length=2048)
    queries = schedule.queries(choice)
    assert tuple(asked.candidates for asked in queries) == sizes
    assert {asked.times for asked in queries} == {schedule.generations}
    assert schedule.candidate_tokens(choice) == schedule.generations * tokens
