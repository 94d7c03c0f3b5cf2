"""Sites of mixtures of experts, beside sums and solutions computed by hand in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_width import score_candidates
from reference import f64, norm64
from tiny import FFN

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import fisher, hessian, stream
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.kinds import EXPERT_NEURONS
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.site import keep_experts, prune_experts, prune_site
from tyr_jax.scoring import nested, scorer
from tyr_jax.scoring.objective import KL
from tyr_jax.scoring.slopes import pool_slopes
from tyr_jax.scoring.teacher import take, teacher_targets

EXPERTS, ROUTED, WIDTH = 5, 2, 24


class World(NamedTuple):
    """A model, its first block, and residuals `[B, T, D]`."""

    config: ModelConfig
    params: Params
    block: Block
    x: jax.Array


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config(shape=LayerShape(4, 2, WIDTH, EXPERTS), routed=ROUTED)
    params = random_params(config, jax.random.key(0), scale=0.3)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 40, config.hidden)), jnp.float32)
    return World(config, params, jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0)), x)


def units64(world: World, normed: bool = True) -> np.ndarray:
    """Neuron activations `[B, T, X, F]`, token by token and expert by expert."""
    block = {name: f64(array) for name, array in world.block.items()}
    entering = norm64(f64(world.x), block["mlp_norm"], world.config.norm_eps)
    out = np.zeros((*entering.shape[:2], EXPERTS, WIDTH))
    for at in np.ndindex(entering.shape[:2]):
        scores = np.exp(entering[at] @ block["router"])
        scores /= scores.sum()
        chosen = np.argsort(-scores)[:ROUTED]
        for expert in chosen:
            gate, up = (entering[at] @ block[name][:, expert] for name in ("gate", "up"))
            share = scores[expert] / (scores[chosen].sum() if normed else 1.0)
            out[(*at, expert)] = share * gate / (1 + np.exp(-gate)) * up
    return out


@pytest.mark.parametrize("normed", [True, False])
def test_tokens_go_to_their_experts(normed: bool, world: World) -> None:
    config = dataclasses.replace(world.config, norm_routing=normed)
    expected = units64(world, normed)
    np.testing.assert_allclose(decoder.ffn_units(world.block, world.x, config), expected, atol=1e-4)
    out = np.einsum("btxf,xfd->btd", expected, f64(world.block["down"]))
    after = decoder.add_ffn(world.block, world.x, config)
    np.testing.assert_allclose(after, f64(world.x) + out, atol=1e-4)


def test_of_equal_experts_the_first_are_taken(world: World) -> None:
    """No more experts than asked for, even if all are equally probable."""
    block = world.block | {"router": jnp.zeros_like(world.block["router"])}
    routing = decoder.routing(block, world.x, world.config)
    np.testing.assert_array_equal(routing[0, 0], [0.5, 0.5, 0, 0, 0])


def statistics(world: World, weights: jax.Array | None = None) -> jax.Array:
    kind, config = EXPERT_NEURONS, world.config
    gram = jnp.zeros((1, *kind.gram_shape(config)))
    return hessian.finish(stream.site_statistics(world.block, world.x, gram, weights, kind, config)[1])


def test_every_expert_has_the_statistics_of_its_tokens(world: World) -> None:
    weights = np.random.default_rng(2).random(world.x.shape[:2])
    units = units64(world)
    for given, counted in ((None, units), (jnp.asarray(weights), units * weights[..., None, None])):
        expected = np.einsum("btxf,btxg->xfg", counted, counted)
        np.testing.assert_allclose(statistics(world, given), expected, rtol=1e-3, atol=1e-3)


def site(world: World, gram: jax.Array, metric: jax.Array | None) -> Any:
    kept, exists = np.array([0, 8, 16, 24]), np.ones(4, bool)
    weight = world.block["down"].reshape(-1, world.config.hidden)
    return PruningSettings().site(gram, weight, kept, exists, WIDTH, metric)


@pytest.mark.slow
@pytest.mark.parametrize("with_metric", [True, False])
def test_experts_are_pruned_one_by_one(with_metric: bool, world: World) -> None:
    root = np.random.default_rng(3).standard_normal((world.config.hidden, world.config.hidden))
    metric = jnp.asarray(root @ root.T, jnp.float32) if with_metric else None
    gram = statistics(world)
    whole = site(world, gram, metric)
    pruned = prune_experts(whole, PruningSettings().pruner)
    levels = pruned.weights.reshape(4, EXPERTS, WIDTH, -1)
    errors, energies = [], []
    for expert in range(EXPERTS):
        alone = whole.replace(gram=gram[expert], weight=world.block["down"][expert])
        one = prune_site(alone, PruningSettings().pruner)
        np.testing.assert_allclose(levels[:, expert], one.weights, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(pruned.rank[expert], one.rank)
        errors.append(one.error)
        product = f64(gram[expert]) @ f64(alone.weight) @ (np.eye(32) if metric is None else f64(metric))
        energies.append(np.sum(f64(alone.weight) * product))
    np.testing.assert_allclose(pruned.error, np.average(errors, axis=0, weights=energies), rtol=1e-3)
    assert pruned.error[0] > pruned.error[1] > pruned.error[2] > abs(pruned.error[3])


def test_an_expert_without_tokens_does_no_harm(world: World) -> None:
    gram = statistics(world).at[2].set(0.0)
    pruned = prune_experts(site(world, gram, None), PruningSettings().pruner)
    for array in pruned:
        assert np.isfinite(array).all()
    kept = np.count_nonzero(np.any(pruned.weights.reshape(4, EXPERTS, WIDTH, -1) != 0, axis=-1), axis=-1)
    np.testing.assert_array_equal(kept, np.repeat([[0], [8], [16], [24]], EXPERTS, axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_correcting_drift_never_adds_to_it(seed: int, world: World) -> None:
    """Although every expert is fitted by itself, and tokens go to several of them."""
    units, rng = units64(world), np.random.default_rng(seed)
    truth = rng.standard_normal((EXPERTS, WIDTH, world.config.hidden))
    drift = np.einsum("btxf,xfd->btd", units, truth) + rng.standard_normal(world.x.shape) / 10
    pull = np.einsum("btxf,btd->xfd", units, drift).reshape(1, EXPERTS * WIDTH, -1)
    weight = world.block["down"].reshape(-1, world.config.hidden)
    moved = stream.corrected_weight(
        weight, statistics(world), jnp.asarray(pull, jnp.float32), jnp.float32(1 / ROUTED)
    )
    change = (f64(moved) - f64(weight)).reshape(truth.shape)
    left = drift - np.einsum("btxf,xfd->btd", units, change)
    assert np.sum(left**2) < 0.7 * np.sum(drift**2)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [0, 8])
def test_the_smaller_model_is_the_masked_one(passes: int, world: World) -> None:
    """With the metric, drift and, in the second case, reconstruction: experts of a layer are equally wide."""
    config, params = world.config, world.params
    text = np.random.default_rng(4).integers(0, config.vocab, (48, 40))
    settings = PruningSettings(neuron_multiple=1, accumulation="centre")
    kept = np.array([[3, 4, 2], [11, 24, 7]])
    grid = space.level_grid(settings.kinds(config), kept, 1, 0.1)
    metrics = fisher.output_metrics(params, text, config, settings.site_kinds(config), 0)
    plan = FoldPlan(config, grid, settings, metrics=metrics, drift=0.5, passes=passes)
    net = build_supernet(params, [text], plan, batch_tokens=480)
    levels = np.zeros((2, 3), int)
    small, shape = compress(params, net, levels, config, 1)
    assert [layer.ffn for layer in shape.layers] == [11, 24, 7]
    assert small["blocks"][0]["gate"].shape == (config.hidden, EXPERTS, 11)
    masked, tokens = mask(params, net, levels, config), jnp.asarray(text[:4])
    ours, theirs = decoder.forward(small, tokens, shape), decoder.forward(masked, tokens, config)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    if passes:
        assert net.learnt[0] is not None
        assert set(net.learnt[0]) == {"router", "gate", "up", "mlp_norm"}
        router = layer_block(small["blocks"], 0)["router"]
        assert (np.asarray(router) != np.asarray(world.block["router"])).any()
        np.testing.assert_array_equal(router, net.learnt[0]["router"])


WHOLE = PruningSettings(units=("expert",))


@pytest.mark.parametrize("with_metric", [True, False])
def test_the_experts_that_put_out_most_are_kept(with_metric: bool, world: World) -> None:
    root = np.random.default_rng(3).standard_normal((world.config.hidden, world.config.hidden))
    metric = root @ root.T if with_metric else np.eye(world.config.hidden)
    out = np.einsum("btxf,xfd->btxd", units64(world), f64(world.block["down"]))
    energy = np.einsum("btxd,de,btxe->x", out, metric, out)
    kept, exists = np.array([0, 1, 3, 5]), np.ones(4, bool)
    weight = world.block["down"].reshape(-1, world.config.hidden)
    given = jnp.asarray(metric, jnp.float32) if with_metric else None
    site = WHOLE.site(statistics(world), weight, kept, exists, EXPERTS, given)
    pruned = keep_experts(site, WHOLE.pruner)
    order = np.argsort(-energy)
    np.testing.assert_array_equal(np.argsort(pruned.rank), order)
    levels = np.asarray(pruned.weights).reshape(4, EXPERTS, WIDTH, -1)
    for level, count in enumerate(kept):
        np.testing.assert_array_equal(levels[level, order[:count]], world.block["down"][order[:count]])
        assert not levels[level, order[count:]].any()
        lost = energy[order[count:]].sum() / energy.sum()
        assert pruned.error[level] == pytest.approx(lost, rel=1e-3, abs=1e-5)


class Pruned(NamedTuple):
    """A supernet whose layers lose whole experts, and levels of it."""

    text: np.ndarray
    grid: space.LevelGrid
    net: Any
    levels: np.ndarray


@pytest.fixture(scope="module")
def pruned(world: World) -> Pruned:
    text = np.random.default_rng(4).integers(0, world.config.vocab, (48, 40))
    grid = space.level_grid(WHOLE.kinds(world.config), np.array([[3, 4, 2], [3, 2, 1]]), 5, 0.2)
    net = build_supernet(world.params, [text], FoldPlan(world.config, grid, WHOLE), batch_tokens=480)
    experts = (grid.kept[FFN] == np.array([[3], [1], [0]])) & grid.exists[FFN]
    return Pruned(text, grid, net, np.stack([[1, 2, 3], experts.argmax(axis=-1)]))


@pytest.mark.slow
def test_tokens_go_to_the_experts_that_are_left(world: World, pruned: Pruned) -> None:
    """In the masked model, in the smaller one, and in the search. A layer may keep fewer experts than a token
    was sent to, or none."""
    config, params, (text, grid, net, levels) = world.config, world.params, pruned
    counts = space.values_at(grid.kept, levels)[FFN]
    small, shape = compress(params, net, levels, config)
    assert [layer.experts for layer in shape.layers] == counts.tolist()
    assert counts.tolist() == [3, 1, 0]
    tokens = jnp.asarray(text[:4])
    masked = decoder.forward(mask(params, net, levels, config), tokens, config)
    np.testing.assert_allclose(decoder.forward(small, tokens, shape), masked, atol=1e-4)

    pool, sequences = teacher_targets(params, text, config, KL()), np.arange(12)
    candidates = np.stack([levels, space.centre_distribution(grid)]).astype(np.int32)
    plain = score_candidates(params, net, candidates, take(pool, sequences), config, KL())
    sorted_net = nested.nest(params, net, config)
    sliced = scorer.score_population(sorted_net, candidates, pool, sequences, config, KL())
    np.testing.assert_allclose(sliced, plain, rtol=1e-4)
    targets = pool, np.arange(48), config, KL()
    exact = score_candidates(params, net, candidates[:1], pool, config, KL())[0]
    dense = decoder.forward(params, jnp.asarray(text), config)
    own = decoder.forward(small, jnp.asarray(text), shape)
    p, q = jax.nn.log_softmax(dense), jax.nn.log_softmax(own)
    assert exact == pytest.approx(float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))), rel=1e-3)
    found = pool_slopes(sorted_net, candidates[0], *targets)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_the_last_pruning_passes_on_what_the_model_computes(world: World) -> None:
    """Tokens are sent to the experts that are left before the later layers are fitted."""
    config = world.config
    text = np.random.default_rng(4).integers(0, config.vocab, (48, 40))
    grid = space.level_grid(WHOLE.kinds(config), np.array([[4, 4, 4], [3, 2, 1]]), 1, 0.2)
    settings = dataclasses.replace(WHOLE, accumulation="centre")
    plan, seen = FoldPlan(config, grid, settings, drift=0.5), []
    net = build_supernet(
        world.params, [text], plan, batch_tokens=480, on_block=lambda fold: seen.append(fold.residual[0])
    )
    small, shape = compress(world.params, net, np.zeros((2, 3), int), config)
    x = decoder.embed(small, jnp.asarray(text[:12]))
    rope = decoder.rope_tables(config, text.shape[1])
    for block in small["blocks"]:
        x = decoder.apply_block(block, x, rope, shape)
    np.testing.assert_allclose(seen[-1], x, atol=1e-3)


def test_whole_experts_where_there_are_none(tiny_config: Callable[..., ModelConfig], world: World) -> None:
    with pytest.raises(UserError, match="--units expert needs a mixture of experts"):
        WHOLE.kinds(tiny_config())
    with pytest.raises(UserError, match="leave out either it or --units expert"):
        dataclasses.replace(WHOLE, reconstruct=4).kinds(world.config)
