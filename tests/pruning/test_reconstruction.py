"""Reconstruction: targets by hand, and what training may and may not change."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import add_attention64, add_ffn64, f64, head_outputs64, neurons64

from tyr_jax import space
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params, layer_block, random_params
from tyr_jax.pruning import reconstruction
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.reconstruction import Learnt, Lesson, Plan, Text, part, rate, reconstructed
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

    def small(self) -> Block:
        """The block with zero weights for the outputs of removed neurons and of the first head."""
        down = jnp.where(self.rank[:, None] < self.kept, self.block["down"], 0)
        return self.block | {"down": down, "o": self.block["o"].at[0].set(0)}

    def text(self) -> Text:
        """Both streams in four batches. One sequence of the last batch is padding."""
        parts = [list(jnp.split(x, 4)) for x in (self.pruned, self.dense)]
        return Text(parts[0], parts[1], [3, 3, 3, 2])

    def plan(self, passes: int = 20, share: float = 0.0, **changes: Any) -> Plan:
        return Plan(self.config, ("attention", "ffn"), passes, share, (0,))._replace(**changes)

    def learn(self, plan: Plan | None = None, kept: int | None = None, text: Text | None = None) -> Learnt:
        given = kept or self.kept, text or self.text(), plan or self.plan()
        return reconstructed(self.small(), self.block, self.rank, *given)

    def output64(self, x: Any) -> np.ndarray:
        """What the dense layer adds to residuals."""
        after = add_attention64(self.block, f64(x), head_outputs64(self.block, f64(x), self.config))
        return add_ffn64(self.block, after, neurons64(self.block, after, self.config)) - f64(x)


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config(qkv_bias=True, mlp_bias=True, layers=1)
    params = random_params(config, jax.random.key(1), scale=0.2)
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0))
    rng = np.random.default_rng(0)
    pruned = rng.standard_normal((12, LENGTH, config.hidden)).astype(np.float32)
    dense = pruned + 0.3 * rng.standard_normal(pruned.shape).astype(np.float32)
    neurons = len(block["down"])
    rank = jnp.asarray(rng.permutation(neurons))
    return World(config, block, rank, neurons // 2, jnp.asarray(pruned), jnp.asarray(dense))


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make lessons so short that even the small text fills several, of two sequences or one."""
    monkeypatch.setattr(reconstruction, "LESSON_TOKENS", 2 * LENGTH)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_targets_by_hand(share: float, world: World) -> None:
    x, dense, own = f64(world.pruned), f64(world.dense), world.output64(world.pruned)
    rest = jnp.float32(share), world.config
    ours = reconstruction.target(world.block, world.pruned, world.dense, *rest)
    np.testing.assert_allclose(ours, own + share * (dense - x - own), rtol=1e-4, atol=1e-4)
    ours = reconstruction.target(world.block, world.pruned, None, *rest)
    np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-4)


def test_an_error_is_a_weighted_square(world: World) -> None:
    """Computed by hand, for tokens of different weights, whichever tensors learn."""
    x, target = world.pruned, world.dense
    weights = jnp.asarray(np.random.default_rng(1).random(x.shape[:2]), jnp.float32)
    expected = f64(weights) ** 2 * np.sum((world.output64(x) - f64(target)) ** 2, axis=-1) / 2
    for names in (["q", "down"], world.plan().axes):
        tensors = {name: world.block[name] for name in names}
        # The tensors that learn count, not those of the same name that are fixed.
        fixed = {name: array * (name not in tensors) for name, array in world.block.items()}
        ours = reconstruction.error(tensors, fixed, Lesson(x, target, weights), world.config)
        np.testing.assert_allclose(ours, expected, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_sequence_is_in_one_part(count: int) -> None:
    marks = jnp.arange(5.0)[:, None] * jnp.ones(8)
    batch = Lesson(marks[..., None] * jnp.ones(3), -marks[..., None] * jnp.ones(3), marks)
    parts = [part(batch, at, count) for at in range(count)]
    assert max(len(each.x) for each in parts) - min(len(each.x) for each in parts) <= 1
    np.testing.assert_array_equal(np.sort(np.concatenate([each.weights[:, 0] for each in parts])), range(5))
    for each in parts:
        np.testing.assert_array_equal(each.x, each.weights[..., None] * np.ones(3))
        np.testing.assert_array_equal(each.target, -each.x)


@pytest.mark.parametrize(
    ("sequences", "length", "count"), [(3, 1, 1), (3, LENGTH, 2), (3, 2 * LENGTH, 3), (3, 9 * LENGTH, 3)]
)
def test_lessons_have_so_many_tokens(sequences: int, length: int, count: int) -> None:
    """They are whole sequences, so a long one is a lesson by itself."""
    assert reconstruction.lesson_count(sequences, length) == count


def test_batches_are_of_all_text(world: World) -> None:
    """A token weighs as much as its residual is small, and padding weighs nothing."""
    marked = [jnp.full((3, LENGTH, world.config.hidden), float(index)) for index in range(1, 5)]
    batches = reconstruction.batches_of(world.block, Text(marked, None, [3, 3, 3, 2]), world.plan())
    assert [float(batch.x[0, 0, 0]) for batch in batches] == [1, 2, 3, 4]
    weighed = [float((batch.weights * batch.x[..., 0]).sum()) for batch in batches]
    assert weighed == pytest.approx([3 * LENGTH, 3 * LENGTH, 3 * LENGTH, 2 * LENGTH])
    for batch in batches:
        # A residual whose channels are all alike is as good as any other.
        expected = world.output64(batch.x[:1, :4])
        np.testing.assert_allclose(batch.target[:1, :4], expected, rtol=1e-3, atol=1e-3)


def test_learning_helps(world: World) -> None:
    learnt = world.learn()
    assert learnt.after < 0.8 * learnt.before
    assert set(learnt.tensors) == set(world.block)


@pytest.mark.parametrize("sublayer", ["attention", "ffn"])
def test_a_sublayer_may_stay_as_it_is(sublayer: Any, world: World) -> None:
    learnt = world.learn(world.plan(sublayers=(sublayer,)))
    assert learnt.after < learnt.before
    own = {tensor.name for tensor in world.config.tensors if tensor.sublayer == sublayer}
    assert set(learnt.tensors) == own


def test_text_on_disk_teaches_the_same(world: World) -> None:
    scratch = Scratch()
    x, dense, real = world.text()
    stored = Text(scratch.keep(x), scratch.keep(dense), real)
    lazy = world.learn(world.plan(share=0.5, scratch=scratch), text=stored)
    here = world.learn(world.plan(share=0.5))
    assert lazy.after == here.after
    for name, array in here.tensors.items():
        np.testing.assert_array_equal(array, lazy.tensors[name], err_msg=name)


def test_what_does_not_help_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate far too high, everything stays bitwise the same, even if the loss becomes infinite
    or NaN."""
    for peak in (1e5, 1e30):
        monkeypatch.setattr(reconstruction, "RATE", peak)
        reconstruction.learn.clear_cache()
        learnt = world.learn(world.plan(passes=2))
        assert learnt.after == learnt.before
        for name, array in learnt.tensors.items():
            np.testing.assert_array_equal(array, world.small()[name], err_msg=name)


def test_removed_units_stay_as_they_are(world: World) -> None:
    """This includes removed neurons that pad the width at which the others are trained."""
    learnt = world.learn(kept=world.kept - 3)
    assert learnt.after < learnt.before
    gone = np.asarray(world.rank >= world.kept)
    np.testing.assert_array_equal(learnt.tensors["down"][gone], 0)
    np.testing.assert_array_equal(learnt.tensors["gate"][:, gone], world.block["gate"][:, gone])
    assert (learnt.tensors["down"][~gone] != 0).all()
    assert (learnt.tensors["gate"][:, ~gone] != world.block["gate"][:, ~gone]).all()
    np.testing.assert_array_equal(learnt.tensors["o"][0], 0)
    np.testing.assert_array_equal(learnt.tensors["q"][:, 0], world.block["q"][:, 0])
    assert (learnt.tensors["o"][1:] != 0).all()
    assert (learnt.tensors["q"][:, 1:] != world.block["q"][:, 1:]).all()


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
    """Those of the first batch, after each layer that has learnt."""


@pytest.fixture(scope="module")
def whole(tiny_config: Callable[..., ModelConfig]) -> Whole:
    config = tiny_config(layers=3)
    params = random_params(config, jax.random.key(2), scale=0.2)
    settings = dataclasses.replace(
        PruningSettings(keep_heads=(0, 1), keep_neurons=(1,), neuron_multiple=1),
        metric="none",
        accumulation="centre",
    )
    kinds = settings.kinds(config)
    heads, neurons = kinds[0].units, kinds[1].units
    kept = np.array([[heads, heads, heads - 1], [neurons // 2, neurons, neurons // 2]])
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

    return Whole(config, params, build(0), build(10), text, residuals)


def test_a_model_learns_layer_by_layer(whole: Whole) -> None:
    """What the settings keep whole is not trained."""
    first, middle, last = whole.learnt.learnt
    assert middle is None
    assert whole.plain.learnt == ()
    assert set(first) == {"gate", "up", "mlp_norm"}
    assert set(last) == {"q", "k", "v", "attn_norm", *first}
    ours, plain = whole.learnt, whole.plain
    np.testing.assert_array_equal(ours.attn_out[0, 0], whole.params["blocks"]["o"][0])
    np.testing.assert_array_equal(ours.mlp_down[1, 0], whole.params["blocks"]["down"][1])
    assert (np.asarray(ours.mlp_down[0]) != np.asarray(plain.mlp_down[0])).any()
    for field in ("attn_out", "mlp_down"):
        assert (np.asarray(getattr(ours, field)[2]) != np.asarray(getattr(plain, field)[2])).any()


def test_what_was_learnt_is_passed_on(whole: Whole) -> None:
    """The residuals after a layer are those of the trained one, so later layers are pruned to suit it."""
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
        kept = np.asarray(whole.learnt.mlp_rank[layer]) < shapes.layers[layer].ffn
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
