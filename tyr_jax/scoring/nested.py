"""Score a population and pay only for the units that are kept: nested units, width buckets, one `vmap`.

The units of every site are sorted by their removal, last removed first, so a level that keeps k units keeps
the first k. Masks become prefixes, and a site can run at any width. Shapes must be static, so the widths are
a few buckets, one branch of a `lax.switch` each. A site's branch is chosen by the largest count among the
candidates that run together. The choice is not part of the `vmap`, so it stays a real branch. The offspring
of one parent keep nearly the same counts everywhere, so little work is wasted.

They also agree with one another up to the first layer that a mutation changed. So one of them, the trunk,
runs first, and its residual before every layer is stored. Each chunk of the others starts where its
candidates first differ from the trunk, with a `fori_loop` over layers whose start is data.

Axis letters: `C` candidates, `B` sequences, `T` tokens, `D` hidden, `S` kinds of site, `L` layers, `E`
levels, `N` heads, `H` head dim, `F` FFN width, `U` units of a site.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import Block, ModelConfig, Params, taken
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import devices, offload
from tyr_jax.runtime.buckets import bucket_widths
from tyr_jax.runtime.offload import TEMPORARY, Scratch, on_disk
from tyr_jax.scoring.chunking import ChunkedPopulation, chunk_population
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take
from tyr_jax.space import Candidates, Fitness, Levels, values_at


class Nested(flax.struct.PyTreeNode):
    """A model and its supernet with the units of every site in the order of removal.

    `params` as in `tyr_jax.model.spec`, with what their blocks need in another order (`SiteKind.reads`);
    `weights`, as in a supernet, of every level, `[L, E, N, H, D]` or `[L, E, F, D]` (of experts `[L, E, X, F,
    D]`); `kept [S, L, E]` units; the `kinds` of site; and `widths`, the buckets of every kind in entries
    along the axis of its units.
    """

    params: Params
    weights: dict[str, Any]
    kept: Any
    kinds: tuple[SiteKind, ...] = flax.struct.field(pytree_node=False)
    widths: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)

    def hidden_axes(self, config: ModelConfig) -> dict[str, int]:
        """The axis `D` of all weights, counted from the end."""
        return config.hidden_axes | {kind.name: -1 for kind in self.kinds}


def in_order(stack: jax.Array, order: jax.Array, axis: str, axes: str) -> jax.Array:
    """`stack [L, ...]`, whose other axes are `axes`, with the units of each layer along `axis` in the layer's
    `order [L, U]`, or `[L, X, U]` with experts. It moves layer by layer, so a program that may overwrite
    `stack` needs no copy."""

    def move(layer: jax.Array, stack: jax.Array) -> jax.Array:
        return stack.at[layer].set(taken(stack[layer], order[layer], axis, axes))

    return jax.lax.fori_loop(0, len(stack), move, stack)


overwrite_in_order = jax.jit(in_order, static_argnames=("axis", "axes"), donate_argnames="stack")


def reordered(
    stack: Any, order: jax.Array, axis: str, axes: str, scratch: Scratch, *, overwrite: bool = False
) -> Any:
    """`in_order` of a stack in memory or on disk. `overwrite` reuses its memory or its file; a stack on disk
    is otherwise copied to the disk of `scratch`."""
    if not on_disk(stack):
        return (overwrite_in_order if overwrite else in_order)(stack, order, axis, axes)

    def of_layer(layer: int) -> np.ndarray:
        return np.asarray(taken(np.asarray(stack[layer]), np.asarray(order[layer]), axis, axes))

    if not overwrite:
        return scratch.stack(len(order), of_layer)
    for layer in range(len(order)):
        stack[layer] = of_layer(layer)
    return stack


def orders_of(supernet: Supernet, config: ModelConfig) -> dict[str, jax.Array]:
    """The entries along the axis of units in the order of removal, by kind: `[L, N]` heads, `[L, F]` neurons
    (`[L, X, F]` of experts)."""
    ranks = {kind: supernet.ranks[kind.name] for kind in supernet.kinds}
    return {kind.name: kind.entries(jnp.argsort(rank, axis=-1), config) for kind, rank in ranks.items()}


def reordered_weights(
    weights: dict[str, Any],
    orders: dict[str, jax.Array],
    kinds: tuple[SiteKind, ...],
    config: ModelConfig,
    scratch: Scratch,
    overwrite: bool,
) -> dict[str, Any]:
    """The `weights [L, E, ...]` of a supernet, by kind, with units in `orders`; see `reordered`."""

    def of(kind: SiteKind) -> Any:
        axes, order = "E" + config.axes[kind.output], orders[kind.name]
        return reordered(weights[kind.name], order, kind.axis, axes, scratch, overwrite=overwrite)

    return {kind.name: of(kind) for kind in kinds}


def nest(
    params: Params,
    supernet: Supernet,
    config: ModelConfig,
    *,
    consume: bool = False,
    scratch: Scratch = TEMPORARY,
) -> Nested:
    """Sort the units of a dense model (blocks stacked) and its supernet by removal. What other entries share,
    such as key/value heads, stays where it is. What is on disk stays there, in `scratch`.

    With `consume`, the supernet's weights are overwritten, and it must not be used afterwards, except by
    `restored`.
    """
    kinds, orders = supernet.kinds, orders_of(supernet, config)
    # The supernet has the output weights of every level.
    outputs = {kind.output for kind in kinds}
    blocks = {name: stack for name, stack in params["blocks"].items() if name not in outputs}
    for kind in kinds:
        order = orders[kind.name]
        for name in blocks:
            if kind.axis in config.axes.get(name, ""):
                blocks[name] = reordered(blocks[name], order, kind.axis, config.axes[name], scratch)
        blocks |= {name: make(order, config) for name, make in kind.reads}
    net = Nested(
        params | {"blocks": blocks},
        reordered_weights(supernet.weights, orders, kinds, config, scratch, consume),
        supernet.kept,
        kinds,
        tuple(used_widths(supernet, row, config) for row in range(len(kinds))),
    )
    return devices.spread(net, net.hidden_axes(config))


def restored(
    nested: Nested, supernet: Supernet, config: ModelConfig, *, scratch: Scratch = TEMPORARY
) -> Supernet:
    """The `supernet` that `nest` has consumed, with all units where they were. `nested` must not be used
    afterwards, because its weights are overwritten in turn."""
    orders = {name: jnp.argsort(order, axis=-1) for name, order in orders_of(supernet, config).items()}
    weights = reordered_weights(nested.weights, orders, supernet.kinds, config, scratch, True)
    return devices.spread(supernet.replace(weights=weights), supernet.hidden_axes)


def used_widths(supernet: Supernet, row: int, config: ModelConfig) -> tuple[int, ...]:
    """The widths, in entries along the axis of units, that the levels of a kind of site run at; all that
    there are, if the levels are not known yet."""
    kind = supernet.kinds[row]
    span, units = kind.span(config), kind.count(config)
    *rows, _ = kind.shape(config)
    channels = math.prod(rows[config.axes[kind.output].index(kind.axis) + 1 :])
    widths = bucket_widths(units, 1 if kind.apart(config) else span * channels)
    if not isinstance(supernet.kept, jax.core.Tracer):
        kept, exists = devices.fetch((supernet.kept, supernet.exists))
        used = np.unique(np.searchsorted(widths, kept[row][exists[row]]))
        widths = tuple(widths[bucket] for bucket in used)
    # Layers that lack the kind run at a width of zero.
    return (0,) * any(kind.layers(config)) + tuple(span * width for width in widths)


def prefix(nested: Nested, layer: jax.Array, kind: SiteKind, width: int, config: ModelConfig) -> Block:
    """The weights of a layer's sublayer for the first `width` entries along the axis of its units, except
    output weights."""
    blocks = nested.params["blocks"]
    axes = {tensor.name: tensor.axes for tensor in config.tensors if tensor.sublayer == kind.sublayer}
    axes |= {name: kind.axis for name, _ in kind.reads}
    del axes[kind.output]

    def cut(name: str) -> jax.Array:
        return blocks[name][layer, *(slice(width if axis == kind.axis else None) for axis in axes[name])]

    return {name: cut(name) for name in axes}


def project(stack: jax.Array, layer: jax.Array, level: jax.Array, units: jax.Array) -> jax.Array:
    """The output `[B, T, D]` of a site, without bias, from the activations `units [B, T, U, ...]` of the
    first units, which it keeps, and the weights of a level in `stack [L, E, U', ..., D]`. With experts,
    they are `[B, T, X, U]` and `[L, E, X, U', D]`.

    On a CPU, a `vmap` runs candidates one after the other. Each then multiplies with weights in place,
    instead of with a copy of them for every candidate.
    """

    def product(*arguments: jax.Array) -> jax.Array:
        stack, layer, level, units = arguments
        weight = stack[layer, level, *map(slice, units.shape[2:])]
        return jnp.tensordot(units, weight, axes=weight.ndim - 1)

    in_turn = jax.custom_batching.sequential_vmap(product)
    return jax.lax.platform_dependent(stack, layer, level, units, cpu=in_turn, default=product)


def chunk_buckets(nested: Nested, candidates: Candidates, config: ModelConfig) -> np.ndarray:
    """For every site, the bucket `[S, L]` that fits the largest count among `candidates [C, S, L]`."""
    most = values_at(nested.kept, candidates).max(axis=0)
    rows = zip(nested.kinds, nested.widths, most, strict=True)
    found = [np.searchsorted(widths, np.maximum(row * kind.span(config), 1)) for kind, widths, row in rows]
    there = [[kind.has(config, layer) for layer in range(config.depth)] for kind in nested.kinds]
    return np.where(there, found, 0)


def shared_layers(one: Candidates, other: Candidates) -> np.ndarray:
    """Number of first layers in which candidates `[..., S, L]` agree, `[...]`."""
    same = np.all(one == other, axis=-2)
    return np.cumprod(same, axis=-1).sum(axis=-1)


class CandidateLayer(NamedTuple):
    """A candidate's layer: its index `layer []`, its `levels [S]`, the units it keeps at them, `kept [S]`,
    and the width `buckets [S]` it runs at."""

    layer: jax.Array
    levels: jax.Array
    kept: jax.Array
    buckets: jax.Array


def apply_layer(
    nested: Nested, own: CandidateLayer, x: jax.Array, rope: decoder.Rope, config: ModelConfig
) -> jax.Array:
    """Run a layer of a candidate on the residual `x [B, T, D]`."""

    def at(row: int, width: int) -> Callable[[jax.Array], jax.Array]:
        """The site of a kind, run at a width."""
        kind = nested.kinds[row]

        def run(x: jax.Array) -> jax.Array:
            if not width:
                return x
            block = prefix(nested, own.layer, kind, width, config)
            if kind.admit is not None:
                block |= kind.admit(jnp.arange(width // kind.span(config)) < own.kept[row])
            units = kind.inputs(block, x, rope, config)
            out = project(nested.weights[kind.name], own.layer, own.levels[row], units)
            return x + kind.after(block, x, out, config)

        return run

    for row, widths in enumerate(nested.widths):
        x = jax.lax.switch(own.buckets[row], [at(row, width) for width in widths], x)
    return x


class Chunks(NamedTuple):
    """A layer of the candidates that run at a time: their `levels [n · C, S]`, the units they keep at them,
    `kept [n · C, S]`, the `buckets [n, S]` of their sites, and, on several devices, the weights of those
    levels, `[n · C, ...]` by kind."""

    levels: jax.Array
    kept: jax.Array
    buckets: jax.Array
    weights: dict[str, jax.Array] = {}  # noqa: RUF012


def of_layer(
    nested: Nested, layer: jax.Array, chunks: Chunks, config: ModelConfig
) -> tuple[Nested, jax.Array, Chunks]:
    """(a net with the layer to gather, the layer's index in it, `chunks` with the weights of their levels).
    On one device, the layer is read in place, and all three stay as they are.

    A device gathers only the levels of its own candidates.
    """
    if devices.count() == 1:
        return nested, layer, chunks
    stacks = nested.params["blocks"], nested.weights
    # Sharded like the whole stack: otherwise the whole stack would be gathered.
    alone = jax.tree.map(lambda stack: jax.lax.dynamic_slice_in_dim(stack, layer, 1), stacks)
    blocks, levels = devices.spread(alone, nested.hidden_axes(config))
    weights = {
        kind.name: devices.place(levels[kind.name][0, chunks.levels[:, row]])
        for row, kind in enumerate(nested.kinds)
    }
    net = nested.replace(params={"blocks": blocks}, weights={})
    return net, jnp.int32(0), chunks._replace(weights=weights)


def apply_to_chunks(
    nested: Nested,
    layer: jax.Array,
    candidates: jax.Array,
    buckets: jax.Array,
    x: jax.Array,
    rope: decoder.Rope,
    config: ModelConfig,
) -> jax.Array:
    """Run a layer of n chunks of `candidates [n · C, S, L]` on their residuals `x [n · C, B, T, D]`, with
    sites at `buckets [n, S, L]`: a `vmap` over the candidates of a device's chunk."""

    def own(nested: Nested, index: jax.Array, rope: decoder.Rope, chunk: Chunks, x: jax.Array) -> jax.Array:
        levels = chunk.levels
        if chunk.weights:
            # The level axis of these weights has one entry for each candidate.
            nested = nested.replace(weights={name: stack[None] for name, stack in chunk.weights.items()})
            levels = jnp.broadcast_to(jnp.arange(len(levels))[:, None], levels.shape)

        def alone(levels: jax.Array, kept: jax.Array, x: jax.Array) -> jax.Array:
            return apply_layer(nested, CandidateLayer(index, levels, kept, chunk.buckets[0]), x, rope, config)

        return jax.vmap(alone)(levels, chunk.kept, x)

    levels = candidates[..., layer]
    kept = jnp.asarray(nested.kept)[jnp.arange(len(nested.kinds)), layer, levels]
    chunks = Chunks(levels, kept, buckets[..., layer])
    one, index, chunks = of_layer(nested, layer, chunks, config)
    return devices.divided(own, whole=3)(one, index, rope, chunks, x)


@functools.partial(jax.jit, static_argnames="scoring")
def run_trunk(
    nested: Nested,
    trunk: jax.Array,
    buckets: jax.Array,
    state: ForwardState,
    scoring: Scoring,
) -> tuple[jax.Array, ForwardState]:
    """The residual `[L + 1, n, B, T, D]` of the candidate `trunk [S, L]` before every layer and after the
    last, and the forward state after the last. `state` is the one before the first, on n devices. Sites run
    at `buckets [S, L]`."""
    (_, depth), x = trunk.shape, state.residual
    trunks, every = (jnp.repeat(of_sites[None], len(x), axis=0) for of_sites in (trunk, buckets))
    rope = decoder.rope_tables(scoring.config, x.shape[-2])

    def step(layer: jax.Array, residuals: jax.Array) -> jax.Array:
        x = apply_to_chunks(nested, layer, trunks, every, residuals[layer], rope, scoring.config)
        return residuals.at[layer + 1].set(x)

    residuals = jnp.zeros((depth + 1, *x.shape), x.dtype).at[0].set(x)
    residuals = jax.lax.fori_loop(0, depth, step, residuals)
    return residuals, decoder.watch(state, lambda x, start, stop: residuals[stop], depth, scoring.observed)


class Chunk(NamedTuple):
    """n chunks of `candidates [n · C, S, L]`, one for each device, whose sites run at `buckets [n, S, L]`.

    They agree in the first `shared` layers with the trunk, whose `residuals [L + 1, n, B, T, D]` are known.
    """

    candidates: jax.Array
    buckets: jax.Array
    shared: jax.Array
    residuals: jax.Array


@functools.partial(jax.jit, static_argnames="scoring")
def advance_chunk(nested: Nested, chunk: Chunk, state: ForwardState | None, scoring: Scoring) -> ForwardState:
    """Run candidates through all layers of `nested`, from the `state` before them, or from the trunk's first
    residual if that is None. `shared` and observed layers are counted from the first layer of `nested`."""
    count, _, depth = chunk.candidates.shape
    rope = decoder.rope_tables(scoring.config, chunk.residuals.shape[-2])

    def of_trunk(layer: jax.Array | int) -> jax.Array:
        return jnp.repeat(chunk.residuals[layer], count // len(chunk.buckets), axis=0)

    def step(layer: jax.Array, x: jax.Array) -> jax.Array:
        return apply_to_chunks(nested, layer, chunk.candidates, chunk.buckets, x, rope, scoring.config)

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        first = jnp.clip(chunk.shared, start, stop)
        x = jnp.where(chunk.shared >= start, of_trunk(first), x)
        return jax.lax.fori_loop(first, stop, step, x)

    return decoder.watch(state or ForwardState.begin(of_trunk(0)), advance, depth, scoring.observed)


@functools.partial(jax.jit, static_argnames="scoring")
def score_candidates(params: Params, state: ForwardState, batch: TeacherBatch, scoring: Scoring) -> jax.Array:
    """Objective `[n · C]` of candidates, each on its device's part of a batch, from their forward states
    after the last layer. `params` has the weights outside the blocks."""

    def own(params: Params, state: ForwardState, batch: TeacherBatch) -> jax.Array:
        return jax.vmap(lambda state: scoring.score(params, state, batch))(state)

    return devices.divided(own, whole=1)(params, state, batch)


@functools.partial(jax.jit, static_argnames="scoring")
def score_chunk(
    nested: Nested,
    chunk: Chunk,
    state: ForwardState | None,
    batch: TeacherBatch,
    scoring: Scoring,
) -> jax.Array:
    """Run candidates through their last layers, those of `nested`, as `advance_chunk` does, and score them:
    objective `[n · C]`, each on its device's part of a batch."""
    state = advance_chunk(nested, chunk, state, scoring)
    return score_candidates(decoder.outside(nested.params), state, batch, scoring)


class Part(NamedTuple):
    """Layers `start` to `stop` (exclusive) of a nested supernet, which are on the devices at a time.
    `scoring` counts the observed layers from `start`."""

    net: Nested
    start: int
    stop: int
    scoring: Scoring

    def share(self, tokens: int, depth: int) -> int:
        """The part of `tokens`, counted through all `depth` layers, that these layers account for."""
        return tokens * self.stop // depth - tokens * self.start // depth


def parts_of(nested: Nested, layers: range, scoring: Scoring) -> Iterator[Part]:
    """The `layers` of a nested supernet, part by part: all at once, or one by one if they are on disk."""
    stacks = {"blocks": nested.params["blocks"], "levels": nested.weights}
    for segment in offload.segments(stacks, layers):
        start, stop, weights = segment
        params = nested.params | {"blocks": weights["blocks"]}
        net = nested.replace(params=params, weights=weights["levels"], kept=nested.kept[:, start:stop])
        own = dataclasses.replace(scoring, observed=segment.own(scoring.observed))
        yield Part(devices.spread(net, net.hidden_axes(scoring.config)), start, stop, own)


class Population(NamedTuple):
    """A population as it runs: the `trunk [S, L]`; the `others`, in chunks; and the buckets of their sites,
    `buckets [S, L]` and `other_buckets [M, n, S, L]`."""

    trunk: Levels
    others: ChunkedPopulation
    buckets: np.ndarray
    other_buckets: np.ndarray

    def lead(self, part: Part) -> tuple[jax.Array, jax.Array]:
        """The trunk's levels and buckets in the layers of `part`."""
        here = slice(part.start, part.stop)
        return jnp.asarray(self.trunk[:, here]), jnp.asarray(self.buckets[:, here])

    def chunk(self, number: int, part: Part, residuals: jax.Array) -> Chunk:
        """Chunk `number` of the others in the layers of `part`, where the trunk has `residuals`."""
        candidates, here = self.others.chunks[number], slice(part.start, part.stop)
        same = shared_layers(self.trunk, candidates).min() - part.start
        levels = jnp.asarray(np.concatenate(candidates)[..., here])
        return Chunk(levels, jnp.asarray(self.other_buckets[number][..., here]), jnp.int32(same), residuals)


def arrange_population(
    nested: Nested, candidates: Candidates, sequences: np.ndarray, length: int, config: ModelConfig
) -> tuple[Population, np.ndarray]:
    """How `candidates [C, S, L]` run on `sequences [s]` of `length` tokens, and in which order `[C]`: the
    trunk comes last."""
    shared = shared_layers(candidates[:, None], candidates[None])
    trunk = int(np.argmax(shared.sum(axis=1)))
    # Sorted, so that candidates that run together have about the same number of layers left to run.
    order = np.argsort(shared[trunk] + (np.arange(len(candidates)) == trunk), kind="stable")
    others = chunk_population(candidates[order[:-1]], sequences, length)
    buckets = np.array([[chunk_buckets(nested, own, config) for own in chunk] for chunk in others.chunks])
    own = chunk_buckets(nested, candidates[trunk][None], config)
    return Population(candidates[trunk], others, own, buckets), order


def score_population(
    nested: Nested,
    candidates: Candidates,
    pool: TeacherBatch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda candidate_tokens: None,
) -> Fitness:
    """Mean objective `[C]` of `candidates [C, S, L]` over `sequences [s]` of the pool. `on_chunk` gets the
    candidate-tokens done."""
    chex.assert_shape(candidates, (None, len(nested.kinds), config.depth))
    chex.assert_rank([pool.tokens, sequences], [2, 1])
    depth, length, outside = config.depth, pool.tokens.shape[1], decoder.outside(nested.params)
    population, order = arrange_population(nested, candidates, sequences, length, config)
    work, n = population.others, devices.count()
    batches = [take(pool, together) for together in work.sequences]
    trunks = [decoder.begin(outside, batch.tokens.reshape(n, -1, length)) for batch in batches]
    reached: list[list[ForwardState | None]] = [[None] * len(work.chunks) for _ in batches]
    scores, own_scores = np.empty((len(batches), len(work.chunks), n * work.shape.width)), []
    for part in parts_of(nested, range(depth), Scoring.of_model(config, objective)):
        lead = population.lead(part)
        for index, batch in enumerate(batches):
            residuals, trunks[index] = run_trunk(part.net, *lead, trunks[index], part.scoring)
            if part.stop == depth:
                own_scores.append(score_candidates(outside, trunks[index], batch, part.scoring))
            for number, real in enumerate(work.real):
                ahead = part.net, population.chunk(number, part, residuals), reached[index][number]
                if part.stop == depth:
                    found = score_chunk(*ahead, batch, part.scoring)
                    scores[index, number] = devices.fetch(found)
                else:
                    reached[index][number] = advance_chunk(*ahead, part.scoring)
                on_chunk(part.share(real * work.together * length, depth))
    on_chunk(sequences.size * length)
    values = np.append(work.means(scores), np.mean(devices.fetch(own_scores)))
    return values[np.argsort(order)]
