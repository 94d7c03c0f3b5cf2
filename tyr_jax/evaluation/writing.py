"""Text that a model writes itself, starting after the document separator: many sequences at a time.

All sequences are at the same position, which is the counter of a loop. So a token costs no more than the
products with the weights and the draw over the vocabulary. With several devices, each writes its own
sequences, and gathers one layer at a time.

Axis letters: `B` sequences, `T` tokens, `S` slots of a cache, `K` key/value heads, `H` head dim.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.evaluation.generation import KeysValues, decode_layer
from tyr_jax.model import decoder, prediction
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import batches

SLOTS = 64
"""The slots of a cache are a multiple of this."""

SEQUENCES = 128
"""Sequences that a device writes at a time. Their caches are held in its memory."""

SEGMENT = 64
"""Tokens added to a sequence by one call of the program. Progress is reported after each call."""

GROWTHS = 2
"""Number of sizes through which a cache grows, up to the length of the text. A token's attention reads the
whole cache, so small caches save time; but every size is compiled."""


def cache_slots(length: int) -> int:
    """Slots of a cache for `length` tokens: the next multiple of `SLOTS`."""
    return -(-length // SLOTS) * SLOTS


@functools.partial(jax.jit, static_argnames="slots")
def grown(layer: KeysValues, slots: int) -> KeysValues:
    """A layer's cache, padded to `slots`."""
    more = slots - layer.keys.shape[-1]
    keys = jnp.pad(layer.keys, ((0, 0), (0, 0), (0, more)))
    return KeysValues(keys, jnp.pad(layer.values, ((0, 0), (0, more), (0, 0))))


def empty_cache(config: ModelConfig, sequences: int, slots: int, dtype: Any) -> tuple[KeysValues, ...]:
    """Empty caches of all layers, filled with zeros: `keys [B·K, H, S]`, `values [B·K, S, H]`."""

    def empty(kv_heads: int) -> KeysValues:
        rows, dim = sequences * kv_heads, config.head_dim
        return KeysValues(jnp.zeros((rows, dim, slots), dtype), jnp.zeros((rows, slots, dim), dtype))

    return devices.place(tuple(empty(layer.kv_heads) for layer in config.layers))


class OwnText(NamedTuple):
    """What a model is to write: this number of `sequences`, each of `length` tokens after the `separator`,
    which is left out. `seed` determines the draws, and `temperature` divides the logits."""

    separator: int
    sequences: int
    length: int
    seed: int
    temperature: float = 1.0


class Group(NamedTuple):
    """Texts `written [B, T + 1]` as far as they are, with the `cache` of every layer. Each sequence has its
    own random key, given by its data in `keys [B, 2]`."""

    cache: tuple[KeysValues, ...]
    written: jax.Array
    keys: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "temperature", "count"), donate_argnames="group")
def write(
    outside: Params,
    blocks: tuple[Block, ...],
    group: Group,
    first: jax.Array,
    config: ModelConfig,
    temperature: float,
    count: int,
) -> Group:
    """Append `count` tokens to each text of a group, which is overwritten, after the token at position
    `first`. The model is given as its tensors `outside` the blocks, and its `blocks`."""
    keys = group.keys
    head = decoder.head(outside)

    def layer(
        block: Block, rope: decoder.Rope, position: jax.Array, x: jax.Array, cache: KeysValues
    ) -> tuple[jax.Array, KeysValues]:
        positions = jnp.full(len(x), position)
        x, seen = decode_layer(block, rope, x.swapaxes(0, 1), cache, positions, config)
        return x.swapaxes(0, 1), cache if seen is None else seen

    def answer(
        norm: jax.Array, head: decoder.Head, position: jax.Array, x: jax.Array, keys: jax.Array
    ) -> jax.Array:
        hidden = decoder.rms_norm(x[:, 0], norm, config.norm_eps)
        typed = jax.vmap(lambda key: jax.random.fold_in(key, position))(jax.random.wrap_key_data(keys))
        return prediction.draw(head, hidden, typed, temperature)

    def step(number: jax.Array, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        cache, written = state
        position = first + number
        rope = decoder.rope_at(config, position[None])
        last = jax.lax.dynamic_slice_in_dim(written, position, 1, axis=1)
        x, seen = decoder.embed(outside, last), []
        for block, before in zip(blocks, cache, strict=True):
            # What devices gather is the same in every step. Without a barrier, the compiler would gather all
            # layers before the first step.
            block, x = jax.lax.optimization_barrier((block, x))
            x, after = devices.divided(layer, whole=3)(block, rope, position, x, before)
            seen.append(after)
        rows, x = jax.lax.optimization_barrier((head, x))
        tokens = devices.divided(answer, whole=3)(outside["final_norm"], rows, position, x, keys)
        written = jax.lax.dynamic_update_slice_in_dim(written, tokens[:, None], position + 1, axis=1)
        return tuple(seen), written

    cache, written = jax.lax.fori_loop(0, count, step, (group.cache, group.written))
    return Group(cache, written, keys)


def write_texts(
    params: Params,
    config: ModelConfig,
    asked: OwnText,
    on_tokens: Callable[[int], None] = lambda tokens: None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """The texts `[B, T]` that a model is asked for, in groups of sequences that are written side by side.

    Args:
        params: the model, dense or pruned, in memory.
        config: its configuration.
        asked: what to write.
        on_tokens: called with the number of tokens written since its last call.
        first: number of texts that are written already, in whole groups.
    """
    keys, outside = prediction.sequence_keys(asked.seed, asked.sequences), decoder.outside(params)
    # Taking layers out of a stack within the program would copy them for every token.
    blocks = tuple(layer_block(params["blocks"], layer) for layer in range(config.depth))
    length = asked.length
    for indices, real in batches(np.broadcast_to(0, (asked.sequences - first, length)), SEQUENCES * length):
        slots = step = cache_slots(-(-length // GROWTHS))
        cache = empty_cache(config, len(indices), slots, params["embed"].dtype)
        begun = jnp.full((len(indices), length + 1), asked.separator, jnp.int32)
        group = Group(cache, *devices.place((begun, jnp.asarray(keys[first + indices]))))
        for position in range(0, length, SEGMENT):
            count = min(SEGMENT, length - position)
            if position + count > slots:
                slots = min(slots + step, cache_slots(length))
                group = group._replace(cache=tuple(grown(layer, slots) for layer in group.cache))
            group = write(outside, blocks, group, jnp.int32(position), config, asked.temperature, count)
            jax.block_until_ready(group)
            on_tokens(real * count)
        yield devices.fetch(group.written)[:real, 1:]
