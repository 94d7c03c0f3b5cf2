"""Reconstruction: train what is left of each FFN towards the output of the dense one.

Least squares fits only a site's output projection. Here all that is left of a layer's FFN is trained as soon
as it is pruned, so that the layers after it are pruned to suit the trained one. Its target is what the dense
FFN would output for the input that the pruned model really gives it, plus a share of the drift after it. Each
FFN is trained by itself, so only one must be in memory. An FFN's own error on other text may rise while the
whole model improves, so only the whole model can be judged.

Errors are in nats where the FFN's output has a metric. Without one they are squared distances, divided by the
mean square of the residual r before the FFN, because norms divide by the size of r.

Axis letters: `B` sequences, `T` tokens, `M` tokens of all sequences, `D` hidden, `F` FFN width.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig
from tyr_jax.model.tensors import along, taken
from tyr_jax.pruning import linalg, stream
from tyr_jax.runtime import devices
from tyr_jax.runtime.buckets import bucket_widths
from tyr_jax.runtime.offload import Scratch

RATE = 0.01
"""Peak learning rate of Adam, relative to the root mean square of a tensor (Shazeer & Stern 2018)."""

LEAST_SCALE = 1e-3
"""Lower bound of a tensor's root mean square, so that a bias of zeros has a learning rate above zero."""

ADAM = optax.scale_by_adam(b2=0.99)

WARMUP = 0.1
"""Share of the steps that are warm-up. After them the learning rate falls to zero as a cosine."""

STEP_TOKENS = 2048
"""Tokens of a step, over all devices."""

MIXED_BATCHES = 16
"""Batches of text whose tokens are mixed, so that a step takes tokens of many sequences."""


class MiniBatch(NamedTuple):
    """Tokens to learn from: residuals `x [M, D]` before an FFN, the `target [M, D]` of what it adds to them,
    and the tokens' `weights [M]`."""

    x: jax.Array
    target: jax.Array
    weights: jax.Array


class Learnt(NamedTuple):
    """An FFN's tensors after learning, and their mean `error` per token of a mini-batch before and after."""

    tensors: Block
    before: float
    after: float


class LearningPlan(NamedTuple):
    """How an FFN of `config` learns: in `passes` over the text, towards the output of the dense one plus a
    `share` of the drift, in an order that `seed` decides. With `scratch`, the mini-batches are on disk."""

    config: ModelConfig
    passes: int
    share: float
    seed: tuple[int, ...]
    scratch: Scratch | None = None


def rate(step: jax.Array, steps: jax.Array) -> jax.Array:
    """The learning rate of a step, relative to the root mean square of a tensor."""
    warmup = jnp.maximum(1, WARMUP * steps)
    falls = jnp.cos(jnp.pi / 2 * jnp.clip((step - warmup) / jnp.maximum(1, steps - warmup), 0, 1)) ** 2
    return RATE * jnp.minimum((step + 1) / warmup, falls)


@functools.partial(jax.jit, static_argnames="config")
def target(
    block: Block, x: jax.Array, dense: jax.Array | None, share: jax.Array, config: ModelConfig
) -> jax.Array:
    """What a pruned FFN should add to the pruned residual `x [B, T, D]` before it. `block` is the dense one.
    `dense [B, T, D]` is the dense residual after the FFN, if the dense model is followed."""

    def own(block: Block, share: jax.Array, x: jax.Array, dense: jax.Array | None) -> jax.Array:
        out = decoder.ffn(block, x, config)
        if dense is None:
            return out
        drift = dense.astype(jnp.float32) - (x + out).astype(jnp.float32)
        return (out + share * drift).astype(x.dtype)

    return devices.divided(own, whole=2)(block, share, x, dense)


@functools.partial(jax.jit, static_argnames="count")
def mix(batches: list[MiniBatch], count: int) -> tuple[MiniBatch, ...]:
    """Shuffle the tokens of `batches`, whose arrays are `[B, T, ...]`, into `count` mini-batches `[M, ...]`.

    Each device shuffles its own tokens: of every `count` consecutive tokens, each mini-batch gets one at
    random. Zeros, which have no weight, fill up the mini-batches.
    """

    def own(batches: list[MiniBatch]) -> tuple[MiniBatch, ...]:
        tokens = sum(batch.weights.size for batch in batches)
        rows = -(-tokens // count)
        turns = jax.random.randint(jax.random.key(0), (rows, 1), 0, count)
        turns = (turns + jnp.arange(count)) % count

        def mixed(*arrays: jax.Array) -> jax.Array:
            flat = jnp.concatenate([array.reshape(-1, *array.shape[2:]) for array in arrays])
            flat = jnp.pad(flat, [(0, rows * count - tokens), *[(0, 0)] * (flat.ndim - 1)])
            table = flat.reshape(rows, count, *flat.shape[1:])
            return jnp.take_along_axis(table, turns.reshape(*turns.shape, *[1] * (flat.ndim - 1)), axis=1)

        table = jax.tree.map(mixed, *batches)
        return tuple(jax.tree.map(lambda array, at=at: array[:, at], table) for at in range(count))

    return devices.divided(own)(batches)


@functools.partial(jax.jit, static_argnames="config")
def error(tensors: Block, minibatch: MiniBatch, metric: jax.Array | None, config: ModelConfig) -> jax.Array:
    """The error `[M]` of an FFN with these `tensors` at each token, times the square of the token's weight.
    With the `metric [D, D]` of its output it is in nats; without one it is half the squared distance from the
    target."""

    def own(tensors: Block, metric: jax.Array | None, minibatch: MiniBatch) -> jax.Array:
        # The trained tensors stay float32; the FFN multiplies in the compute type.
        cast = jax.tree.map(lambda tensor: tensor.astype(minibatch.x.dtype), tensors)
        out = decoder.ffn(cast, minibatch.x, config)
        off = minibatch.weights[:, None] * (out.astype(jnp.float32) - minibatch.target.astype(jnp.float32))
        counted = off if metric is None else linalg.matmul(off, metric)
        return jnp.sum(counted * off, axis=1) / 2

    return devices.divided(own, whole=2)(tensors, metric, minibatch)


class Learning(NamedTuple):
    """The state of learning: an FFN's tensors in float32, and Adam's moments of them."""

    tensors: Block
    adam: Any


def begin_learning(tensors: Block) -> Learning:
    """The state before learning, of an FFN's `tensors` in float32."""
    return Learning(tensors, ADAM.init(tensors))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def learn(
    state: Learning,
    minibatch: MiniBatch,
    metric: jax.Array | None,
    learning_rate: jax.Array,
    config: ModelConfig,
) -> Learning:
    """The state after a step. Neurons whose output weights are all zero only fill up a width, and stay as
    they are."""

    def mean(tensors: Block) -> jax.Array:
        return jnp.mean(error(tensors, minibatch, metric, config))

    slopes = jax.grad(mean)(state.tensors)
    alive = jnp.any(state.tensors["down"] != 0, axis=-1)
    axes = config.axes
    slopes = {
        name: slope * along("F", alive, axes[name]) if "F" in axes[name] else slope
        for name, slope in slopes.items()
    }
    updates, adam = ADAM.update(slopes, state.adam)

    def move(old: jax.Array, update: jax.Array) -> jax.Array:
        scale = jnp.maximum(jnp.sqrt(jnp.mean(old * old)), LEAST_SCALE)
        return old - learning_rate * scale * update

    return Learning(jax.tree.map(move, state.tensors, updates), adam)


def learn_from(
    tensors: Block, minibatches: Sequence[Any], metric: jax.Array | None, plan: LearningPlan
) -> Learnt:
    """Train an FFN's `tensors` in the plan's passes over `minibatches`. They stay as they were if the error
    on the first mini-batch has not fallen."""
    types = {name: array.dtype for name, array in tensors.items()}
    state = begin_learning({name: jnp.array(array, jnp.float32) for name, array in tensors.items()})

    def minibatch(index: int) -> MiniBatch:
        return devices.settle(devices.place(jax.tree.map(jnp.asarray, minibatches[index])))

    def judged(tensors: Block) -> float:
        return float(jnp.mean(error(tensors, minibatch(0), metric, plan.config)))

    before, rng = judged(tensors), np.random.default_rng(plan.seed)
    order = [index for _ in range(plan.passes) for index in rng.permutation(len(minibatches))]
    for step, index in enumerate(order):
        pace = rate(jnp.float32(step), jnp.float32(len(order)))
        state = devices.settle(learn(state, minibatch(index), metric, pace, plan.config))
    learnt = {name: array.astype(types[name]) for name, array in state.tensors.items()}
    after = judged(learnt)
    return Learnt(learnt, before, after) if after < before else Learnt(tensors, before, before)


class Text(NamedTuple):
    """What an FFN learns from, in batches, on devices or on disk: residuals `x [B, T, D]` of the pruned model
    before it, of which the first `real` sequences count, and those of the dense model after it, if they are
    followed."""

    x: list[Any]
    dense: list[Any] | None
    real: list[int]


def minibatches_of(block: Block, text: Text, even: bool, plan: LearningPlan) -> list[Any]:
    """Mini-batches from the FFN of the dense `block`. All tokens weigh the same if `even`, else as
    `stream.token_weights` says."""

    def batch(index: int) -> MiniBatch:
        arrays = (text.x[index], None if text.dense is None else text.dense[index])
        x, dense = devices.place(jax.tree.map(jnp.asarray, arrays))
        aim = devices.settle(target(block, x, dense, jnp.float32(plan.share), plan.config))
        return MiniBatch(x, aim, stream.token_weights(x, jnp.int32(text.real[index]), even))

    count, minibatches = len(text.x), []
    groups = -(-count // MIXED_BATCHES)
    for group in range(groups):
        together = [batch(index) for index in range(group, count, groups)]
        number = max(1, round(sum(one.weights.size for one in together) / STEP_TOKENS))
        mixed = devices.settle(mix(together, number))
        minibatches += plan.scratch.keep(mixed) if plan.scratch else mixed
        del together, mixed  # before the next ones are made
    return minibatches


def width_for(kept: int, config: ModelConfig) -> int:
    """The width at which an FFN that keeps `kept` neurons learns."""
    return next(width for width in bucket_widths(config.dense_shape.ffn) if width >= kept)


def reconstructed(
    pruned: Block,
    block: Block,
    order: jax.Array,
    kept: int,
    text: Text,
    metric: jax.Array | None,
    plan: LearningPlan,
) -> Learnt:
    """What the FFN of the `pruned` block has learnt, in dense shapes.

    `block` is the dense one. The neurons `order [F]`, of every expert `[X, F]`, are in the order of removal,
    last removed first; `kept` of them are left. `metric [D, D]` is that of the FFN's output.
    """
    config = plan.config
    chosen = order[..., : width_for(kept, config)]
    axes = {tensor.name: tensor.axes for tensor in config.tensors if tensor.sublayer == "ffn"}
    tensors = {
        name: taken(pruned[name], chosen, "F", own) if "F" in own else pruned[name]
        for name, own in axes.items()
    }
    tensors = devices.spread(tensors, config.hidden_axes)
    learnt = learn_from(tensors, minibatches_of(block, text, metric is not None, plan), metric, plan)

    def put_back(name: str) -> jax.Array:
        own, new = axes[name], learnt.tensors[name]
        if "F" not in own:
            return new
        at = jnp.broadcast_to(along("F", chosen, own), new.shape)
        return jnp.put_along_axis(pruned[name], at, new, own.index("F"), inplace=False)

    return learnt._replace(
        tensors=devices.spread({name: put_back(name) for name in axes}, config.hidden_axes)
    )
