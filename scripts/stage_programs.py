"""Every jitted stage of a run with abstract arguments, to lower and compile it for devices that need not be
there, and to see what memory and time it would take.

What one stage returns and another is given is derived from the functions themselves. Axis letters: `B`
sequences, `T` tokens.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from tyr_jax.data import to_write
from tyr_jax.evaluation import quality, writing
from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import build_params, layer_block
from tyr_jax.planning.load import kept_units, planned_grid, planned_space
from tyr_jax.pruning import fisher, hessian, linalg, obs, reconstruction, stream, supernet
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.site import removal_schedule
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import batches
from tyr_jax.scoring import nested, scorer, slopes
from tyr_jax.scoring.chunking import chunk_shape, part_rows
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import teacher_answer
from tyr_jax.settings import Settings


class Program(NamedTuple):
    """A jitted `function` with abstract `arguments` and `static` ones, and its `name`. `loops` are the trip
    counts of its loops whose trip count depends on data."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    loops: tuple[int, ...] = ()

    def result(self) -> Any:
        """Its result, abstract."""
        return jax.eval_shape(functools.partial(self.function, **self.static), *self.arguments)

    def traced(self) -> Any:
        """Its traced program."""
        return self.function.trace(*self.arguments, **self.static)

    def lower(self, *platforms: str) -> jax.stages.Lowered:
        """The stage lowered for `platforms`, or for the current devices."""
        return self.traced().lower(lowering_platforms=platforms or None)


def abstract_params(config: ModelConfig, dtype: jnp.dtype) -> Params:
    """A model's params, abstract."""
    return jax.eval_shape(lambda: build_params(config, lambda spec: jnp.zeros(spec.shape, dtype)))


def texts(count: int, length: int) -> ShapeDtypeStruct:
    """An abstract batch of tokens `[B, T]`, as it runs out of `count` sequences of `length` tokens."""
    rows = batches(np.broadcast_to(0, (count, length)))[0]
    return devices.place(ShapeDtypeStruct((len(rows.indices), length), jnp.int32))


def site_stages(
    row: int, block: Block, x: ShapeDtypeStruct, config: ModelConfig, settings: Settings
) -> list[Program]:
    """The stages of a layer's site in a row of the levels in the fold, on a batch of residuals `x [B, T, D]`:
    statistics, XᵀX, pruning, drift, and the residual after it."""
    kind, grid = settings.pruning.site_kinds(config)[row], planned_grid(config, settings)
    weight, static = block[kind.output], {"kind": kind, "config": config}
    size, units, shape = math.prod(weight.shape[:-1]), kind.count(config), kind.gram_shape(config)
    gram = devices.place(ShapeDtypeStruct((devices.count(), *shape), jnp.float32))
    statistics = Program(f"{kind.name}: statistics", stream.site_statistics, (block, x, gram, None), static)
    inputs = devices.place(statistics.result()[0])
    total = Program(f"{kind.name}: XᵀX", hessian.finish, (gram,), {})
    matrix = devices.place(ShapeDtypeStruct((size, config.hidden), weight.dtype), axis=1)
    levels = grid.kept[row, 0], grid.exists[row, 0]
    xtx: Any = devices.place(total.result(), axis=len(shape) - 1)

    metric: Any = None
    if settings.pruning.metric != "none":
        metric = devices.place(ShapeDtypeStruct((config.hidden, config.hidden), jnp.float32), axis=1)

    def site(gram: jax.Array, weight: jax.Array) -> Any:
        return settings.pruning.site(gram, weight, *levels, units)

    # All arrays are abstract: on devices that need not be there, not even a small one can be made.
    known = jax.eval_shape(site, xtx, matrix).replace(gram=xtx, weight=matrix, metric=metric)
    # Damping is hardly ever raised; panels of removals; blocks of channels, some of which end at a level.
    steps = int(np.count_nonzero(removal_schedule(units, known.chunk, *levels)))
    panels = -(-steps // obs.panel_steps(known.chunk, known.unit_size))
    loops = 0, panels, -(-shape[-1] // linalg.BLOCK) + len(levels[0])
    prune = Program(f"{kind.name}: pruning", kind.prune, (known,), {"pruner": settings.pruning.pruner}, loops)
    return [
        statistics,
        total,
        prune,
        *drift_stages(kind, block, x, inputs, matrix, xtx, config),
        Program(f"{kind.name}: residual", stream.add_output, (block, x, inputs), static),
    ]


def drift_stages(
    kind: SiteKind,
    block: Block,
    x: ShapeDtypeStruct,
    units: ShapeDtypeStruct,
    weight: ShapeDtypeStruct,
    gram: ShapeDtypeStruct,
    config: ModelConfig,
) -> list[Program]:
    """The stages that follow the dense model past a site and correct drift there, in the last pruning, on
    residuals `x [B, T, D]`, the `units [B, T, ...]` that enter `weight [d_in, D]`, and their XᵀX."""
    pull = devices.place(ShapeDtypeStruct((devices.count(), *weight.shape), jnp.float32))
    weights = devices.place(ShapeDtypeStruct(x.shape[:2], jnp.float32))
    before: Any = x, pull
    follow = block, x, units, weights, stream.Drift(*before)
    static = {"kind": kind, "config": config}
    back = weight, gram, pull, ShapeDtypeStruct((), jnp.float32)
    blocks = (-(-gram.shape[-1] // linalg.BLOCK),)
    return [
        Program(f"{kind.name}: drift", stream.follow_dense, follow, static),
        Program(f"{kind.name}: drift corrected", stream.corrected_weight, back, {}, blocks),
    ]


def fold_stages(params: Params, config: ModelConfig, settings: Settings) -> list[Program]:
    """The stages of a block in the fold that builds a supernet."""
    data = settings.data
    tokens = texts(data.calibration_tokens // data.sequence_length, data.sequence_length)
    x = ShapeDtypeStruct((*tokens.shape, config.hidden), params["embed"].dtype)
    block = block_of(params, 0, config)
    whole = abstract_supernet(params, config, settings)
    sites = jax.eval_shape(lambda whole: supernet.of_layer(whole, 0), whole)
    sites = devices.spread(sites, whole.hidden_axes)
    layer, rows = ShapeDtypeStruct((), jnp.int32), range(len(whole.kinds))
    return [
        *(stage for row in rows for stage in site_stages(row, block, devices.place(x), config, settings)),
        Program("supernet: a layer", supernet.fill_layer, (whole, layer, sites), {}),
    ]


def metric_stages(params: Params, config: ModelConfig, settings: Settings) -> Iterator[Program]:
    """The stages of the Fisher metric of all outputs."""
    length, count = settings.data.sequence_length, settings.pruning.metric_tokens
    rows = batches(np.broadcast_to(0, (max(1, count // length), length)), fisher.BATCH_TOKENS)[0].indices
    dtype, static = params["embed"].dtype, {"config": config}
    x = devices.place(ShapeDtypeStruct((len(rows), length, config.hidden), dtype))
    forward = Program("metric: forward", fisher.forward, (params["blocks"], x), static)
    yield forward
    keys = devices.place(ShapeDtypeStruct((len(rows), 2), jnp.uint32))
    real = devices.place(ShapeDtypeStruct((len(rows),), bool))
    answer = (decoder.outside(params), x, keys, real)
    yield Program("metric: answers", fisher.answer_gradient, answer, static)
    kinds = settings.pruning.site_kinds(config)
    shape = config.depth, len(kinds), config.hidden, config.hidden
    total = devices.place(ShapeDtypeStruct(shape, jnp.float32), axis=3)
    before = devices.place(forward.result()[1], axis=1)
    back = params["blocks"], before, x, total
    yield Program("metric: backward", fisher.backward, back, static | {"kinds": kinds})
    tokens = ShapeDtypeStruct((), jnp.float32)
    yield Program("metric: of all tokens", fisher.finish, (total, tokens), {})


def abstract_supernet(params: Params, config: ModelConfig, settings: Settings) -> supernet.Supernet:
    """The first round's supernet, abstract."""
    dtype, grid = params["embed"].dtype, planned_grid(config, settings)
    whole = jax.eval_shape(lambda: supernet.empty_supernet(dtype, config, grid, settings.pruning))
    return devices.spread(whole, whole.hidden_axes)


def abstract_nested(params: Params, config: ModelConfig, settings: Settings) -> nested.Nested:
    """The nested supernet that the search runs on, abstract."""
    whole = abstract_supernet(params, config, settings)
    net = jax.eval_shape(lambda params, whole: nested.nest(params, whole, config), params, whole)
    return devices.spread(net, net.hidden_axes(config))


def scoring_stages(
    net: nested.Nested, candidates: int, sequences: int, config: ModelConfig, settings: Settings
) -> list[Program]:
    """The stages that score this many `candidates` on this many `sequences`: the trunk, and a chunk of the
    others."""
    length, n, depth = settings.data.search_length, devices.count(), config.depth
    shape = chunk_shape(candidates - 1, sequences, length)
    batch = answers(net.params, n * shape.rows, config, settings)
    integers = functools.partial(ShapeDtypeStruct, dtype=jnp.int32)
    sites = integers(net.kept.shape[:2])
    tokens = devices.place(integers((n, shape.rows, length)))
    outside = decoder.outside(net.params)
    state = devices.place(Program("", decoder.begin_forward, (outside, tokens), {}).result())
    name = f"{shape.rows} × {length} tokens"
    scoring = Scoring.of_model(config, settings.objective)
    static = {"scoring": scoring}
    trunk = Program(f"search: trunk, {name}", scorer.run_trunk, (net, sites, sites, state), static)
    states, state = trunk.result()
    states, state = devices.place(states, axis=1), devices.place(state)
    own = Program(f"search: trunk's score, {name}", scorer.score_candidates, (outside, state, batch), static)
    levels, buckets = (devices.place(integers((rows, *sites.shape))) for rows in (n * shape.width, n))
    chunk = scorer.Chunk(levels, buckets, integers(()), states)  # type: ignore[arg-type]
    loops = (depth,) * (1 + len(set(scoring.observed)))
    name = f"search: {shape.width} candidates, {name}"
    score = Program(name, scorer.score_chunk, (net, chunk, None, batch), static, loops)
    return [trunk, own, score]


def answers(params: Params, sequences: int, config: ModelConfig, settings: Settings) -> TeacherBatch:
    """The dense model's predictions on a batch of search text, abstract."""
    tokens = devices.place(ShapeDtypeStruct((sequences, settings.data.search_length), jnp.int32))
    *_, answer = dense_stages(params, tokens, config, settings.objective)
    return devices.place(answer.result())


def blocks_stage(
    name: str, params: Params, tokens: ShapeDtypeStruct, config: ModelConfig, observed: tuple[int, ...] = ()
) -> tuple[Program, ForwardState]:
    """The stage that runs all blocks on `tokens [B, T]`, and the state that comes out, abstract."""
    state = devices.place(Program("", decoder.begin_forward, (decoder.outside(params), tokens), {}).result())
    static = {"config": config, "observed": observed}
    stage = Program(name, decoder.run_blocks, (params["blocks"], state), static)
    return stage, devices.place(stage.result())


def dense_stages(
    params: Params, tokens: ShapeDtypeStruct, config: ModelConfig, objective: Objective
) -> list[Program]:
    """The stages of the dense model's predictions on `tokens [B, T]` of search text."""
    observed = objective.observed_layers(config.depth)
    blocks, state = blocks_stage("search: dense blocks", params, tokens, config, observed)
    arguments = decoder.outside(params), state, tokens
    return [blocks, Program("search: dense predictions", teacher_answer, arguments, {"config": config})]


def search_stages(
    params: Params, net: nested.Nested, config: ModelConfig, settings: Settings
) -> Iterator[Program]:
    """The stages of the search: the dense model's predictions, slopes, and scores at every size that
    occurs."""
    data, objective = settings.data, settings.objective
    length = data.search_length
    tokens = texts(data.search_tokens // length, length)
    yield from dense_stages(params, tokens, config, objective)
    space = planned_space(config, settings)
    queries = [asked for search in settings.search for asked in search.queries(space)]
    for count in sorted({asked.sequences for asked in queries if asked.slopes}):
        rows = part_rows(count, slopes.SLOPE_TOKENS // length)
        batch = answers(params, devices.count() * rows, config, settings)
        levels = ShapeDtypeStruct(net.kept.shape[:2], jnp.int32)
        shares = ShapeDtypeStruct((devices.count(), *net.kept.shape), jnp.float32)
        begun = Program("", decoder.begin_forward, (decoder.outside(params), batch.tokens), {}).result()
        arguments = net, levels, devices.place(shares), devices.place(begun), batch
        static = {"scoring": Scoring.of_model(config, objective)}
        yield Program("search: slopes", slopes.last_slopes, arguments, static)
    sizes = {(asked.candidates, asked.sequences) for asked in queries if not asked.slopes}
    named = {
        stage.name: stage for size in sorted(sizes) for stage in scoring_stages(net, *size, config, settings)
    }
    yield from named.values()


def writing_stages(params: Params, config: ModelConfig, settings: Settings) -> list[Program]:
    """The stages that write the model's own text: a segment of a group of sequences."""
    asked = to_write(settings.data)
    if asked is None:
        return []
    length = asked[1]
    rows = len(batches(np.broadcast_to(0, asked), writing.SEQUENCES * length)[0].indices)
    blocks = tuple(block_of(params, layer, config) for layer in range(config.depth))
    slots, dtype = writing.cache_slots(length), params["embed"].dtype
    cache = jax.eval_shape(lambda: writing.empty_cache(config, rows, slots, dtype))
    text, keys = ShapeDtypeStruct((rows, length + 1), jnp.int32), ShapeDtypeStruct((rows, 2), jnp.uint32)
    group: Any = devices.place((cache, text, keys))
    static = {"config": config, "temperature": settings.data.self_temperature, "count": writing.SEGMENT}
    arguments = decoder.outside(params), blocks, writing.Group(*group), ShapeDtypeStruct((), jnp.int32)
    return [Program("writing", writing.write, arguments, static, (writing.SEGMENT,))]


def block_of(params: Params, layer: int, config: ModelConfig) -> Block:
    """A layer's tensors, abstract."""
    return devices.spread(
        jax.eval_shape(lambda blocks: layer_block(blocks, layer), params["blocks"]), config.hidden_axes
    )


def reconstruction_stages(params: Params, config: ModelConfig, settings: Settings) -> list[Program]:
    """The stages that train what is left of a layer's FFN: the target of a batch, the mixing of as many
    batches as are mixed at a time, and a step."""
    if not settings.pruning.reconstruct:
        return []
    data, block = settings.data, block_of(params, 0, config)
    tokens = texts(data.calibration_tokens // data.sequence_length, data.sequence_length)
    x = devices.place(ShapeDtypeStruct((*tokens.shape, config.hidden), params["embed"].dtype))
    weights = devices.place(ShapeDtypeStruct(tokens.shape, jnp.float32))
    number, static = ShapeDtypeStruct((), jnp.float32), {"config": config}
    mixed = min(reconstruction.MIXED_BATCHES, -(-data.calibration_tokens // tokens.size))
    batch: Any = reconstruction.MiniBatch(x, x, weights)  # type: ignore[arg-type]
    counts = {"count": max(1, round(mixed * tokens.size / reconstruction.STEP_TOKENS))}
    mixing = Program("reconstruction: mixing", reconstruction.mix, ([batch] * mixed,), counts)
    minibatch = devices.place(mixing.result()[0])
    width = reconstruction.width_for(int(kept_units(config, min(settings.sparsity))[-1, 0]), config)
    sizes = {"F": width, "X": config.dense_shape.experts, "D": config.hidden}
    ffn = {
        tensor.name: ShapeDtypeStruct([sizes[axis] for axis in tensor.axes], jnp.float32)
        for tensor in config.tensors
        if tensor.sublayer == "ffn"
    }
    state = devices.spread(jax.eval_shape(reconstruction.begin_learning, ffn), config.hidden_axes)
    metric: Any = None
    if settings.pruning.metric != "none":
        metric = devices.place(ShapeDtypeStruct((config.hidden, config.hidden), jnp.float32), axis=1)
    return [
        Program("reconstruction: target", reconstruction.target, (block, x, x, number), static),
        mixing,
        Program("reconstruction: a step", reconstruction.learn, (state, minibatch, metric, number), static),
    ]


def quality_stages(params: Params, config: ModelConfig, settings: Settings) -> Iterator[Program]:
    """The stages that measure a model on a batch of evaluation text."""
    data, outside = settings.data, decoder.outside(params)
    tokens = texts(data.evaluation_windows, data.evaluation_length)
    static = {"config": config}
    blocks, state = blocks_stage("quality: blocks", params, tokens, config)
    yield blocks
    residual = state.residual
    dense = Program(
        "quality: dense predictions", quality.predict_windows, (outside, residual, tokens), static
    )
    yield dense
    answer = devices.place(dense.result()[0])
    yield Program("quality: of a model", quality.window_sums, (outside, residual, tokens, answer), static)


def all_stages(config: ModelConfig, settings: Settings, dtype: jnp.dtype) -> list[Program]:
    """Every stage of a run on the current devices, with weights and activations of `dtype`."""
    params = devices.spread(abstract_params(config, dtype), config.hidden_axes)
    fold = fold_stages(params, config, settings)
    metric = [] if settings.pruning.metric == "none" else metric_stages(params, config, settings)
    net = abstract_nested(params, config, settings)
    search = search_stages(params, net, config, settings) if settings.rounds.rounds else ()
    own = writing_stages(params, config, settings), reconstruction_stages(params, config, settings)
    return [*own[0], *metric, *fold, *search, *own[1], *quality_stages(params, config, settings)]
