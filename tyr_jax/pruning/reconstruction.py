"""Reconstruction: train what is left of each layer, for minutes, towards the output of the dense one.

Least squares fits only a site's output projection. Here all that is left of a layer, attention and FFN
together, is trained as soon as it is pruned, so that the layers after it are pruned to suit the trained one.
Its target is that of the sites: the output of the dense layer on the stream that the pruned layers before
really pass on, plus a share of the drift after it. Each layer is trained by itself, so only one must be in
memory. Only the whole model can tell whether this helps: the error of a layer on other text may rise while
that of the model falls.

Errors are squared distances, in which tokens weigh 1 / rms(r), because the next norm divides by the size of
the residual r. With errors in nats, the model was worse on every text.

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


class Lesson(NamedTuple):
    """Sequences to learn from: residuals `x [B, T, D]` before a layer, the `target [B, T, D]` of what it adds
    to them, and the tokens' `weights [B, T]`."""

    x: jax.Array
    target: jax.Array
    weights: jax.Array


class Learnt(NamedTuple):
    """A layer's tensors after learning, and their mean error per token on a lesson before and after."""

    tensors: Block
    before: float
    after: float


class Plan(NamedTuple):
    """How a layer of `config` learns: the tensors of some `sublayers`, in `passes` over the text, towards the
    output of the dense one plus a `share` of the drift, in an order that `seed` decides. With `scratch`, the
    lessons are on disk."""

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


def layer_output(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """What a layer adds to the residual `x [B, T, D]` before it."""
    units = decoder.attention_units(block, x, decoder.rope_tables(config, x.shape[1]), config)
    out = decoder.attention_output(block, units, config)
    return out + decoder.ffn(block, x + out, config)


@functools.partial(jax.jit, static_argnames="config")
def target(
    block: Block, x: jax.Array, dense: jax.Array | None, share: jax.Array, config: ModelConfig
) -> jax.Array:
    """What a pruned layer should add to the pruned residual `x [B, T, D]` before it. `block` is the dense
    one. `dense [B, T, D]` is the dense residual after the layer, if the dense model is followed."""

    def own(block: Block, share: jax.Array, x: jax.Array, dense: jax.Array | None) -> jax.Array:
        out = layer_output(block, x, config)
        if dense is None:
            return out
        drift = dense.astype(jnp.float32) - (x + out).astype(jnp.float32)
        return (out + share * drift).astype(x.dtype)

    return devices.divided(own, whole=2)(block, share, x, dense)


@functools.partial(jax.jit, static_argnames="count")
def split(batch: Lesson, count: int) -> tuple[Lesson, ...]:
    """Split a batch into `count` lessons. Each device splits its own sequences."""

    def own(batch: Lesson) -> tuple[Lesson, ...]:
        return tuple(jax.tree.map(lambda array, at=at: array[at::count], batch) for at in range(count))

    return devices.divided(own)(batch)


@functools.partial(jax.jit, static_argnames="config")
def error(tensors: Block, fixed: Block, lesson: Lesson, config: ModelConfig) -> jax.Array:
    """Half the squared distance of a layer's output from the target, `[B, T]`, times the square of the
    token's weight. The layer has the `tensors` that learn and those that are `fixed`."""

    def own(tensors: Block, fixed: Block, lesson: Lesson) -> jax.Array:
        out = layer_output(fixed | tensors, lesson.x, config)
        off = out.astype(jnp.float32) - lesson.target.astype(jnp.float32)
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


def learn_from(tensors: Block, fixed: Block, lessons: Sequence[Any], plan: Plan) -> Learnt:
    """Train the `tensors` of a layer, whose others are `fixed`, in the plan's passes over `lessons`. They
    stay as they were if the error on the first lesson has not fallen."""
    types = {name: array.dtype for name, array in tensors.items()}
    state = begin({name: jnp.array(array, jnp.float32) for name, array in tensors.items()})

    def lesson(index: int) -> Lesson:
        return devices.place(jax.tree.map(jnp.asarray, lessons[index]))

    def judged(tensors: Block) -> float:
        return float(jnp.mean(error(tensors, fixed, lesson(0), plan.config)))

    before, rng = judged(tensors), np.random.default_rng(plan.seed)
    order = [index for _ in range(plan.passes) for index in rng.permutation(len(lessons))]
    for step, index in enumerate(order):
        pace = rate(jnp.float32(step), jnp.float32(len(order)))
        state = learn(state, fixed, lesson(index), pace, plan.config)
    learnt = {name: array.astype(types[name]) for name, array in state.tensors.items()}
    after = judged(learnt)
    return Learnt(learnt, before, after) if after < before else Learnt(tensors, before, before)


class Text(NamedTuple):
    """What a layer learns from, in batches, on devices or on disk: residuals `x [B, T, D]` of the pruned
    model before it, of which the first `real` sequences count, and those of the dense model after it, if they
    are followed."""

    x: list[Any]
    dense: list[Any] | None
    real: list[int]


def lessons_of(block: Block, text: Text, plan: Plan) -> list[Any]:
    """Lessons from the dense layer `block`."""
    lessons: list[Any] = []
    for index, real in enumerate(text.real):
        arrays = (text.x[index], None if text.dense is None else text.dense[index])
        x, dense = devices.place(jax.tree.map(jnp.asarray, arrays))
        aim = target(block, x, dense, jnp.float32(plan.share), plan.config)
        weights = stream.token_weights(x, jnp.int32(real), even=False)
        made = split(Lesson(x, aim, weights), lesson_count(*x.shape[:2]))
        lessons += plan.scratch.keep(made) if plan.scratch else made
    return lessons


def lesson_count(sequences: int, length: int) -> int:
    """How many lessons a batch of so many `sequences` of a `length` is split into."""
    each = devices.count() * max(1, LESSON_TOKENS // (devices.count() * length))
    return -(-sequences // each)


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
    learnt = learn_from({name: small[name] for name in axes}, fixed, lessons_of(block, text, plan), plan)

    def put_back(name: str) -> jax.Array:
        own, new = axes[name], learnt.tensors[name]
        if "F" not in own:
            return new
        at = jnp.broadcast_to(along("F", chosen, own), new.shape)
        return jnp.put_along_axis(pruned[name], at, new, own.index("F"), inplace=False)

    return learnt._replace(tensors=devices.spread({name: put_back(name) for name in axes}, config.hidden))
