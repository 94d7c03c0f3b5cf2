"""The nested, sliced score of a population against the plain one at full width."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_width import score_candidates
from reference import random_supernet
from tiny import ATTENTION, FFN

from tyr_jax import space
from tyr_jax.model import decoder
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import random_params
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring import chunking, nested, scorer, slopes
from tyr_jax.scoring.objective import KL, HiddenKL, Objective, Perplexity, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take, teacher_targets
from tyr_jax.search import loop
from tyr_jax.search.contract import SearchSpace
from tyr_jax.search.evolution import Evolution
from tyr_jax.space import LevelGrid

LENGTH, LEVELS = 16, 5
KL_DIVERGENCE = KL()


class World(NamedTuple):
    config: ModelConfig
    params: Params
    grid: LevelGrid
    supernet: Supernet
    pool: TeacherBatch

    def candidates(self, count: int) -> np.ndarray:
        """Random levels that exist."""
        rng, exists = np.random.default_rng(1), self.grid.exists
        return np.array(
            [[[rng.choice(np.flatnonzero(site)) for site in kind] for kind in exists] for _ in range(count)],
            np.int32,
        )


def make_world(config: ModelConfig, unit: str = "head", objective: Objective = KL_DIVERGENCE) -> World:
    kinds = PruningSettings(units=(unit,)).kinds(config)
    half = np.repeat([[kinds[0].units // 2], [kinds[1].units // 2]], config.depth, axis=1)
    grid = space.level_grid(kinds, half, LEVELS, 0.2)
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (3, LENGTH))
    pool = teacher_targets(params, tokens, config, objective)
    return World(config, params, grid, random_supernet(config, grid, kinds[0].units), pool)


SIX_HEADS = LayerShape(heads=6, kv_heads=2, ffn=48)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [KL_DIVERGENCE, HiddenKL(), Perplexity()], ids=str)
@pytest.mark.parametrize(
    ("unit", "biases", "norms"),
    [
        ("head", False, False),
        pytest.param("head", True, False, marks=pytest.mark.long),
        pytest.param("head", False, True, marks=pytest.mark.long),
        ("kv_group", True, True),
    ],
)
def test_it_is_the_objective_at_full_width(
    unit: str,
    biases: bool,
    norms: bool,
    objective: Objective,
    tiny_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This also holds if candidates share their first layers and run in chunks that start at other layers."""
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: 2 * LENGTH)
    config = tiny_config(shape=SIX_HEADS, qkv_bias=biases, out_bias=biases, mlp_bias=biases, qk_norm=norms)
    world = make_world(config, unit, objective)
    candidates, sequences = world.candidates(9), np.array([2, 0])
    for other, layers in enumerate((1, 2, 3, 2, 1), start=1):
        candidates[other, :, :layers] = candidates[7, :, :layers]
    full = score_candidates(
        world.params, world.supernet, candidates, take(world.pool, sequences), config, objective
    )
    sliced = scorer.score_population(
        nested.nest(world.params, world.supernet, config),
        candidates,
        world.pool,
        sequences,
        config,
        objective,
    )
    assert np.ptp(full) > 1e-3
    np.testing.assert_allclose(sliced, full, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("extra_tensors")
@pytest.mark.parametrize("unit", ["head", "kv_group"])
def test_a_further_tensor_is_moved_and_cut_along_its_axes(
    unit: str, tiny_config: Callable[..., ModelConfig]
) -> None:
    config = tiny_config(shape=SIX_HEADS)
    world = make_world(config, unit)
    net, layer = nested.nest(world.params, world.supernet, config), 1
    dense = {name: np.asarray(array[layer]) for name, array in world.params["blocks"].items()}
    per_unit = 6 // world.supernet.ranks["attention"].shape[1]
    ranks = np.repeat(world.supernet.ranks["attention"][layer], per_unit) * per_unit
    heads = np.argsort(ranks + np.arange(6) % per_unit)
    neurons = np.argsort(world.supernet.ranks["ffn"][layer])
    attention = nested.prefix(net, jnp.int32(layer), net.kinds[ATTENTION], 3, config)
    ffn = nested.prefix(net, jnp.int32(layer), net.kinds[FFN], 20, config)
    tensors = {tensor.name: tensor for tensor in config.tensors if tensor.name not in ("o", "down")}
    assert attention.keys() | ffn.keys() == tensors.keys() | {"kv_head"}
    assert attention.keys() & ffn.keys() == set()
    np.testing.assert_array_equal(attention.pop("kv_head"), heads[:3] // 3)
    for name, array in (attention | ffn).items():
        expected = dense[name]
        for place, axis in enumerate(tensors[name].axes):
            if axis in "NF":
                first = {"N": heads[:3], "F": neurons[:20]}[axis]
                expected = np.take(expected, first, axis=place)
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_one_candidate_alone(tiny_config: Callable[..., ModelConfig]) -> None:
    world, told = make_world(tiny_config()), []
    candidates, sequences = world.candidates(3), np.arange(3)
    net = nested.nest(world.params, world.supernet, world.config)
    rest = (world.pool, sequences, world.config, KL_DIVERGENCE)
    together = scorer.score_population(net, candidates, *rest)
    alone = [scorer.score_population(net, one[None], *rest, told.append)[0] for one in candidates]
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    assert sum(told) == 3 * 3 * LENGTH


def test_layers_that_candidates_share() -> None:
    one = np.array([[0, 1, 2], [3, 4, 5]])
    others = np.array(
        [one, [[9, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 9, 5]], [[0, 1, 9], [3, 4, 5]], [[0, 9, 2], [3, 4, 9]]]
    )
    assert scorer.shared_layers(one, others).tolist() == [3, 0, 1, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 1, 2, 3])
def test_shared_layers_do_not_run_again(shared: int, tiny_config: Callable[..., ModelConfig]) -> None:
    """Once the trunk has run, weights of layers before the start may be anything. Later layers matter."""
    world = make_world(tiny_config())
    net, one = nested.nest(world.params, world.supernet, world.config), world.candidates(1)
    buckets, batch = (
        jnp.asarray(scorer.chunk_buckets(net, one, world.config)),
        take(world.pool, np.arange(2)),
    )
    state = decoder.begin_forward(decoder.outside(net.params), batch.tokens[None])
    scoring = Scoring.of_model(world.config, KL_DIVERGENCE)
    residuals, _ = scorer.run_trunk(net, jnp.asarray(one[0]), buckets, state, scoring)
    chunk = scorer.Chunk(jnp.asarray(one), buckets[None], jnp.int32(shared), residuals)
    for broken in range(3):
        down = {"ffn": net.weights["ffn"].at[broken].set(jnp.nan)}
        poisoned = net.replace(weights=net.weights | down)
        (value,) = scorer.score_chunk(
            poisoned, chunk, None, batch, Scoring.of_model(world.config, KL_DIVERGENCE)
        )
        assert np.isfinite(value) == (broken < shared)


def test_the_reordered_dense_model_is_the_dense_model(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(qkv_bias=True, mlp_bias=True)
    world = make_world(config)
    blocks, levels = world.params["blocks"], world.supernet.weights
    whole = jnp.array([config.dense_shape.heads, config.dense_shape.ffn])
    dense = world.supernet.replace(
        weights={
            kind.name: jnp.broadcast_to(blocks[kind.output][:, None], levels[kind.name].shape)
            for kind in world.supernet.kinds
        },
        kept=jnp.broadcast_to(whole[:, None, None], (2, 3, LEVELS)),
    )
    scores = scorer.score_population(
        nested.nest(world.params, dense, config),
        world.candidates(2),
        world.pool,
        np.arange(3),
        config,
        KL_DIVERGENCE,
    )
    assert np.abs(scores).max() < 1e-6


@pytest.mark.parametrize("unit", ["head", "kv_group"])
def test_a_consumed_supernet_comes_back(unit: str, tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(shape=SIX_HEADS)
    world = make_world(config, unit)
    before = jax.tree.map(np.array, world.supernet)
    net = nested.nest(world.params, world.supernet, config, consume=True)
    assert world.supernet.weights["ffn"].is_deleted()
    assert world.supernet.weights["attention"].is_deleted()
    assert not np.array_equal(net.weights["ffn"], before.weights["ffn"])
    chex.assert_trees_all_equal(nested.restored(net, world.supernet, config), before)


@pytest.mark.parametrize(
    ("units", "channels", "expected"),
    [
        (9, 64, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        (3, 192, (1, 2, 3)),
        (32, 128, tuple(range(2, 33, 2))),
        (1536, 1, tuple(range(96, 1537, 96))),
        # So few channels do not justify a program for more widths.
        (130, 1, (17, 33, 49, 65, 82, 98, 114, 130)),
        (6, 8, (2, 4, 6)),
        (5, 1, (5,)),
    ],
)
def test_bucket_widths(units: int, channels: int, expected: tuple[int, ...]) -> None:
    assert nested.bucket_widths(units, channels) == expected


@pytest.mark.slow
def test_a_chunk_runs_at_its_largest_counts(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(layers=2, shape=LayerShape(heads=6, kv_heads=2, ffn=80))
    world = make_world(config, "kv_group")
    net = nested.nest(world.params, world.supernet, config)
    assert net.widths == ((3, 6), tuple(range(16, 81, 16)))
    kept = np.asarray(world.supernet.kept)
    assert kept[ATTENTION, 0].tolist() == [0, 0, 1, 2, 2]
    assert kept[FFN, 0].tolist() == [8, 24, 40, 56, 72]
    candidates = np.array([[[1, 3], [0, 2]], [[2, 0], [0, 3]]])
    # Units kept: attention 0|1 and 2|0, FFN 8|8 and 40|56.
    assert scorer.chunk_buckets(net, candidates, config).tolist() == [[0, 1], [0, 3]]


@pytest.mark.slow
def test_other_widths_do_not_compile_again(tiny_config: Callable[..., ModelConfig]) -> None:
    world = make_world(tiny_config())
    net = nested.nest(world.params, world.supernet, world.config)
    sizes = []
    for level in range(LEVELS):
        candidates = np.full((4, 2, 3), level)
        scorer.score_population(net, candidates, world.pool, np.arange(2), world.config, KL_DIVERGENCE)
        sizes.append(scorer.score_chunk._cache_size())
    assert len(set(sizes)) == 1


@pytest.mark.slow
def test_nothing_compiles_after_the_first_generation(
    tiny_config: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing compiles in another round, either. Every scored candidate has the exact units of each kind."""
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: 4 * LENGTH)
    world = make_world(tiny_config())
    net, sizes, totals = nested.nest(world.params, world.supernet, world.config), [], set()

    def score(candidates: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        units = space.kept_units(world.grid, candidates).sum(axis=-1)
        totals.update(map(tuple, units.tolist()))
        return scorer.score_population(net, candidates, world.pool, sequences, world.config, KL_DIVERGENCE)

    schedule = Evolution(
        generations=3, offspring=7, survivors=(5, 2, 1), stage_tokens=(LENGTH, 2 * LENGTH, 3 * LENGTH)
    )
    start = space.centre_distribution(world.grid)
    choice = SearchSpace.around(world.grid, start, len(world.pool.tokens), LENGTH)
    for number in range(2):
        loop.run(
            schedule,
            loop.begin_search(schedule, jax.random.key(number), start, choice),
            choice,
            score,
            on_step=lambda step, state, fitness: sizes.append(
                (scorer.score_chunk._cache_size(), scorer.run_trunk._cache_size())
            ),
        )
    # Keep the last stage of each generation.
    sizes = sizes[2::3]
    assert len(sizes) == 6
    assert len(set(sizes)) == 1
    assert len(totals) == 1


@pytest.mark.slow
def test_slopes_are_those_of_a_finite_difference(tiny_config: Callable[..., ModelConfig]) -> None:
    world = make_world(tiny_config(layers=2))
    net = nested.nest(world.params, world.supernet, world.config)
    # Units outside a level must count where its weights are moved towards a denser one.
    whole = jnp.ones_like(net.kept) * jnp.array([4, 48])[:, None, None]
    now, sequences = world.candidates(1)[0][:, :2], np.arange(3)
    parts = slopes.pool_slopes(net, now, world.pool, sequences, world.config, KL_DIVERGENCE)
    assert parts.shape[1:] == (2, 2, LEVELS)
    found = parts.mean(axis=0)
    for kind, layer, name in ((ATTENTION, 1, "attention"), (FFN, 0, "ffn")):
        here = int(now[kind, layer])
        assert found[kind, layer, here] == pytest.approx(0.0, abs=1e-6)
        levels = net.weights[name]
        for level in {0, 3} - {here}:
            values = []
            for t in (-0.02, 0.02):
                moved = (1 - t) * levels[layer, here] + t * levels[layer, level]
                # Weights outside a level's own units must count, as they do in the slope.
                weights = net.weights | {name: levels.at[layer, here].set(moved)}
                wide = net.replace(weights=weights, kept=whole)
                values.append(
                    scorer.score_population(
                        wide, now[None], world.pool, sequences, world.config, KL_DIVERGENCE
                    )[0]
                )
            difference = (values[1] - values[0]) / 0.04
            assert found[kind, layer, level] == pytest.approx(difference, rel=2e-2, abs=1e-4)
