"""Reconstruction: targets by hand, and what learning may and may not do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import add_attention64, add_ffn64, f64, head_outputs64, neurons64

from tyr_jax.model.spec import Block, ModelConfig, layer_block, random_params
from tyr_jax.pruning import reconstruction, stream
from tyr_jax.pruning.reconstruction import Plan, Streams, learn_layer, rate, reconstruct_layer, targets

LENGTH = 64


class World(NamedTuple):
    config: ModelConfig
    block: Block
    small: Block
    pruned: jax.Array
    dense: jax.Array
    metric: jax.Array

    def streams(self) -> Streams:
        """Both streams in four batches, of the last of which one sequence only fills it up."""

        def parts(x: jax.Array) -> list[jax.Array]:
            return [jnp.array(part) for part in jnp.split(x, 4)]

        return Streams(0, parts(self.pruned), parts(self.dense), [3, 3, 3, 2])

    def reconstruct(self, passes: int = 20, **changes: Any) -> tuple[Any, Streams]:
        given = {"small": self.small, "metric": self.metric} | changes
        plan = Plan(self.config, passes, share=0.0, seed=0)
        return reconstruct_layer(block=self.block, streams=self.streams(), plan=plan, **given)


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config(qkv_bias=True, mlp_bias=True, layers=1)
    params = random_params(config, jax.random.key(1), scale=0.2)
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], 0))
    half = block["down"].shape[0] // 2
    small = block | {"down": block["down"][:half]}
    small |= {name: block[name][..., :half] for name in ("gate", "up", "gate_bias", "up_bias")}
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((12, LENGTH, config.hidden)).astype(np.float32)
    pruned = dense + 0.3 * rng.standard_normal(dense.shape).astype(np.float32)
    root = rng.standard_normal((config.hidden, config.hidden)).astype(np.float32) / 8
    metric = jnp.asarray(root @ root.T + 0.1 * np.eye(config.hidden, dtype=np.float32))
    return World(config, block, small, jnp.asarray(pruned), jnp.asarray(dense), metric)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_targets_by_hand(share: float, world: World) -> None:
    config, block = world.config, world.block
    x, dense = f64(world.pruned), f64(world.dense)
    x = add_attention64(block, x, head_outputs64(block, x, config))
    dense = add_attention64(block, dense, head_outputs64(block, dense, config))
    dense = add_ffn64(block, dense, neurons64(block, dense, config))
    own = add_ffn64(block, x, neurons64(block, x, config)) - x
    expected = own + share * (dense - x - own)
    streams = jnp.array(world.pruned), jnp.array(world.dense)
    middle, behind, target = targets(world.small, block, *streams, jnp.float32(share), config)
    for ours, theirs in ((middle, x), (behind, dense), (target, expected)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_error_is_in_nats_or_squares(world: World) -> None:
    """By hand, of tokens that weigh differently."""
    config, x, target = world.config, world.pruned, world.dense
    weights = jnp.asarray(np.random.default_rng(1).random(x.shape[:2]), jnp.float32)
    tensors = {name: world.small[name] for name in world.small if name not in ("q", "k", "v", "o")}
    off = add_ffn64(tensors, f64(x), neurons64(tensors, f64(x), config)) - f64(x) - f64(target)
    off *= f64(weights)[..., None]
    for metric, counted in ((world.metric, off @ f64(world.metric)), (None, off)):
        ours = reconstruction.error(tensors, x, target, weights, metric, config)
        np.testing.assert_allclose(ours, (counted * off).sum(axis=(1, 2)) / 2, rtol=1e-4)


@pytest.mark.parametrize("by_metric", [True, False])
def test_learning_helps_on_text_that_is_held_out(by_metric: bool, world: World) -> None:
    learnt, after = world.reconstruct(metric=world.metric if by_metric else None)
    assert learnt.after < 0.9 * learnt.before
    assert after.done == 1
    assert after.real == [3, 3, 3, 2]
    # What is passed on is what the layer has learnt.
    x = f64(world.pruned)
    x = add_attention64(world.small, x, head_outputs64(world.small, x, world.config))
    now = world.small | learnt.tensors
    expected = add_ffn64(now, x, neurons64(now, x, world.config))
    np.testing.assert_allclose(jnp.concatenate(after.pruned), expected, rtol=1e-3, atol=1e-3)


def test_what_does_not_help_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate far too high, everything stays as it was, to the last bit."""
    monkeypatch.setattr(reconstruction, "RATE", 1e5)
    learnt, _ = world.reconstruct(passes=2)
    assert learnt.after == learnt.before
    for name, array in learnt.tensors.items():
        np.testing.assert_array_equal(array, world.small[name], err_msg=name)


def test_neurons_that_only_fill_up_stay_empty(world: World) -> None:
    down = world.small["down"].at[-3:].set(0)
    learnt, _ = world.reconstruct(small=world.small | {"down": down})
    assert learnt.after < learnt.before
    np.testing.assert_array_equal(learnt.tensors["down"][-3:], 0)
    np.testing.assert_array_equal(learnt.tensors["gate"][:, -3:], world.small["gate"][:, -3:])
    assert (learnt.tensors["down"][:-3] != 0).all()


def test_a_layer_without_an_ffn_learns_nothing(world: World) -> None:
    attention = {"q", "k", "v", "o", "attn_norm", "q_bias", "k_bias", "v_bias"}
    learnt, after = world.reconstruct(small={name: world.small[name] for name in attention})
    assert learnt is None
    assert after.done == 1


def test_one_batch_is_both_taught_and_held(world: World) -> None:
    batch = world.pruned, world.dense, stream.token_weights(world.pruned, jnp.int32(12), even=True)
    tensors = {name: world.small[name] for name in world.small if name not in ("q", "k", "v", "o")}
    learnt = learn_layer(tensors, [batch], None, world.config, 5, np.random.default_rng(0))
    assert learnt.after < learnt.before


def test_the_rate_rises_and_falls() -> None:
    rates = [float(rate(jnp.float32(step), jnp.float32(100))) for step in range(100)]
    assert max(rates) == pytest.approx(reconstruction.RATE, rel=1e-2)
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[0] == pytest.approx(reconstruction.RATE / 10)
    assert rates[-1] < reconstruction.RATE / 1000
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
