"""Score a population and pay only for the units that are kept: width buckets and one `vmap`.

Shapes must be static, so the widths of a nested model's sites (`tyr_jax.scoring.nested`) are a few buckets,
one branch of a `lax.switch` each. A site's branch is chosen by the largest count among the candidates that
run together. The choice is not part of the `vmap`, so it stays a real branch. The offspring of one parent
keep nearly the same counts everywhere, so little work is wasted.

They also agree with one another up to the first layer that a mutation changed. So one of them, the trunk,
runs first, and its residual before every layer is stored. Each chunk of the others starts where its
candidates first differ from the trunk, with a `fori_loop` over layers whose start is data.

Axis letters: `C` candidates, `B` sequences, `T` tokens, `D` hidden, `S` kinds of site, `L` layers, `E`
levels, `N` heads, `H` head dim, `F` FFN width, `U` units of a site.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime import devices, offload
from tyr_jax.scoring.chunking import ChunkedPopulation, chunk_population
from tyr_jax.scoring.nested import Nested, prefix, project
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take
from tyr_jax.space import Candidates, Fitness, Levels, values_at


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

    return decoder.watch(state or ForwardState.of_residual(of_trunk(0)), advance, depth, scoring.observed)


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
    trunks = [decoder.begin_forward(outside, batch.tokens.reshape(n, -1, length)) for batch in batches]
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
