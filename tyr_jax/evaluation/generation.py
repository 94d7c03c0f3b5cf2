"""Generation with cached keys and values, also where layers differ: prefill once, then decode token by token.

A cache has one slot for each position, up to a size that is fixed when it is made. So neither program is
compiled again. Prompts of a batch may differ in length: they are padded at the end, and each sequence writes
its next token where its own prompt ended. What a slot holds does not matter until its position is reached.

Axis letters: `B` sequences, `T` tokens, `S` slots, `D` hidden, `N` query heads, `K` key/value heads, `H` head
dim, `V` vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import overflow
from tyr_jax.model import decoder
from tyr_jax.model.attention import Window, causal_attention, soft_cap
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block
from tyr_jax.runtime import devices

NONE = -1
"""Stands for a token where the model has none to give, because its predictions are not finite."""

PROMPT_MULTIPLE = 64
"""Prompts are padded to a multiple of this, so that most share a compilation."""

ALIGNMENT = 64
"""In bytes. XLA uses memory that starts at a multiple of this in place, without a copy."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""


class KeysValues(NamedTuple):
    """Cached keys and values of a layer, laid out as the products of one query read them: `keys [R, H, S]`,
    `values [R, S, H]`, with a row for every sequence and key/value head, `R = B·K`."""

    keys: jax.Array
    values: jax.Array


Cache = dict[int, KeysValues]
"""Keys and values by layer. A layer without attention has no entry."""


def unstack(params: Params, config: ModelConfig) -> Params:
    """The same model with a dict of tensors for each block, however the blocks were stored. On a CPU, the
    tensors also go through `side_by_side`."""
    blocks = tuple(layer_block(params["blocks"], layer) for layer in range(config.depth))
    params = params | {"blocks": blocks}
    return side_by_side(params) if devices.are_cpus() else params


def side_by_side(params: Params) -> Params:
    """The same model, with its tensors one after the other in one piece of memory.

    Decoding a token takes as long as reading all weights. A CPU reads small scattered tensors a quarter
    slower: NumPy asks for large pages for its memory, but such a page is larger than most tensors.
    """
    arrays, structure = jax.tree.flatten(params)
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    memory = np.empty(ALIGNMENT + sum(sizes), np.uint8)
    starts = np.cumsum([-memory.ctypes.data % ALIGNMENT, *sizes[:-1]])

    def moved(array: jax.Array, start: int) -> jax.Array:
        place = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        return jax.device_put(place, may_alias=True)

    return jax.tree.unflatten(structure, map(moved, arrays, starts))


def prefill(
    params: Params, tokens: jax.Array, lengths: jax.Array, config: ModelConfig, slots: int
) -> tuple[jax.Array, Cache]:
    """(logits `[B, V]` after each prompt, a cache of `slots`) for prompts `tokens [B, T]`.

    Of each prompt, the first `lengths [B]` tokens count; the rest is padding. `params` come from `unstack`.
    """
    # Unless the tables are an argument, XLA recomputes sines and cosines for every head of every layer.
    rope = rope_tables(config, tokens.shape[1])
    return read_prompts(params, tokens, lengths, rope, config, slots)


rope_tables = jax.jit(decoder.rope_tables, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def read_prompts(
    params: Params, tokens: jax.Array, lengths: jax.Array, rope: decoder.Rope, config: ModelConfig, slots: int
) -> tuple[jax.Array, Cache]:
    """`prefill`, given the rotary tables of all positions."""
    x = decoder.embed(params, tokens)
    cache = {}

    empty = slots - tokens.shape[1]

    for layer, block in enumerate(params["blocks"]):
        if "o" in block:
            q, k, v = decoder.queries_keys_values(block, x, rope, config)
            keys = jnp.pad(k.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), (0, empty)))
            values = jnp.pad(v.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, empty), (0, 0)))
            cache[layer] = KeysValues(*(array.reshape(-1, *array.shape[2:]) for array in (keys, values)))
            window = decoder.window_of_block(block, config)
            units = causal_attention(q, k, v, window, block.get("sinks"), config.score_cap)
            x = x + decoder.attention_output(block, units, config)
        if "down" in block:
            x = decoder.add_ffn(block, x, config)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    return next_logits(params, last[:, 0], config), cache


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(
    params: Params, tokens: jax.Array, positions: jax.Array, cache: Cache, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """(logits `[B, V]` after `tokens [B]` at `positions [B]`, the cache with those tokens).

    `params` come from `unstack`. The `cache` passed in is overwritten.
    """
    # The tokens form one row, in which each has its own position.
    rope = decoder.rope_at(config, positions)
    x, cache = decoder.embed(params, tokens[None]), dict(cache)
    for layer, block in enumerate(params["blocks"]):
        x, seen = decode_layer(block, rope, x, cache.get(layer), positions, config)
        cache |= {} if seen is None else {layer: seen}
    return next_logits(params, x[0], config), cache


def decode_layer(
    block: Block,
    rope: decoder.Rope,
    x: jax.Array,
    cache: KeysValues | None,
    positions: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, KeysValues | None]:
    """(residual stream `[1, B, D]` after a layer, its cache), for one token of each sequence.

    The tokens are at `positions [B]`.
    """
    if "o" in block and cache is not None:
        q, k, v = (array[0] for array in decoder.queries_keys_values(block, x, rope, config))
        cache, window = remember(cache, k, v, positions), decoder.window_of_block(block, config)
        units = attend(q, cache, positions, window, block.get("sinks"), config.score_cap)
        x = x + decoder.attention_output(block, units[None], config)
    return decoder.add_ffn(block, x, config), cache


def remember(cache: KeysValues, k: jax.Array, v: jax.Array, positions: jax.Array) -> KeysValues:
    """Write keys `k` and values `v`, both `[B, K, H]`, into the cache at `positions [B]`."""
    # Sequences and heads share one axis: XLA copies the array written to where it drops an axis of size one.
    rows, slots = jnp.arange(len(cache.keys)), jnp.repeat(positions, k.shape[1])
    k, v = (array.reshape(-1, array.shape[-1]) for array in (k, v))
    keys = cache.keys.at[rows, :, slots].set(k, mode="promise_in_bounds")
    values = cache.values.at[rows, slots].set(v, mode="promise_in_bounds")
    return KeysValues(keys, values)


def attend(
    q: jax.Array,
    cache: KeysValues,
    positions: jax.Array,
    window: Window,
    sinks: jax.Array | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Attention output `[B, N, H]` of queries `q [B, N, H]` at `positions [B]`, over the cache up to there.

    With a `window`, only that many latest positions count. `sinks [N]` are the scores of attention sinks, and
    `cap` is the soft-cap of scores.
    """
    rows, slots, head_dim = cache.values.shape
    queries = (q * head_dim**-0.5).reshape(rows, -1, head_dim)
    scores = jnp.einsum("rgh,rhs->rgs", queries, cache.keys, preferred_element_type=jnp.float32)
    distance = jnp.repeat(positions, rows // len(positions))[:, None] - jnp.arange(slots)
    visible = (distance >= 0) & (distance < (slots if window is None else window))
    scores = jnp.where(visible[:, None], soft_cap(scores, cap), -jnp.inf)
    if sinks is not None:
        sink = jnp.tile(sinks.reshape(-1, scores.shape[1]), (len(positions), 1))
        scores = jnp.concatenate([scores, sink[..., None].astype(scores.dtype)], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :slots]
    weights = weights.astype(q.dtype)
    out = jnp.einsum("rgs,rsh->rgh", weights, cache.values, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).reshape(q.shape)


def next_logits(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits `[B, V]` in float32 of residuals `x [B, D]`."""
    # For a few tokens, a CPU reads the head a third faster if its rows are the rows of the product. The
    # barriers keep XLA from transposing the product again.
    hidden = jax.lax.optimization_barrier(decoder.final_hidden(params, x, config).T)
    head = decoder.head(params)
    logits = jnp.matmul(decoder.rows_of(head), hidden, preferred_element_type=jnp.float32)
    return soft_cap(jax.lax.optimization_barrier(logits).T, decoder.cap_of(head))


@functools.partial(jax.jit, static_argnames="sampling")
def sample(logits: jax.Array, key: jax.Array, step: int, sampling: Sampling) -> jax.Array:
    """The next tokens `[B]`, from `logits [B, V]`. Every `step` has its own random draw. Where the logits are
    not finite, the token is `NONE`."""
    if sampling.temperature == 0:
        # `top_k` ranks NaN as the largest value, so that it shows here.
        values, tokens = jax.lax.top_k(logits, 1)
        return jnp.where(jnp.isfinite(values), tokens, NONE)[:, 0]
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jnp.where(finite, jax.random.categorical(jax.random.fold_in(key, step), logits), NONE)


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling = Sampling(),
    *,
    stop: frozenset[int] = frozenset(),
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Yield the next tokens `[B]` of all prompts, up to `count` times.

    Args:
        params: a model, dense or pruned, as `unstack` returns it.
        config: its configuration.
        prompts: tokens of each prompt, at least one.
        count: maximum number of tokens to generate for each prompt.
        sampling: how tokens are chosen.
        stop: tokens that end a sequence. A sequence repeats its stop token until all have ended.
        seed: seed of the random choice.

    Raises:
        UserError: the model overflows.
    """
    lengths = jnp.asarray([len(prompt) for prompt in prompts])
    width = -(-max(map(len, prompts)) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    filled = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(filled, prompts, strict=True):
        row[: len(prompt)] = prompt
    slots = width + -(-count // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    logits, cache = prefill(params, jnp.asarray(filled), lengths, config, slots)
    key = jax.random.key(seed)
    ended = np.zeros(len(prompts), bool)
    last = np.zeros(len(prompts), np.int32)
    for step in range(count):
        tokens = sample(logits, key, step, sampling)
        if step < count - 1:
            # Started before the tokens are looked at, so that the device does not wait for the host.
            logits, cache = decode(params, tokens, lengths + step, cache, config)
        last = np.where(ended, last, tokens)
        if (last == NONE).any():
            raise overflow("the model on a prompt")
        ended |= np.isin(last, list(stop))
        yield last
        if ended.all():
            return
