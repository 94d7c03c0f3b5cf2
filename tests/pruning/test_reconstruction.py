"""Reconstruction: targets by hand, and what training may and may not change."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import add_ffn64, f64, neurons64

from tyr_jax import space
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import reconstruction
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.reconstruction import LearningPlan, Learnt, MiniBatch, Text, mix, rate, reconstructed
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.runtime.offload import Scratch

LENGTH = 64


class World(NamedTuple):
    config: ModelConfig
    block: Block
    rank: jax.Array
    kept: int
    pruned: jax.Array
    dense: jax.Array
    metric: jax.Array

    def small(self) -> Block:
        """The block with zero weights for the outputs of removed neurons."""
        return self.block | {"down": jnp.where(self.rank[:, None] < self.kept, self.block["down"], 0)}

    def text(self) -> Text:
        """Both streams in four batches. One sequence of the last batch is padding."""
        parts = [list(jnp.split(x, 4)) for x in (self.pruned, self.dense)]
        return Text(parts[0], parts[1], [3, 3, 3, 2])

    def learn(self, passes: int = 20, share: float = 0.0, **changes: Any) -> Learnt:
        given = {"metric": self.metric, "kept": self.kept, "text": self.text()} | changes
        scratch = given.pop("scratch", None)
        plan = LearningPlan(self.config, passes, share, (0,), scratch)
        return reconstructed(self.small(), self.block, jnp.argsort(self.rank), plan=plan, **given)


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config(qkv_bias=True, mlp_bias=True, layers=1)
    params = random_params(config, jax.random.key(1), scale=0.2)
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0))
    rng = np.random.default_rng(0)
    pruned = rng.standard_normal((12, LENGTH, config.hidden)).astype(np.float32)
    dense = pruned + 0.3 * rng.standard_normal(pruned.shape).astype(np.float32)
    root = rng.standard_normal((config.hidden, config.hidden)).astype(np.float32) / 8
    metric = jnp.asarray(root @ root.T + 0.1 * np.eye(config.hidden, dtype=np.float32))
    neurons = len(block["down"])
    rank = jnp.asarray(rng.permutation(neurons))
    return World(config, block, rank, neurons // 2, jnp.asarray(pruned), jnp.asarray(dense), metric)


@pytest.fixture(autouse=True)
def short_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make mini-batches so short that even the small text fills several."""
    monkeypatch.setattr(reconstruction, "STEP_TOKENS", 2 * LENGTH)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_targets_by_hand(share: float, world: World) -> None:
    x, dense = f64(world.pruned), f64(world.dense)
    own = add_ffn64(world.block, x, neurons64(world.block, x, world.config)) - x
    rest = jnp.float32(share), world.config
    ours = reconstruction.target(world.block, world.pruned, world.dense, *rest)
    np.testing.assert_allclose(ours, own + share * (dense - x - own), rtol=1e-4, atol=1e-4)
    ours = reconstruction.target(world.block, world.pruned, None, *rest)
    np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-4)


def test_an_error_is_in_nats_or_squares(world: World) -> None:
    """Computed by hand, for tokens of different weights."""
    config, (x, target) = world.config, (each.reshape(-1, world.config.hidden) for each in world[4:6])
    weights = jnp.asarray(np.random.default_rng(1).random(len(x)), jnp.float32)
    off = add_ffn64(world.block, f64(x), neurons64(world.block, f64(x), config)) - f64(x) - f64(target)
    off *= f64(weights)[..., None]
    for metric, counted in ((world.metric, off @ f64(world.metric)), (None, off)):
        ours = reconstruction.error(world.block, MiniBatch(x, target, weights), metric, config)
        np.testing.assert_allclose(ours, (counted * off).sum(axis=1) / 2, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_every_token_is_dealt_once(count: int) -> None:
    """The texts have two lengths. Padding in the mini-batches has no weight."""
    numbers = iter(range(1, 100))

    def batch(*shape: int) -> MiniBatch:
        each = jnp.asarray([next(numbers) for _ in range(shape[0] * shape[1])], jnp.float32).reshape(shape)
        return MiniBatch(each[..., None] * jnp.ones(3), -each[..., None] * jnp.ones(3), each)

    minibatches = mix([batch(4, 8), batch(5, 2)], count)
    assert len(minibatches) == count
    mixed = np.concatenate([minibatch.weights for minibatch in minibatches])
    assert sorted(mixed[mixed > 0]) == list(range(1, 43))
    assert len(mixed) - 42 < count
    for minibatch in minibatches:
        np.testing.assert_array_equal(minibatch.x, minibatch.weights[:, None] * np.ones(3))
        np.testing.assert_array_equal(minibatch.target, -minibatch.x)


@pytest.mark.slow
def test_minibatches_are_of_all_text(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mini-batch has tokens of every batch, or of all batches that are mixed together."""
    monkeypatch.setattr(reconstruction, "STEP_TOKENS", LENGTH)
    marked = [jnp.full((3, LENGTH, world.config.hidden), float(index)) for index in range(1, 5)]
    for mixed, expected in ((16, {(1, 2, 3, 4)}), (2, {(1, 3), (2, 4)})):
        monkeypatch.setattr(reconstruction, "MIXED_BATCHES", mixed)
        plan = LearningPlan(world.config, 1, 0.0, (0,))
        minibatches = reconstruction.minibatches_of(world.block, Text(marked, None, [3, 3, 3, 2]), True, plan)
        assert len(minibatches) == 12
        assert sum(float(minibatch.weights.sum()) for minibatch in minibatches) == 11 * LENGTH
        origins = {frozenset(np.unique(minibatch.x[minibatch.weights > 0])) for minibatch in minibatches}
        assert origins == {frozenset(origin) for origin in expected}


@pytest.mark.parametrize("by_metric", [True, False])
def test_learning_helps(by_metric: bool, world: World) -> None:
    learnt = world.learn(metric=world.metric if by_metric else None)
    assert learnt.after < 0.95 * learnt.before


def test_text_on_disk_teaches_the_same(world: World) -> None:
    scratch = Scratch()
    x, dense, real = world.text()
    stored = Text(scratch.keep(x), scratch.keep(dense), real)
    lazy, here = world.learn(share=0.5, text=stored, scratch=scratch), world.learn(share=0.5)
    assert lazy.after == here.after
    for name, array in here.tensors.items():
        np.testing.assert_array_equal(array, lazy.tensors[name], err_msg=name)


def test_what_does_not_help_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate far too high, everything stays bitwise the same, even if the loss becomes infinite
    or NaN."""
    for peak in (1e5, 1e30):
        monkeypatch.setattr(reconstruction, "RATE", peak)
        learnt = world.learn(passes=2)
        assert learnt.after == learnt.before
        for name, array in learnt.tensors.items():
            np.testing.assert_array_equal(array, world.small()[name], err_msg=name)


def test_removed_neurons_stay_as_they_are(world: World) -> None:
    """This includes removed neurons that pad the width at which the others are trained."""
    learnt = world.learn(kept=world.kept - 3)
    assert learnt.after < learnt.before
    gone = np.asarray(world.rank >= world.kept)
    np.testing.assert_array_equal(learnt.tensors["down"][gone], 0)
    np.testing.assert_array_equal(learnt.tensors["gate"][:, gone], world.block["gate"][:, gone])
    assert (learnt.tensors["down"][~gone] != 0).all()
    assert (learnt.tensors["gate"][:, ~gone] != world.block["gate"][:, ~gone]).all()


def test_the_rate_rises_and_falls() -> None:
    rates = [float(rate(jnp.float32(step), jnp.float32(100))) for step in range(100)]
    assert max(rates) == pytest.approx(reconstruction.RATE, rel=1e-2)
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[0] == pytest.approx(reconstruction.RATE / 10)
    assert rates[-1] < reconstruction.RATE / 1000
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


class Whole(NamedTuple):
    """A whole model that was pruned without and with reconstruction."""

    config: ModelConfig
    params: Params
    plain: Any
    learnt: Any
    text: np.ndarray
    residuals: list[np.ndarray]
    """Those of the first batch, after each layer whose FFN has learnt."""


@pytest.fixture(scope="module")
def whole(tiny_config: Callable[..., ModelConfig]) -> Whole:
    config = tiny_config(layers=3)
    params = random_params(config, jax.random.key(2), scale=0.2)
    settings = dataclasses.replace(
        PruningSettings(keep_neurons=(1,), neuron_multiple=1), metric="none", accumulation="centre"
    )
    kinds = settings.kinds(config)
    kept = np.array([[kinds[0].units] * 3, [kinds[1].units // 2, kinds[1].units, kinds[1].units // 2]])
    grid = space.level_grid(kinds, kept, 1, 0.1)
    text = np.random.default_rng(3).integers(0, config.vocab, (68, LENGTH))
    plan = FoldPlan(config, grid, settings)
    residuals: list[np.ndarray] = []

    def build(passes: int) -> Any:
        residuals.clear()
        return build_supernet(
            params,
            [text[:64], text[64:]],
            dataclasses.replace(plan, passes=passes),
            batch_tokens=4 * LENGTH,
            on_block=lambda fold: residuals.append(np.array(fold.residual[0])),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "STEP_TOKENS", 2 * LENGTH)
        return Whole(config, params, build(0), build(10), text, residuals)


@pytest.mark.slow
def test_a_model_learns_layer_by_layer(whole: Whole) -> None:
    """Attention before the first FFN is as without training. An FFN that stays whole is not trained."""
    first, middle, last = whole.learnt.learnt
    assert middle is None
    assert whole.plain.learnt == ()
    assert set(first) == set(last) == {"gate", "up", "mlp_norm"}
    np.testing.assert_array_equal(whole.learnt.weights["attention"][0], whole.plain.weights["attention"][0])
    assert (np.asarray(whole.learnt.weights["ffn"][0]) != np.asarray(whole.plain.weights["ffn"][0])).any()
    np.testing.assert_array_equal(whole.learnt.weights["ffn"][1, 0], whole.params["blocks"]["down"][1])


@pytest.mark.slow
def test_what_was_learnt_is_passed_on(whole: Whole) -> None:
    """The residuals after a layer are those with the trained FFN, so later layers are pruned to suit it."""
    masked = mask(whole.params, whole.learnt, np.zeros((2, 3), int), whole.config)
    x = decoder.embed(whole.params, jnp.asarray(whole.text[:4]))
    for layer in range(3):
        block = layer_block(masked["blocks"], layer)
        x = decoder.apply_block(block, x, decoder.rope_tables(whole.config, LENGTH), whole.config)
        np.testing.assert_allclose(whole.residuals[layer], x, atol=1e-4)


def test_what_was_learnt_is_in_the_smaller_model(whole: Whole) -> None:
    """Compressed and masked models both have it, for the neurons that are kept."""
    levels = np.zeros((2, 3), int)
    small, shapes = compress(whole.params, whole.learnt, levels, whole.config, 1)
    masked = mask(whole.params, whole.learnt, levels, whole.config)
    for layer in (0, 2):
        kept = np.asarray(whole.learnt.ranks["ffn"][layer]) < shapes.layers[layer].ffn
        for name in ("gate", "up"):
            learnt = whole.learnt.learnt[layer][name][:, kept]
            assert (np.asarray(learnt) != np.asarray(whole.params["blocks"][name][layer][:, kept])).any()
            np.testing.assert_array_equal(layer_block(small["blocks"], layer)[name], learnt)
            np.testing.assert_array_equal(layer_block(masked["blocks"], layer)[name][:, kept], learnt)


def test_the_dense_model_stays_as_it_was(whole: Whole) -> None:
    """This also holds if its blocks are not stacked."""
    blocks = tuple(layer_block(whole.params["blocks"], layer) for layer in range(3))
    before = [dict(block) for block in blocks]
    compress(whole.params | {"blocks": blocks}, whole.learnt, np.zeros((2, 3), int), whole.config, 1)
    for block, was in zip(blocks, before, strict=True):
        assert all(block[name] is array for name, array in was.items())
