"""Score a population and pay only for what is kept: nested units, width buckets, one `vmap`.

With the units of every site in the order of their removal, last removed first, a level that keeps k units
keeps the first k: masks become prefixes, and a site can run at any width. Shapes must be static, so the
widths are a few buckets, one branch of a `lax.switch` each. The branch of a site is picked by the largest
count among the candidates that run together; it is no part of the `vmap`, so it stays a real branch. The
offspring of one parent keep nearly the same counts everywhere, so little is computed in vain.

They also agree with one another up to the first layer that a mutation touched. So one of them, the trunk, is
run first and its residual kept before every layer; each chunk of the others starts where its candidates first
differ from the trunk, a `fori_loop` over layers whose start is data.

Axis letters: `C` candidates, `S` sequences, `T` tokens, `D` hidden, `L` layers, `E` levels, `N` heads,
`H` head dim, `F` FFN width, `U` units of a site.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax import devices
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.search.objective import Batch, Objective, observe, score, watch
from tyr_jax.search.population import over_chunks, part_rows, take
from tyr_jax.search.space import ATTENTION, FFN, KINDS, bucket_widths, values_at

SLOPE_TOKENS = 512
"""Tokens that slopes are taken on at a time: parts few enough to be many, so that one sees how they vary."""


@flax.struct.dataclass
class Nested:
    """A model and its supernet with the units of every site in the order of removal.

    `params` as in `tyr_jax.model.spec`, with `kv_head [L, N]`, the key/value head of every query head, as
    heads that are left no longer lie group by group; `attn_out [L, E, N, H, D]`, `mlp_down [L, E, F, D]`;
    `kept [2, L, E]` units, attention's of `heads_per_unit` heads; `widths`, the buckets in heads and neurons.
    """

    params: Params
    attn_out: jax.Array
    mlp_down: jax.Array
    kept: jax.Array
    heads_per_unit: int = flax.struct.field(pytree_node=False)
    widths: tuple[tuple[int, ...], tuple[int, ...]] = flax.struct.field(pytree_node=False)


def in_order(stack: jax.Array, order: jax.Array, axis: int) -> jax.Array:
    """Every layer's slice of `stack [L, ...]` with its units along `axis` (counted without L) in the layer's
    `order [L, U]`: layer by layer, so that a program that may overwrite `stack` needs no second one."""

    def move(layer: jax.Array, stack: jax.Array) -> jax.Array:
        return stack.at[layer].set(jnp.take(stack[layer], order[layer], axis=axis))

    return jax.lax.fori_loop(0, len(stack), move, stack)


overwrite_in_order = jax.jit(in_order, static_argnames="axis", donate_argnames="stack")


def nest(params: Params, supernet: Supernet, config: ModelConfig, *, consume: bool = False) -> Nested:
    """Reorder the units of a dense model (blocks stacked) and its supernet by removal.

    With `consume`, the supernet's weights are overwritten, and it must not be used any more.
    """
    heads, kv_heads = config.dense_shape.heads, config.dense_shape.kv_heads
    units = supernet.attn_rank.shape[1]
    unit_order = jnp.argsort(supernet.attn_rank, axis=1)
    in_unit = jnp.arange(heads // units)
    head_order = (unit_order[..., None] * len(in_unit) + in_unit).reshape(config.depth, heads)
    neuron_order = jnp.argsort(supernet.mlp_rank, axis=1)
    block = params["blocks"]
    axes = {"q": (head_order, 1), "gate": (neuron_order, 1), "up": (neuron_order, 1)}
    axes |= {"q_bias": (head_order, 0), "gate_bias": (neuron_order, 0), "up_bias": (neuron_order, 0)}
    moved = {name: in_order(block[name], *axes[name]) for name in axes if name in block}
    rest = {name: array for name, array in block.items() if name not in ("o", "down")}
    move_levels = overwrite_in_order if consume else in_order
    net = Nested(
        params | {"blocks": rest | moved | {"kv_head": head_order // (heads // kv_heads)}},
        move_levels(supernet.attn_out, head_order, axis=1),
        move_levels(supernet.mlp_down, neuron_order, axis=1),
        supernet.kept,
        len(in_unit),
        (bucket_widths(units, len(in_unit)), bucket_widths(config.dense_shape.ffn)),
    )
    return devices.spread(net, config.hidden)


def attention_prefix(nested: Nested, layer: jax.Array, heads: int) -> Block:
    """The first `heads` heads of a layer, all but their output weights."""
    blocks = nested.params["blocks"]
    whole = ("attn_norm", "k", "v", "k_bias", "v_bias", "o_bias")
    block = {name: blocks[name][layer] for name in whole if name in blocks}
    block |= {"q": blocks["q"][layer, :, :heads], "kv_head": blocks["kv_head"][layer, :heads]}
    return block | ({"q_bias": blocks["q_bias"][layer, :heads]} if "q_bias" in blocks else {})


def ffn_prefix(nested: Nested, layer: jax.Array, neurons: int) -> Block:
    """The first `neurons` neurons of a layer, all but their output weights."""
    blocks = nested.params["blocks"]
    block = {name: blocks[name][layer] for name in ("mlp_norm", "down_bias") if name in blocks}
    block |= {name: blocks[name][layer, :, :neurons] for name in ("gate", "up")}
    biases = ("gate_bias", "up_bias")
    return block | {name: blocks[name][layer, :neurons] for name in biases if name in blocks}


def project(stack: jax.Array, layer: jax.Array, level: jax.Array, units: jax.Array) -> jax.Array:
    """What a site adds `[S, T, D]`, bias apart, if it keeps the first units, whose activations are
    `units [S, T, U, ...]`, at a level of the site's weights in `stack [L, E, U', ..., D]`.

    On a CPU, a `vmap` takes candidates one after the other: each multiplies with weights that are read
    where they lie, instead of with a copy of them for every candidate.
    """

    def product(*arguments: jax.Array) -> jax.Array:
        stack, layer, level, units = arguments
        weight = stack[layer, level, : units.shape[2]]
        return jnp.tensordot(units, weight, axes=weight.ndim - 1)

    in_turn = jax.custom_batching.sequential_vmap(product)
    return jax.lax.platform_dependent(stack, layer, level, units, cpu=in_turn, default=product)


def chunk_buckets(nested: Nested, candidates: np.ndarray) -> np.ndarray:
    """Bucket of every site `[2, L]` that holds the largest count among `candidates [C, 2, L]`."""
    most = values_at(nested.kept, candidates).max(axis=0)
    most[ATTENTION] *= nested.heads_per_unit
    return np.stack([np.searchsorted(widths, row) for widths, row in zip(nested.widths, most, strict=True)])


def shared_layers(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """In how many of their first layers candidates `[..., 2, L]` agree `[...]`."""
    same = np.all(one == other, axis=-2)
    return np.cumprod(same, axis=-1).sum(axis=-1)


class Site(NamedTuple):
    """Where a candidate's layer is, what it keeps, and how wide it runs: `layer []`, `levels [2]`,
    `buckets [2]`."""

    layer: jax.Array
    levels: jax.Array
    buckets: jax.Array


def apply_layer(
    nested: Nested, site: Site, x: jax.Array, rope: decoder.Rope, config: ModelConfig
) -> jax.Array:
    """A layer of a candidate on the residual `x [S, T, D]`."""

    def attention(heads: int) -> Callable[[jax.Array], jax.Array]:
        def run(x: jax.Array) -> jax.Array:
            block = attention_prefix(nested, site.layer, heads)
            units = decoder.attention_units(block, x, rope, config)
            out = project(nested.attn_out, site.layer, site.levels[ATTENTION], units)
            return x + out + block.get("o_bias", 0)

        return run

    def ffn(neurons: int) -> Callable[[jax.Array], jax.Array]:
        def run(x: jax.Array) -> jax.Array:
            block = ffn_prefix(nested, site.layer, neurons)
            units = decoder.ffn_units(block, x, config)
            out = project(nested.mlp_down, site.layer, site.levels[FFN], units)
            return x + out + block.get("down_bias", 0)

        return run

    heads, neurons = nested.widths
    x = jax.lax.switch(site.buckets[ATTENTION], [attention(width) for width in heads], x)
    return jax.lax.switch(site.buckets[FFN], [ffn(width) for width in neurons], x)


class Chunks(NamedTuple):
    """A layer of the candidates that run at a time: their `levels [n · C, 2]`, the `buckets [n, 2]` that
    their sites run at, and on several devices the weights `(attn_out [n · C, N, H, D], mlp_down
    [n · C, F, D])` of those levels."""

    levels: jax.Array
    buckets: jax.Array
    weights: tuple[jax.Array, ...] = ()


def of_layer(
    nested: Nested, layer: jax.Array, chunks: Chunks, hidden: int
) -> tuple[Nested, jax.Array, Chunks]:
    """A layer to gather, its index there, and what chunks need of it; on one device it is read where it lies.

    A device gathers no levels but those of its own candidates.
    """
    if devices.count() == 1:
        return nested, layer, chunks
    stacks = nested.params["blocks"], nested.attn_out, nested.mlp_down
    # Divided as the whole is: else it is the whole that is gathered.
    blocks, *levels = devices.spread(
        jax.tree.map(lambda stack: jax.lax.dynamic_slice_in_dim(stack, layer, 1), stacks), hidden
    )
    weights = tuple(devices.place(stack[0, chunks.levels[:, kind]]) for kind, stack in enumerate(levels))
    alone = nested.replace(params={"blocks": blocks}, attn_out=None, mlp_down=None)  # type: ignore[attr-defined]
    return alone, jnp.int32(0), chunks._replace(weights=weights)


def apply_to_chunks(
    nested: Nested,
    layer: jax.Array,
    candidates: jax.Array,
    buckets: jax.Array,
    x: jax.Array,
    rope: decoder.Rope,
    config: ModelConfig,
) -> jax.Array:
    """A layer of n chunks of `candidates [n · C, 2, L]` on their residuals `x [n · C, S, T, D]`, sites
    running at `buckets [n, 2, L]`: a `vmap` over the candidates of a device's chunk."""

    def own(nested: Nested, index: jax.Array, rope: decoder.Rope, chunk: Chunks, x: jax.Array) -> jax.Array:
        levels = chunk.levels
        if chunk.weights:
            # Every candidate has levels of its own.
            attn_out, mlp_down = (stack[None] for stack in chunk.weights)
            nested = nested.replace(attn_out=attn_out, mlp_down=mlp_down)  # type: ignore[attr-defined]
            levels = jnp.repeat(jnp.arange(len(levels))[:, None], len(KINDS), axis=1)

        def alone(levels: jax.Array, x: jax.Array) -> jax.Array:
            return apply_layer(nested, Site(index, levels, chunk.buckets[0]), x, rope, config)

        return jax.vmap(alone)(levels, x)

    chunks = Chunks(candidates[..., layer], buckets[..., layer])
    one, index, chunks = of_layer(nested, layer, chunks, config.hidden)
    return devices.divided(own, whole=3)(one, index, rope, chunks, x)


@functools.partial(jax.jit, static_argnames="config")
def trunk_states(
    nested: Nested, trunk: jax.Array, buckets: jax.Array, tokens: jax.Array, config: ModelConfig
) -> jax.Array:
    """The residual `[L + 1, n, S, T, D]` of the candidate `trunk [2, L]` before every layer and after the
    last, on the parts of `tokens [n · S, T]` of n devices, sites running at `buckets [2, L]`."""
    count = devices.count()
    trunks, every = (jnp.repeat(of_sites[None], count, axis=0) for of_sites in (trunk, buckets))
    rope = decoder.rope_tables(config, tokens.shape[1])

    def step(layer: jax.Array, states: jax.Array) -> jax.Array:
        x = apply_to_chunks(nested, layer, trunks, every, states[layer], rope, config)
        return states.at[layer + 1].set(x)

    x = decoder.embed(nested.params, tokens.reshape(count, -1, tokens.shape[1]))
    states = jnp.zeros((config.depth + 1, *x.shape), x.dtype).at[0].set(x)
    return jax.lax.fori_loop(0, config.depth, step, states)


def watched(
    nested: Nested,
    x: jax.Array,
    advance: Callable[[jax.Array, int, int], jax.Array],
    batch: Batch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[n · C]` of candidates that `advance` takes from `x [n · C, S, T, D]` to their last layer,
    each on its device's part of the batch."""

    def own(head: jax.Array, final: jax.Array, hidden: jax.Array, batch: Batch) -> jax.Array:
        return jax.vmap(lambda final, hidden: score(head, final, hidden, batch, objective))(final, hidden)

    final, hidden = watch(nested.params, x, advance, config, objective)
    return devices.divided(own, whole=1)(decoder.head(nested.params), final, hidden, batch)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_trunk(
    nested: Nested, states: jax.Array, batch: Batch, config: ModelConfig, objective: Objective
) -> jax.Array:
    """Objective `[n]` of the candidate whose `trunk_states` are `states`, on each device's part of the
    batch."""
    return watched(nested, states[0], lambda x, start, stop: states[stop], batch, config, objective)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def score_chunk(
    nested: Nested,
    candidates: jax.Array,
    buckets: jax.Array,
    states: jax.Array,
    shared: jax.Array,
    batch: Batch,
    config: ModelConfig,
    objective: Objective,
) -> jax.Array:
    """Objective `[n · C]` of n chunks of `candidates [n · C, 2, L]`, each on its device's part of the batch.

    Sites run at `buckets [n, 2, L]`; all candidates agree in their first `shared` layers with the one whose
    `trunk_states` are `states`.
    """
    together = len(candidates) // len(buckets)
    rope = decoder.rope_tables(config, batch.tokens.shape[1])

    def step(layer: jax.Array, x: jax.Array) -> jax.Array:
        return apply_to_chunks(nested, layer, candidates, buckets, x, rope, config)

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        first = jnp.clip(shared, start, stop)
        x = jnp.where(shared >= start, jnp.repeat(states[first], together, axis=0), x)
        return jax.lax.fori_loop(first, stop, step, x)

    return watched(nested, jnp.repeat(states[0], together, axis=0), advance, batch, config, objective)


@functools.partial(jax.jit, static_argnames=("config", "objective"))
def level_slopes(
    nested: Nested, distribution: jax.Array, batch: Batch, config: ModelConfig, objective: Objective
) -> jax.Array:
    """Slopes `[n, 2, L, E]` of the objective from `distribution [2, L]` towards every level, on each of the
    parts of a batch that n devices have.

    The slope towards a level is the derivative by t of the objective with the site's weight at
    `(1 − t) W_now + t W_level`, at t = 0. All of them take one forward and one backward pass, at full width.
    """

    def own(block: Block, rope: decoder.Rope, weights: list[jax.Array], x: jax.Array) -> jax.Array:
        out, down = (weight[0] for weight in weights)
        return decoder.apply_block(block | {"o": out, "down": down}, x, rope, config)

    def apply(layer: Any, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        block, stacks, mixtures = layer
        mixed = [
            jnp.einsum("ne,e...->n...", mixtures[:, kind], stack).astype(stack.dtype)
            for kind, stack in enumerate(stacks)
        ]
        # Mixed where the levels lie, and so are the slopes: no device gathers them all.
        weights = devices.place(devices.spread(mixed, config.hidden))
        return devices.divided(own, whole=2)(block, rope, weights, x)

    def evaluate(head: jax.Array, final: jax.Array, hidden: jax.Array, batch: Batch) -> jax.Array:
        return score(head, final, hidden, batch, objective)[None]

    def loss(mixtures: jax.Array) -> jax.Array:
        stacks = [nested.attn_out, nested.mlp_down]
        layers: Any = (nested.params["blocks"], stacks, jnp.moveaxis(mixtures, 2, 0))
        final, hidden = observe(nested.params, layers, apply, batch.tokens, config, objective)
        head = decoder.head(nested.params)
        return jnp.sum(devices.divided(evaluate, whole=1)(head, final, hidden, batch))

    one = jax.nn.one_hot(distribution, nested.kept.shape[-1])
    now = jnp.repeat(one[None], devices.count(), axis=0)
    # A part's objective depends on its own mixture alone.
    gradient = jax.grad(loss)(now)
    return gradient - jnp.sum(gradient * now, axis=-1, keepdims=True)


def pool_slopes(
    nested: Nested,
    distribution: np.ndarray,
    pool: Batch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """`level_slopes` on parts of `sequences [s]` of a pool, of `SLOPE_TOKENS` or one sequence each:
    `[P, 2, L, E]`; `on_chunk` is told the tokens done."""
    length, together = pool.tokens.shape[1], devices.count()
    parts = sequences.reshape(-1, part_rows(len(sequences), SLOPE_TOKENS // length))
    slopes = []
    for start in range(0, len(parts), together):
        real = parts[start : start + together]
        filled = np.pad(real, ((0, together - len(real)), (0, 0)), mode="edge")
        batch = take(pool, filled.ravel())
        found = level_slopes(nested, jnp.asarray(distribution), batch, config, objective)
        slopes.append(devices.fetch(found)[: len(real)])
        on_chunk(real.size * length)
    return np.concatenate(slopes)


def score_population(
    nested: Nested,
    candidates: np.ndarray,
    pool: Batch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda candidate_tokens: None,
) -> np.ndarray:
    """Mean objective `[C]` of `candidates [C, 2, L]` over `sequences [s]`, as the full-width one gives it."""
    shared = shared_layers(candidates[:, None], candidates[None])
    trunk = int(np.argmax(shared.sum(axis=1)))
    # Sorted, so that those that run together have about as many layers left to run. The trunk is the last.
    order = np.argsort(shared[trunk] + (np.arange(len(candidates)) == trunk), kind="stable")
    one, rest = candidates[trunk], candidates[order[:-1]]
    own_buckets, own_values = jnp.asarray(chunk_buckets(nested, one[None])), []

    def prepare(batch: Batch) -> Callable[[np.ndarray], jax.Array]:
        states = trunk_states(nested, jnp.asarray(one), own_buckets, batch.tokens, config)
        own_values.append(np.mean(devices.fetch(score_trunk(nested, states, batch, config, objective))))

        def run(chunks: np.ndarray) -> jax.Array:
            buckets = jnp.asarray(np.stack([chunk_buckets(nested, chunk) for chunk in chunks]))
            others = (buckets, states, shared_layers(one, chunks).min(), batch, config, objective)
            return score_chunk(nested, jnp.asarray(np.concatenate(chunks)), *others)

        return run

    values = over_chunks(prepare, rest, pool, sequences, on_chunk)
    on_chunk(sequences.size * pool.tokens.shape[1])
    return np.append(values, np.mean(own_values))[np.argsort(order)]
