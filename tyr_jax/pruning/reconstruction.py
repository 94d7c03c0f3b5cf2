"""Reconstruction: train what is left of each layer, for minutes, towards the output of the dense one.

Least squares fits only a site's output projection. Here all that is left of a layer, attention and FFN
together, is trained as soon as it is pruned, so that the layers after it are pruned to suit the trained one.
Its target is what the dense layer would output for the input that the pruned model really gives it, plus a
share of the drift after the layer. Each layer is trained by itself, so only one must be in memory. A layer's
own error on other text may rise while the whole model improves, so only the whole model can be judged.

Errors are squared distances, divided by the mean square of the residual r before the layer, because norms
divide by the size of r. With errors in nats, the model was worse on every text.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `N` heads, `F` FFN width, `X` experts.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tyr_jax.model import decoder
from tyr_jax.model.spec import OUTPUTS, UNIT_AXES, Block, ModelConfig, Sublayer, along, taken
from tyr_jax.pruning import stream
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

LESSON_TOKENS = 2048
"""Tokens of a step, over all devices, in whole sequences; at least one sequence of every device."""


JUDGED_LESSONS = 4
"""Lessons that decide whether learning has helped."""


class Lesson(NamedTuple):
    """Sequences to learn from: residuals `x [B, T, D]` before a layer, the `target [B, T, D]` of what it adds
    to them, and the tokens' `weights [B, T]`."""

    x: jax.Array
    target: jax.Array
    weights: jax.Array


class Learnt(NamedTuple):
    """Tensors of a layer after learning, and the mean `error` per token of some lessons before and after."""

    tensors: Block
    before: float
    after: float


class Plan(NamedTuple):
    """How a layer of `config` learns: the tensors of some `sublayers`, in `passes` over the text, towards the
    output of the dense one plus a `share` of the drift, in an order that `seed` decides. With `scratch`, the
    text is on disk."""

    config: ModelConfig
    sublayers: tuple[Sublayer, ...]
    passes: int
    share: float
    seed: tuple[int, ...]
    scratch: Scratch | None = None

    @property
    def axes(self) -> dict[str, str]:
        """Axis letters of the tensors that learn, by name."""
        return {
            tensor.name: tensor.axes
            for tensor in self.config.tensors
            if tensor.key and tensor.sublayer in self.sublayers
        }


def rate(step: jax.Array, steps: jax.Array) -> jax.Array:
    """The learning rate of a step, relative to the root mean square of a tensor."""
    warmup = jnp.maximum(1, WARMUP * steps)
    falls = jnp.cos(jnp.pi / 2 * jnp.clip((step - warmup) / jnp.maximum(1, steps - warmup), 0, 1)) ** 2
    return RATE * jnp.minimum((step + 1) / warmup, falls)


def sublayer_outputs(block: Block, x: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """What attention and the FFN of a layer add to the residual `x [B, T, D]` before the layer."""
    units = decoder.attention_units(block, x, decoder.rope_tables(config, x.shape[1]), config)
    attention = decoder.attention_output(block, units, config)
    return attention, decoder.ffn(block, x + attention, config)


@functools.partial(jax.jit, static_argnames="config")
def target(
    block: Block, x: jax.Array, dense: jax.Array | None, share: jax.Array, config: ModelConfig
) -> jax.Array:
    """What a pruned layer should add to the pruned residual `x [B, T, D]` before it. `block` is the dense
    one. `dense [B, T, D]` is the dense residual after the layer, if the dense model is followed."""

    def own(block: Block, share: jax.Array, x: jax.Array, dense: jax.Array | None) -> jax.Array:
        attention, ffn = sublayer_outputs(block, x, config)
        if dense is None:
            return attention + ffn
        drift = dense.astype(jnp.float32) - (x + attention + ffn).astype(jnp.float32)
        return (attention + ffn + share * drift).astype(x.dtype)

    return devices.divided(own, whole=2)(block, share, x, dense)


@functools.partial(jax.jit, static_argnames=("at", "count"))
def part(batch: Lesson, at: int, count: int) -> Lesson:
    """Part `at` of `count` of a batch. Each device takes a part of its own sequences."""
    return devices.divided(lambda own: jax.tree.map(lambda array: array[at::count], own))(batch)


@functools.partial(jax.jit, static_argnames="config")
def error(tensors: Block, fixed: Block, lesson: Lesson, config: ModelConfig) -> jax.Array:
    """Half the squared distance of a layer's output from the target, `[B, T]`, times the square of the
    token's weight. The layer has the `tensors` that learn and those that are `fixed`."""

    def own(tensors: Block, fixed: Block, lesson: Lesson) -> jax.Array:
        outputs = sublayer_outputs(fixed | tensors, lesson.x, config)
        off = sum(out.astype(jnp.float32) for out in outputs) - lesson.target.astype(jnp.float32)
        return lesson.weights**2 * jnp.sum(off * off, axis=-1) / 2

    return devices.divided(own, whole=2)(tensors, fixed, lesson)


class Learning(NamedTuple):
    """The state of learning: tensors in float32, and Adam's moments of them."""

    tensors: Block
    adam: Any


def begin(tensors: Block) -> Learning:
    """The state before learning, of `tensors` in float32."""
    return Learning(tensors, ADAM.init(tensors))


def alive(tensors: Block, axes: dict[str, str]) -> dict[str, jax.Array]:
    """Which units have output weights that are not all zero, `[N]` and `[F]` (of experts, `[X, F]`), by axis.
    `axes` are those of the `tensors`."""
    found = {}
    for sublayer, axis in UNIT_AXES.items():
        if (name := OUTPUTS[sublayer]) in tensors:
            inner = range(axes[name].index(axis) + 1, len(axes[name]))
            found[axis] = jnp.any(tensors[name] != 0, axis=tuple(inner))
    return found


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def learn(
    state: Learning, fixed: Block, lesson: Lesson, learning_rate: jax.Array, config: ModelConfig
) -> Learning:
    """The state after a step. Units whose output weights are all zero are removed ones, and stay as they
    are."""

    def mean(tensors: Block) -> jax.Array:
        return jnp.mean(error(tensors, fixed, lesson, config))

    slopes = jax.grad(mean)(state.tensors)
    axes = {tensor.name: tensor.axes for tensor in config.tensors}
    for axis, living in alive(state.tensors, axes).items():
        for name in [name for name in slopes if axis in axes[name]]:
            slopes[name] = slopes[name] * along(axis, living, axes[name])
    updates, adam = ADAM.update(slopes, state.adam)

    def move(old: jax.Array, update: jax.Array) -> jax.Array:
        scale = jnp.maximum(jnp.sqrt(jnp.mean(old * old)), LEAST_SCALE)
        return old - learning_rate * scale * update

    return Learning(jax.tree.map(move, state.tensors, updates), adam)


def learn_from(tensors: Block, fixed: Block, batches: Sequence[Lesson], plan: Plan) -> Learnt:
    """Train the `tensors` of a layer, whose others are `fixed`, in the plan's passes over `batches`, on
    devices or on disk, each of which is a few lessons. They stay as they were if the error of lessons from
    all over the text has not fallen."""
    parts = [
        (index, at, count)
        for index, batch in enumerate(batches)
        for count in [lesson_count(*batch.weights.shape)]
        for at in range(count)
    ]

    def lesson(number: int) -> Lesson:
        index, at, count = parts[number]
        return devices.settle(part(devices.place(jax.tree.map(jnp.asarray, batches[index])), at, count))

    def judged(tensors: Block) -> float:
        some = range(0, len(parts), -(-len(parts) // JUDGED_LESSONS))
        return float(np.mean([jnp.mean(error(tensors, fixed, lesson(one), plan.config)) for one in some]))

    types = {name: array.dtype for name, array in tensors.items()}
    state = begin({name: jnp.array(array, jnp.float32) for name, array in tensors.items()})
    before, rng = judged(tensors), np.random.default_rng(plan.seed)
    order = [number for _ in range(plan.passes) for number in rng.permutation(len(parts))]
    for step, number in enumerate(order):
        pace = rate(jnp.float32(step), jnp.float32(len(order)))
        state = devices.settle(learn(state, fixed, lesson(number), pace, plan.config))
    learnt = {name: array.astype(types[name]) for name, array in state.tensors.items()}
    after = judged(learnt)
    return Learnt(learnt, before, after) if after < before else Learnt(tensors, before, before)


def lesson_count(sequences: int, length: int) -> int:
    """How many lessons there are in a batch of so many `sequences` of a `length`."""
    each = devices.count() * max(1, LESSON_TOKENS // (devices.count() * length))
    return -(-sequences // each)


class Text(NamedTuple):
    """What a layer learns from, in batches, on devices or on disk: residuals `x [B, T, D]` of the pruned
    model before it, of which the first `real` sequences count, and those of the dense model after it, if they
    are followed."""

    x: list[Any]
    dense: list[Any] | None
    real: list[int]


def batches_of(block: Block, text: Text, plan: Plan) -> list[Lesson]:
    """The batches to learn from the dense layer `block`, whose residuals are those of `text` itself."""
    shapes = [(x, jax.ShapeDtypeStruct(x.shape[:2], jnp.float32)) for x in text.x]
    made: list[Any] = plan.scratch.empty(shapes) if plan.scratch else []
    for index, real in enumerate(text.real):
        arrays = (text.x[index], None if text.dense is None else text.dense[index])
        x, dense = devices.place(jax.tree.map(jnp.asarray, arrays))
        aim = devices.settle(target(block, x, dense, jnp.float32(plan.share), plan.config))
        weights = stream.token_weights(x, jnp.int32(real), even=False)
        if plan.scratch:
            made[index][0][...], made[index][1][...] = aim, weights
        else:
            made.append((aim, weights))
    return [Lesson(x, *more) for x, more in zip(text.x, made, strict=True)]


def width_for(kept: int, config: ModelConfig) -> int:
    """The width at which an FFN that keeps `kept` neurons learns."""
    return next(width for width in bucket_widths(config.dense_shape.ffn) if width >= kept)


def reconstructed(pruned: Block, block: Block, rank: jax.Array, kept: int, text: Text, plan: Plan) -> Learnt:
    """What the `pruned` layer has learnt, in dense shapes.

    `block` is the dense one. The `kept` neurons of lowest `rank [F]`, of every expert `[X, F]`, are left.
    """
    config, axes = plan.config, plan.axes
    chosen = jnp.argsort(rank, axis=-1)[..., : width_for(kept, config)]
    small = {
        tensor.name: taken(pruned[tensor.name], chosen, "F", tensor.axes)
        if "F" in tensor.axes
        else pruned[tensor.name]
        for tensor in config.tensors
    }
    small = devices.spread(small, config.hidden)
    fixed = {name: array for name, array in small.items() if name not in axes}
    learnt = learn_from({name: small[name] for name in axes}, fixed, batches_of(block, text, plan), plan)

    def put_back(name: str) -> jax.Array:
        own, new = axes[name], learnt.tensors[name]
        if "F" not in own:
            return new
        at = jnp.broadcast_to(along("F", chosen, own), new.shape)
        return jnp.put_along_axis(pruned[name], at, new, own.index("F"), inplace=False)

    return learnt._replace(tensors=devices.spread({name: put_back(name) for name in axes}, config.hidden))
