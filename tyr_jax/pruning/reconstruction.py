"""Reconstruction: what is left of each FFN is trained, for minutes, towards what the dense one does.

Least squares fit a site's output projection alone. Here all that is left of a layer's FFN learns, on the
stream that the pruned layers before really pass on: its target is what the dense FFN makes of that stream,
and a share of the drift behind it. A layer learns by itself, so that only one need be in memory, and the
weights of least error on text that it did not learn from stay.

Axis letters: `L` layers, `B` sequences, `T` tokens, `D` hidden, `F` FFN width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, along
from tyr_jax.pruning import linalg, stream
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import Scratch

RATE = 0.01
"""Peak learning rate of Adam, in terms of the root mean square of a tensor (Shazeer & Stern 2018)."""

LEAST_SCALE = 1e-3
"""Of a tensor's root mean square, for the rate not to be zero where a bias is."""

ADAM = optax.scale_by_adam(b2=0.99)

WARMUP = 0.1
"""Share of the steps in which the learning rate rises to it; then it falls, as a cosine, to zero."""


class Streams(NamedTuple):
    """Where a reconstruction stands: layers `done`, and the residuals `[B, T, D]` that enter the next, of the
    pruned and of the dense model, one for each batch of text, of which the first `real` sequences count."""

    done: int
    pruned: list[Any]
    dense: list[Any]
    real: list[int]


class Learnt(NamedTuple):
    """An FFN's tensors, and their mean error a token on text held out, before and after learning."""

    tensors: Block
    before: float
    after: float


def rate(step: jax.Array, steps: jax.Array) -> jax.Array:
    """The learning rate of a step, in terms of the root mean square of a tensor."""
    warmup = jnp.maximum(1, WARMUP * steps)
    falls = jnp.cos(jnp.pi / 2 * jnp.clip((step - warmup) / jnp.maximum(1, steps - warmup), 0, 1)) ** 2
    return RATE * jnp.minimum((step + 1) / warmup, falls)


@functools.partial(jax.jit, static_argnames="config", donate_argnames=("pruned", "dense"))
def targets(
    small: Block, block: Block, pruned: jax.Array, dense: jax.Array, share: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the pruned residual behind a layer's attention, the dense one behind the layer, and what the pruned
    FFN should add), each `[B, T, D]`, from both before the layer; `small` is the pruned block."""
    rope = decoder.rope_tables(config, pruned.shape[1])

    def own(
        small: Block, block: Block, rope: decoder.Rope, share: jax.Array, x: jax.Array, dense: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, dense = (
            decoder.add_attention(small, x, rope, config),
            decoder.apply_block(block, dense, rope, config),
        )
        target = decoder.ffn_output(block, decoder.ffn_units(block, x, config))
        drift = dense.astype(jnp.float32) - (x + target).astype(jnp.float32)
        return x, dense, (target + share * drift).astype(x.dtype)

    return devices.divided(own, whole=4)(small, block, rope, share, pruned, dense)


@functools.partial(jax.jit, static_argnames="config")
def error(
    tensors: Block,
    x: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    metric: jax.Array | None,
    config: ModelConfig,
) -> jax.Array:
    """How far an FFN of these `tensors` is from its target, `[B]` summed over tokens: by the `metric [D, D]`
    of its output, in nats, or without one in squares; of residuals `x` and their `target [B, T, D]`, of
    tokens that weigh as `weights [B, T]` say."""

    def own(
        tensors: Block, metric: jax.Array | None, x: jax.Array, target: jax.Array, weights: jax.Array
    ) -> jax.Array:
        out = decoder.ffn_output(tensors, decoder.ffn_units(tensors, x, config))
        off = weights[..., None] * (out.astype(jnp.float32) - target.astype(jnp.float32))
        counted = off if metric is None else linalg.matmul(off, metric)
        return jnp.sum(counted * off, axis=(1, 2)) / 2

    return devices.divided(own, whole=2)(tensors, metric, x, target, weights)


class Learning(NamedTuple):
    """What learning changes: an FFN's tensors, in float32, and what Adam knows of them."""

    tensors: Block
    adam: Any


def begin(tensors: Block) -> Learning:
    """What learning begins with, of an FFN's `tensors` in float32."""
    return Learning(tensors, ADAM.init(tensors))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def learn(
    state: Learning,
    x: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    metric: jax.Array | None,
    learning_rate: jax.Array,
    config: ModelConfig,
) -> Learning:
    """The state after a step on a batch; neurons without any output weight, which only fill up a layer, stay
    as they are."""

    def mean(tensors: Block) -> jax.Array:
        return jnp.sum(error(tensors, x, target, weights, metric, config)) / weights.size

    slopes = jax.grad(mean)(state.tensors)
    alive = jnp.any(state.tensors["down"] != 0, axis=1)
    axes = {tensor.name: tensor.axes for tensor in config.tensors}
    slopes = {
        name: slope * along("F", alive, axes[name]) if "F" in axes[name] else slope
        for name, slope in slopes.items()
    }
    updates, adam = ADAM.update(slopes, state.adam)

    def move(old: jax.Array, update: jax.Array) -> jax.Array:
        scale = jnp.maximum(jnp.sqrt(jnp.mean(old * old)), LEAST_SCALE)
        return old - learning_rate * scale * update

    return Learning(jax.tree.map(move, state.tensors, updates), adam)


def learn_layer(
    tensors: Block,
    batches: Sequence[tuple[Any, Any, jax.Array]],
    metric: jax.Array | None,
    config: ModelConfig,
    passes: int,
    rng: np.random.Generator,
) -> Learnt:
    """An FFN's `tensors` after so many `passes` over `batches`, (residual, target, token weights) each; of
    two or more, the last is held out, and of what was seen after each pass the best on it stays."""
    *taught, held = batches
    taught = taught or [held]
    types = {name: array.dtype for name, array in tensors.items()}
    wide = {name: jnp.array(array, jnp.float32) for name, array in tensors.items()}
    state, best = begin(wide), tensors

    def judged(tensors: Block) -> float:
        x, target, weights = placed(held)
        return float(jnp.sum(error(tensors, x, target, weights, metric, config))) / weights.size

    before = least = judged(tensors)
    steps, done = jnp.float32(passes * len(taught)), 0
    for _ in range(passes):
        for index in rng.permutation(len(taught)):
            pace = rate(jnp.float32(done), steps)
            state = learn(state, *placed(taught[index]), metric, pace, config)
            done += 1
        rounded = {name: array.astype(types[name]) for name, array in state.tensors.items()}
        if (now := judged(rounded)) < least:
            # The next step is given the arrays of this one to write in.
            least, best = now, jax.tree.map(jnp.copy, rounded)
    return Learnt(best, before, least)


def placed(batch: tuple[Any, Any, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch on the devices."""
    x, target, weights = batch
    return devices.place(jnp.asarray(x)), devices.place(jnp.asarray(target)), weights


class Plan(NamedTuple):
    """What a reconstruction is to do: with a pruned model of `config`, so many `passes` over the text,
    towards what the dense FFNs do and a `share` of the drift, in an order that `seed` decides. With
    `scratch`, streams are on disk."""

    config: ModelConfig
    passes: int
    share: float
    seed: int
    scratch: Scratch | None = None


def reconstruct_layer(
    small: Block, block: Block, metric: jax.Array | None, streams: Streams, plan: Plan
) -> tuple[Learnt | None, Streams]:
    """(what the FFN of the pruned block `small` has learnt, None if it has not; the streams behind it in
    place of those before), `block` being the dense one and `metric [D, D]` that of what its FFN adds."""
    config, passes, share, seed, scratch = plan
    keep: Callable[[Any], Any] = scratch.keep if scratch else (lambda tree: tree)
    batches, after = [], []
    for x, dense, real in zip(streams.pruned, streams.dense, streams.real, strict=True):
        arrays = (devices.place(jnp.array(array)) if scratch else array for array in (x, dense))
        middle, behind, target = targets(small, block, *arrays, jnp.float32(share), config)
        weights = stream.token_weights(middle, jnp.int32(real), even=metric is not None)
        batches.append((keep(middle), keep(target), weights))
        after.append(keep(behind))
    learnt = None
    if passes and "down" in small:
        names = [
            tensor.name for tensor in config.tensors if tensor.sublayer == "ffn" and tensor.name in small
        ]
        tensors = {name: small[name] for name in names}
        rng = np.random.default_rng((seed, streams.done))
        learnt = learn_layer(tensors, batches, metric, config, passes, rng)
        small = small | learnt.tensors
    pruned = [
        keep(behind_ffn(small, devices.place(jnp.array(x)) if scratch else x, config)) for x, *_ in batches
    ]
    return learnt, Streams(streams.done + 1, pruned, after, streams.real)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="x")
def behind_ffn(small: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The residual `[B, T, D]` behind a layer's FFN, in place of that before it."""
    return devices.divided(lambda block, x: decoder.add_ffn(block, x, config), whole=1)(small, x)
