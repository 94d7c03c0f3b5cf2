"""The score of a population, nested and at full width, against each candidate run alone in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_width import score_candidates
from reference import kl64, layer_outputs64, logits64, nll64, random_supernet, select
from speeds import only_quick
from tiny import FFN

from tyr_jax import space
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import random_params
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring import chunking, nested, scorer, teacher
from tyr_jax.scoring.objective import KL, HiddenKL, Objective, Perplexity, TeacherBatch
from tyr_jax.scoring.teacher import take, teacher_targets
from tyr_jax.space import LevelGrid

SEQUENCES, LENGTH = 5, 16
KL_DIVERGENCE = KL()


class World(NamedTuple):
    config: ModelConfig
    params: Params
    grid: LevelGrid
    supernet: Supernet
    tokens: np.ndarray
    candidates: np.ndarray

    def pool(self, objective: Objective = KL_DIVERGENCE) -> TeacherBatch:
        return teacher_targets(self.params, self.tokens, self.config, objective)

    def score(
        self, candidates: np.ndarray, sequences: np.ndarray, objective: Objective = KL_DIVERGENCE
    ) -> np.ndarray:
        pool = self.pool(objective)
        return scorer.score_population(self.nested(), candidates, pool, sequences, self.config, objective)

    def score_at_full_width(
        self, candidates: np.ndarray, sequences: np.ndarray, objective: Objective = KL_DIVERGENCE
    ) -> jax.Array:
        batch = take(self.pool(objective), sequences)
        return score_candidates(self.params, self.supernet, candidates, batch, self.config, objective)

    def nested(self) -> nested.Nested:
        return nested.nest(self.params, self.supernet, self.config)


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config()
    kinds = PruningSettings().kinds(config)
    grid = space.level_grid(kinds, np.array([[2, 2, 2], [24, 24, 24]]), 5, 1 / 6)
    rng = np.random.default_rng(0)
    return World(
        config,
        random_params(config, jax.random.key(0), scale=0.2),
        grid,
        random_supernet(config, grid, config.dense_shape.heads),
        rng.integers(0, config.vocab, (SEQUENCES, LENGTH)),
        rng.integers(0, 5, (7, 2, 3)),
    )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make two candidates run at a time if there are two sequences, otherwise one."""
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: 4 * LENGTH)


@pytest.mark.parametrize("score", only_quick([World.score, World.score_at_full_width], World.score))
def test_kl_equals_each_candidate_alone(
    score: Callable[..., np.ndarray], world: World, small_chunks: None
) -> None:
    sequences = np.array([3, 0, 4])
    scores = score(world, world.candidates, sequences)
    tokens = world.tokens[sequences]
    dense = logits64(world.params, tokens, world.config)
    for candidate, ours in zip(world.candidates, scores, strict=True):
        alone = select(world.params, world.supernet, candidate)
        exact = kl64(dense, logits64(alone, tokens, world.config)).mean()
        np.testing.assert_allclose(ours, exact, rtol=1e-4)
        own = kl64(forward(world.params, tokens, world.config), forward(alone, tokens, world.config)).mean()
        np.testing.assert_allclose(ours, own, rtol=1e-4)
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("score", only_quick([World.score, World.score_at_full_width], World.score))
@pytest.mark.parametrize("objective", only_quick([HiddenKL(alpha=2.0), Perplexity()], Perplexity()), ids=str)
def test_other_objectives_equal_each_candidate_alone(
    score: Callable[..., np.ndarray], world: World, objective: Objective
) -> None:
    sequences = np.array([1, 2])
    scores = score(world, world.candidates[:2], sequences, objective)
    tokens, config = world.tokens[sequences], world.config
    for candidate, ours in zip(world.candidates, scores, strict=False):
        alone = select(world.params, world.supernet, candidate)
        sparse = logits64(alone, tokens, config)
        exact = nll64(sparse, tokens).mean()
        if isinstance(objective, HiddenKL):
            exact = kl64(logits64(world.params, tokens, config), sparse).mean()
            layers = zip(
                layer_outputs64(world.params, tokens, config),
                layer_outputs64(alone, tokens, config),
                strict=True,
            )
            exact += 2.0 * sum(np.sum((a - b) ** 2) / np.sum(a**2) for a, b in layers)
        np.testing.assert_allclose(ours, exact, rtol=1e-4)


def test_counts_that_do_not_fill_the_last_chunk(world: World, small_chunks: None) -> None:
    sequences = np.arange(3)
    whole = world.score(world.candidates, sequences)
    for count in (1, 5):
        part = world.score(world.candidates[:count], sequences)
        assert part.shape == (count,)
        np.testing.assert_allclose(part, whole[:count], rtol=1e-5)


@pytest.mark.slow
def test_chunks_of_sequences_are_averaged_by_their_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = np.arange(SEQUENCES)
    each = [world.score(world.candidates[:2], np.array([i])) for i in sequences]
    # With 5 sequences, each chunk has one candidate.
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: 2 * LENGTH)
    np.testing.assert_allclose(world.score(world.candidates[:2], sequences), np.mean(each, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_the_order_of_candidates_does_not_matter(world: World, small_chunks: None) -> None:
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    sequences = np.array([0, 1])
    scores = world.score(world.candidates, sequences)
    np.testing.assert_allclose(world.score(world.candidates[order], sequences), scores[order], rtol=1e-5)


def test_progress_counts_candidate_tokens(world: World, small_chunks: None) -> None:
    spent: list[int] = []
    pool, config = world.pool(), world.config
    scorer.score_population(
        world.nested(), world.candidates, pool, np.arange(3), config, KL_DIVERGENCE, spent.append
    )
    assert sum(spent) == 7 * 3 * LENGTH


def test_progress_counts_sequences(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BATCH_TOKENS", 4 * LENGTH)
    done: list[int] = []
    teacher_targets(world.params, world.tokens, world.config, KL_DIVERGENCE, done.append)
    assert done == [4, 1]


def test_the_teacher_is_at_no_distance_from_itself(world: World) -> None:
    # A supernet whose every level is the dense weight.
    blocks = world.params["blocks"]
    weights = {
        kind.name: jnp.broadcast_to(blocks[kind.output][:, None], world.supernet.weights[kind.name].shape)
        for kind in world.supernet.kinds
    }
    dense = world._replace(supernet=world.supernet.replace(weights=weights))
    scores = dense.score_at_full_width(world.candidates[:2], np.array([1, 2]))
    assert np.abs(scores).max() < 1e-6


@pytest.mark.parametrize("score", [World.score, World.score_at_full_width])
def test_one_broken_candidate_does_not_touch_the_others(
    score: Callable[..., np.ndarray], world: World
) -> None:
    down = world.supernet.weights["ffn"].at[1, 3].set(jnp.nan)
    broken = world._replace(supernet=world.supernet.replace(weights=world.supernet.weights | {"ffn": down}))
    candidates = np.stack([np.full((2, 3), 2), np.full((2, 3), 2)])
    candidates[1, FFN, 1] = 3
    scores = score(broken, candidates, np.array([1, 2]))
    assert np.isfinite(scores[0])
    assert not np.isfinite(scores[1])


@pytest.mark.slow
def test_the_pool_keeps_states_in_order_whatever_the_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = HiddenKL()
    whole = world.pool(objective)
    assert whole.hidden.shape == (SEQUENCES, 3, LENGTH, world.config.hidden)
    monkeypatch.setattr(teacher, "BATCH_TOKENS", 2 * LENGTH)
    parts = world.pool(objective)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-5)
    taken = take(whole, np.array([4, 1]))
    assert (np.asarray(taken.tokens) == world.tokens[[4, 1]]).all()
    np.testing.assert_array_equal(np.asarray(taken.hidden), np.asarray(whole.hidden)[[4, 1]])
    np.testing.assert_array_equal(np.asarray(taken.dense.expected), np.asarray(whole.dense.expected)[[4, 1]])
