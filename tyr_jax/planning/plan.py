"""What a run will need, from its configuration and settings alone: memory, disk, FLOPs and time.

Memory is that of one of `n` devices, which divide weights and text among them, at the peak of a stage. Axis
letters: `D` hidden, `F` FFN width, `N` heads, `H` head dim, `L` layers, `E` levels.
"""

import dataclasses
import math
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from tyr_jax.components import guarded
from tyr_jax.data import OPENING, evaluation_sources, to_write
from tyr_jax.evaluation import writing
from tyr_jax.model.attention import LONG_QUERY_CHUNK
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.prediction import VOCABULARY_CHUNK
from tyr_jax.model.spec import OUTPUTS, UNIT_AXES, ModelConfig, Sublayer, block_specs, count_parameters
from tyr_jax.pruning import fisher
from tyr_jax.pruning.hessian import gram_flops
from tyr_jax.pruning.reconstruction import LESSON_TOKENS
from tyr_jax.pruning.target import target_of
from tyr_jax.runtime.batches import BATCH_TOKENS
from tyr_jax.scoring.slopes import SLOPE_TOKENS
from tyr_jax.search import surrogate
from tyr_jax.search.contract import SearchSpace
from tyr_jax.settings import Settings
from tyr_jax.space import KINDS, LevelGrid, centre_distribution, level_grid

FLOAT = 4
"""Bytes of a number in the dense model's predictions, in XᵀX and in the computation of softmaxes."""

ADDING_DEVICES = 64
"""From this many devices on, parts are gathered by a sum, as the TPU compiler does on three-dimensional
topologies."""
BACKWARD = 2.5
"""Working memory of the backward pass through a layer, as a multiple of the layer's activations without
scores."""

RECONSTRUCTING = 1.4
"""The same where a layer is reconstructed."""

UNFUSED = 2 / 3
"""Share of an FFN's working memory that is in use while its statistics are computed. On a CPU it is all of
it; on TPUs it is next to none, because products there are fused with the operations before and after them."""


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What a plan is for."""

    plan: bool = False
    """Print what the run would need (memory, disk, FLOPs, time), from the model's configuration alone, and
    do nothing else."""
    plan_devices: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Plan for this many devices (default: all that JAX sees)."""
    plan_flops: Annotated[float | None, tyro.conf.arg(metavar="FLOP/S")] = None
    """Plan the time for devices that reach this many FLOP/s each, such as 1e14."""


class Load(NamedTuple):
    """What is planned: pruning a model of `config` as `settings` say, on `n` devices, with weights and
    activations of `itemsize` bytes per number."""

    config: ModelConfig
    settings: Settings
    itemsize: int
    n: int


class Need(NamedTuple):
    """What a stage needs: bytes per device for `weights`, the `supernet`, `text` (activations and predictions
    that stay) and `working` (only while a program runs); and `flops` over all devices."""

    stage: str
    weights: float
    supernet: float
    text: float
    working: float
    flops: float

    @property
    def memory(self) -> float:
        """Bytes per device in all."""
        return self.weights + self.supernet + self.text + self.working


def planned_grid(config: ModelConfig, settings: Settings) -> LevelGrid:
    """The levels of the first round's supernet for the first target.

    Raises:
        UserError: the target is not possible in whole units.
    """
    rounds, pruning = settings.rounds, settings.pruning
    kept = target_of(config, pruning, settings.sparsity[0]).kept
    return level_grid(pruning.kinds(config), kept, rounds.levels, rounds.interval, pruning.whole(config))


def planned_space(config: ModelConfig, settings: Settings) -> SearchSpace:
    """The search space of the first round for the first target."""
    grid, data = planned_grid(config, settings), settings.data
    count = data.search_tokens // data.search_length
    return SearchSpace.around(grid, centre_distribution(grid), count, data.search_length)


def level_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one level of all sites: the output projections of attention and FFN of every layer."""
    return itemsize * config.depth * config.hidden * sum(site_channels(config))


def site_sizes(config: ModelConfig) -> tuple[int, int]:
    """Input channels of a layer's two sites: N·H and F, those of one expert."""
    shape = config.dense_shape
    return shape.heads * config.head_dim, shape.ffn


def site_counts(config: ModelConfig) -> tuple[int, int]:
    """How many XᵀX a layer's two sites have: one, or one for each expert."""
    return 1, max(1, config.dense_shape.experts)


def site_channels(config: ModelConfig) -> tuple[int, int]:
    """Input channels of a layer's two sites, of all experts together."""
    attention, ffn = np.multiply(site_sizes(config), site_counts(config)).tolist()
    return attention, ffn


def weight_bytes(load: Load) -> float:
    """Bytes per device for a dense model's weights. If layers are on disk, only one counts."""
    config, _, itemsize, n = load
    in_blocks, total = count_parameters(config)
    return itemsize * (total - in_blocks + share_held(in_blocks, load)) / n


def metric_bytes(load: Load) -> float:
    """Bytes per device for the metric of the sites' outputs, if there is one. If it is on disk, only one
    layer's counts."""
    config, settings, _, n = load
    if settings.pruning.metric == "none":
        return 0
    return FLOAT * share_held(len(KINDS) * config.depth * config.hidden**2, load) / n


def held_bytes(load: Load) -> float:
    """Bytes per device for what stays of the dense model: its weights and, unless it is on disk, the Fisher
    metric."""
    return weight_bytes(load) + (0 if load.settings.offload else metric_bytes(load))


def share_held(count: float, load: Load) -> float:
    """How much of `count`, a number for all layers together, is on the devices at a time."""
    config, settings, _, _ = load
    return count / config.depth if settings.offload else count


def calibration_tokens(settings: Settings) -> int:
    """Tokens that layers are pruned on, openings included."""
    return settings.data.calibration_tokens + settings.data.calibration_openings * OPENING


def evaluation_tokens(settings: Settings) -> int:
    """Tokens that models are measured on."""
    data = settings.data
    return len(evaluation_sources(data)) * data.evaluation_windows * data.evaluation_length


def disk_bytes(load: Load, written: int) -> dict[str, int]:
    """Bytes on disk, by what they are for, at the peak of a run.

    The load's `itemsize` is that of the weights and residuals in memory; `written` is that of the weights
    written.
    """
    config, settings, itemsize, _ = load
    data, targets = settings.data, len(settings.sparsity)
    searching = settings.rounds.rounds > 0
    search = data.search_tokens if searching else 0
    answer = FLOAT * (2 * config.hidden + 1)
    observed = FLOAT * config.hidden * len(settings.objective.observed_layers(config.depth))
    level = level_bytes(config, itemsize)
    levels = settings.rounds.levels * (targets if targets > 1 else 1) if searching else 0
    models = targets * (2 if searching else 1)
    refits = level if settings.rounds.refit or not searching else level * levels
    whole = load._replace(n=1, settings=dataclasses.replace(settings, offload=False))
    # The streams that are kept, those that will replace them, and those in use.
    streams = (3 if settings.offload else 2) * (2 if corrects_drift(settings) else 1)
    return {
        "supernet": levels * level,
        "residuals": streams * itemsize * calibration_tokens(settings) * config.hidden,
        "dense predictions": (search + evaluation_tokens(settings)) * answer + search * (observed + FLOAT),
        "pruned sites": models * refits,
        "reconstruction": reconstruction_disk_bytes(load) if settings.pruning.reconstruct else 0,
        "models": targets * written * count_parameters(config)[1],
        "Fisher metric": round(metric_bytes(whole)) * (2 if settings.offload else 1),
        "weights that stay on disk": offloaded_bytes(load) if settings.offload else 0,
    }


def reconstruction_disk_bytes(load: Load) -> int:
    """Bytes on disk for reconstruction: for every target, the sites of the reconstructed model and what its
    layers have learnt; if weights are on disk, also the targets, a copy of the residuals, and once more what
    layers have learnt."""
    config, settings, itemsize, _ = load
    level = level_bytes(config, itemsize)
    learnt = itemsize * config.depth * layer_parameters(config) - level
    text = calibration_tokens(settings) * (2 * itemsize * config.hidden + FLOAT)
    sites = len(settings.sparsity) * (level + learnt)
    return sites + (text + learnt if settings.offload else 0)


def offloaded_bytes(load: Load) -> int:
    """Bytes on disk of weights that are not in memory, in addition to the dense model's own files: the
    supernet that is searched, the dense model in the order of removal, and the pruned models, which are two,
    or three with the reconstructed one."""
    config, settings, itemsize, _ = load
    pruned = 3 if settings.pruning.reconstruct else 2
    targets, models = len(settings.sparsity), pruned * itemsize * count_parameters(config)[0]
    if not settings.rounds.rounds:
        return models
    levels = settings.rounds.levels * (1 + targets if targets > 1 else 1)
    ordered = itemsize * ordered_parameters(config)
    return models + levels * level_bytes(config, itemsize) + ordered


def ordered_parameters(config: ModelConfig) -> int:
    """Parameters of a dense model that a search holds in the order of removal: those of every tensor with an
    axis of units, except the output projections, of which a supernet has every level."""
    units = set(UNIT_AXES.values())
    specs = (spec for layer in range(config.depth) for spec in block_specs(config, layer))
    moved = (spec for spec in specs if units & set(spec.axes) and spec.name not in OUTPUTS.values())
    return sum(math.prod(spec.shape) for spec in moved)


def sublayer_parameters(config: ModelConfig, sublayer: Sublayer) -> int:
    """Parameters of a layer's attention or FFN in a dense model."""
    return sum(math.prod(spec.shape) for spec in block_specs(config, 0) if spec.sublayer == sublayer)


def layer_parameters(config: ModelConfig) -> int:
    """Parameters of a layer in a dense model."""
    return sum(sublayer_parameters(config, kind) for kind in KINDS)


def gathered(count: int, load: Load) -> float:
    """Bytes of working memory when devices gather `count` numbers, of which each has a part. If they gather
    by a sum, each device's part lies among zeros: this takes the zeros, the zeros with the part, and the
    sum."""
    _, _, itemsize, n = load
    return itemsize * count * (0 if n == 1 else 3 if n >= ADDING_DEVICES else 1)


def attention_working(config: ModelConfig, tokens: int, length: int, itemsize: int) -> float:
    """Bytes of working memory in attention on `tokens` tokens, in sequences of `length`."""
    shape, dim = config.dense_shape, config.head_dim
    numbers = 2 * config.hidden + dim * (3 * shape.heads + 4 * shape.kv_heads)
    scores = shape.heads * min(LONG_QUERY_CHUNK, length)
    return tokens * (itemsize * numbers + 2 * FLOAT * scores)


def ffn_working(config: ModelConfig, tokens: int, itemsize: int) -> float:
    """Bytes of working memory in an FFN on `tokens` tokens."""
    return tokens * itemsize * (2 * config.hidden + 2 * site_channels(config)[1])


def layer_working(tokens: int, length: int, load: Load) -> float:
    """Bytes of working memory when a layer runs on `tokens` tokens of a device. If weights are divided, those
    of one sublayer are gathered at a time."""
    config, _, itemsize, n = load
    attention, ffn = (itemsize * (n > 1) * sublayer_parameters(config, sublayer) for sublayer in KINDS)
    return max(
        attention + attention_working(config, tokens, length, itemsize),
        ffn + ffn_working(config, tokens, itemsize),
    )


def head_working(tokens: int, load: Load) -> float:
    """Bytes of working memory when the head runs: it is gathered, and one part of the vocabulary has logits
    at a time."""
    config = load.config
    head = gathered(config.vocab * config.hidden, load)
    return head + tokens * FLOAT * (2 * VOCABULARY_CHUNK + config.hidden)


def kept_units(config: ModelConfig, sparsity: float) -> np.ndarray:
    """Heads and neurons of every layer `[2, L]` that a sparsity leaves if it is spread evenly."""
    return (1 - sparsity) * unit_counts(config)


def model_flops(config: ModelConfig, units: np.ndarray, tokens: float, length: int) -> float:
    """FLOPs of a model with `units [2, L]` on `tokens` tokens, head included."""
    return tokens * (block_flops(config, units, length) + head_flops(config))


def pruning_flops(config: ModelConfig, tokens: int, length: int) -> float:
    """FLOPs of a fold on `tokens` tokens: forward pass, XᵀX, its inverse, the downdates of that, and
    solutions of all levels."""
    sites = sum(
        count * (gram_flops(size, tokens) + 2 * size**2 * (3 * size + config.hidden))
        for count, size in zip(site_counts(config), site_sizes(config), strict=True)
    )
    return tokens * block_flops(config, unit_counts(config), length) + config.depth * sites


def statistics_working(load: Load) -> float:
    """Bytes of working memory when XᵀX of an FFN's site is added up, in place: a device's own XᵀX, and what
    computes the inputs of the site, for which one matrix of the FFN is gathered at a time."""
    config, settings, itemsize, n = load
    together, channels = min(BATCH_TOKENS, -(-calibration_tokens(settings) // n)), site_channels(config)[1]
    entering = gathered(config.hidden * channels, load) + UNFUSED * ffn_working(config, together, itemsize)
    return FLOAT * channels * site_sizes(config)[1] + entering


def site_working(load: Load) -> float:
    """Bytes of working memory when an FFN's site is pruned.

    These are a level's weights and a device's columns of XᵀX (of all experts), of Hs, of Hs⁻¹ and of the
    updated Hs⁻¹; with a metric, also its factor and the weights in its coordinates. Before there is an Hs⁻¹,
    only the columns of XᵀX and Hs exist, but the dense weight is gathered. The larger sum counts.
    """
    config, settings, _, n = load
    size, channels = site_sizes(config)[1], site_channels(config)[1]
    columns, weights = FLOAT * size**2 / n, FLOAT * channels * config.hidden / n
    statistics = FLOAT * channels * size / n
    metric = 0 if settings.pruning.metric == "none" else weights + FLOAT * config.hidden**2
    gathering = columns + gathered(channels * config.hidden, load)
    return weights + statistics + max(3 * columns + metric, gathering)


def drift_working(load: Load) -> float:
    """Bytes of working memory when drift at an FFN's site is added up, Xᵀd next to XᵀX; or when it is
    corrected: a device's columns of XᵀX, of Hs and of the swept Hs, and of the weights, and its own Xᵀd."""
    config, _, _, n = load
    size, channels = site_sizes(config)[1], site_channels(config)[1]
    pull = FLOAT * channels * config.hidden
    solving = FLOAT * size * (channels + 2 * size) / n
    return max(statistics_working(load) + pull, solving + pull + pull / n)


def last_pruning_need(load: Load) -> Need:
    """What the last pruning, to the distribution found, needs: a fold of one level, in which drift may be
    corrected."""
    config, settings, itemsize, n = load
    single = fold_need("last pruning", 1, load)
    if not corrects_drift(settings):
        return single
    tokens, length = calibration_tokens(settings), settings.data.sequence_length
    held = min(tokens, n * BATCH_TOKENS) if settings.offload else tokens
    hidden = config.hidden
    sites = sum(
        2 * count * size * (2 * tokens * hidden + size * (size + hidden))
        for count, size in zip(site_counts(config), site_sizes(config), strict=True)
    )
    flops = tokens * block_flops(config, unit_counts(config), length) + config.depth * sites
    return single._replace(
        text=single.text + held * itemsize * hidden / n,
        working=max(single.working, drift_working(load)),
        flops=single.flops + flops,
    )


def corrects_drift(settings: Settings) -> bool:
    """Whether the last pruning corrects drift."""
    pruning, rounds = settings.pruning, settings.rounds
    return pruning.drift > 0 and bool(rounds.refit or not rounds.rounds or pruning.reconstruct)


def stream_bytes(load: Load) -> float:
    """Bytes per device for the residuals of the calibration text; with offloading, those of a batch."""
    config, settings, itemsize, n = load
    tokens = calibration_tokens(settings)
    return itemsize * (min(tokens, n * BATCH_TOKENS) if settings.offload else tokens) * config.hidden / n


def entering_bytes(load: Load) -> float:
    """Bytes per device for what enters an FFN's site. With offloading, all but a batch is computed again; of
    experts always."""
    config, settings, itemsize, n = load
    tokens = calibration_tokens(settings)
    part = settings.offload or config.experts
    return itemsize * (min(tokens, n * BATCH_TOKENS) if part else tokens) * site_channels(config)[1] / n


def fold_need(name: str, levels: int, load: Load) -> Need:
    """What building a supernet of this many `levels` needs."""
    config, settings, itemsize, n = load
    tokens, length = calibration_tokens(settings), settings.data.sequence_length
    supernet = share_held(levels * level_bytes(config, itemsize) / n, load)
    working = max(statistics_working(load), site_working(load))
    text = stream_bytes(load) + entering_bytes(load)
    weights = weight_bytes(load) + metric_bytes(load)
    return Need(name, weights, supernet, text, working, pruning_flops(config, tokens, length))


def metric_need(load: Load) -> Need:
    """What the Fisher metric of all outputs needs: a forward and a backward pass, a layer at a time, with the
    residuals before all layers (if layers are on disk, the host holds these)."""
    config, settings, itemsize, n = load
    tokens, length = settings.pruning.metric_tokens, settings.data.sequence_length
    together = max(min(fisher.BATCH_TOKENS, -(-tokens // n)), length)
    residuals = (share_held(config.depth, load) + 2) * together * config.hidden * itemsize
    # The activations of both sublayers are kept for the backward pass, and there are new sums for both.
    units = attention_working(config, together, 0, itemsize) + ffn_working(config, together, itemsize)
    block = gathered(max(sublayer_parameters(config, kind) for kind in KINDS), load)
    layer = block + BACKWARD * units + 2 * len(KINDS) * FLOAT * config.hidden**2
    working = residuals + max(layer, head_working(together, load))
    # Forward, recomputed, and backward to the inputs.
    flops = tokens * (3 * block_flops(config, unit_counts(config), length) + 2 * head_flops(config))
    flops += len(KINDS) * config.depth * gram_flops(config.hidden, tokens)
    weights = weight_bytes(load) + metric_bytes(load)
    return Need("Fisher metric", weights, 0, 0, working, flops)


def reconstruction_need(load: Load) -> Need:
    """What pruning once more needs if what is left of each layer is trained: in addition to the last pruning,
    what layers have learnt, the residuals before a layer, the targets, and Adam's state for a layer. What
    enters a site is gone while a layer learns."""
    config, settings, itemsize, n = load
    pruned, passes = last_pruning_need(load), settings.pruning.reconstruct
    tokens, length = calibration_tokens(settings), settings.data.sequence_length
    dense = unit_counts(config)
    left = dense * [[1.0], [1 - min(settings.sparsity)]]
    learnt = itemsize * config.depth * layer_parameters(config) - level_bytes(config, itemsize)
    before, entering = 0 if settings.offload else stream_bytes(load), entering_bytes(load)
    # The dense layer makes the targets, and the trained one runs again.
    steps = 3 * passes * block_flops(config, left, length) + 2 * block_flops(config, dense, length)
    return pruned._replace(
        stage="reconstruction",
        weights=pruned.weights + (0 if settings.offload else learnt / n),
        text=pruned.text - entering,
        working=max(pruned.working + entering + before, reconstruction_working(load)),
        flops=pruned.flops + tokens * steps,
    )


def reconstruction_working(load: Load) -> float:
    """Bytes of working memory while a layer learns: the targets and a step. Attention learns at its dense
    width."""
    config, settings, itemsize, n = load
    kept, length = 1 - min(settings.sparsity), settings.data.sequence_length
    attention, ffn = (sublayer_parameters(config, kind) for kind in KINDS)
    ffn = round(kept * ffn)
    # Weights before learning, before a step and after it, and two moments; weights are gathered one by one.
    state = (itemsize + 4 * FLOAT) * (attention + ffn) / n
    state += FLOAT / itemsize * gathered(ffn // 3, load) + (n > 1) * FLOAT * 2 * ffn / 3
    lesson = max(-(-LESSON_TOKENS // n), length)
    units = attention_working(config, lesson, 0, FLOAT) + kept * ffn_working(config, lesson, FLOAT)
    return stream_bytes(load) + state + RECONSTRUCTING * units


def writing_need(load: Load) -> Need | None:
    """What the text that the model writes itself needs, if there is any: it is written a token at a time,
    with the keys and values of all earlier tokens."""
    config, settings, itemsize, n = load
    asked = to_write(settings.data)
    if asked is None:
        return None
    count, length = asked
    together = min(-(-count // n), writing.SEQUENCES)
    numbers = config.depth * 2 * config.dense_shape.kv_heads * config.head_dim
    cache = itemsize * together * writing.cache_slots(length) * numbers
    scores = 2 * FLOAT * together * config.dense_shape.heads * length
    # The compiler copies keys or values into another layout.
    working = 1.5 * cache + layer_working(together, 1, load) + scores + head_working(together, load)
    flops = model_flops(config, unit_counts(config), count * length, length)
    # Separate layers, in addition to the stacked ones.
    weights = weight_bytes(load) + itemsize * count_parameters(config)[0] / n
    return Need("self-generated text", weights, 0, 0, working, flops)


def answers_need(load: Load) -> Need:
    """What the dense model's predictions on search and evaluation text need."""
    config, settings, _, n = load
    data = settings.data
    together = min(BATCH_TOKENS, -(-data.search_tokens // n))
    working = max(
        layer_working(together, data.search_length, load),
        head_working(together, load),
    )
    units = unit_counts(config)
    texts = (data.search_tokens, data.search_length), (evaluation_tokens(settings), data.evaluation_length)
    # The head runs once more, for its expected row.
    flops = sum(model_flops(config, units, *text) + text[0] * head_flops(config) for text in texts)
    weights = weight_bytes(load)
    return Need("dense predictions", weights, 0, pool_bytes(load), working, flops)


def pool_bytes(load: Load) -> float:
    """Bytes per device for the dense model's predictions on the search text."""
    config, settings, _, n = load
    observed = len(settings.objective.observed_layers(config.depth))
    return FLOAT * settings.data.search_tokens * ((2 + observed) * config.hidden + 2) / n


def searched_need(name: str, working: float, flops: float, load: Load) -> Need:
    """What a stage that runs on the supernet needs: in addition to the dense weights, those in the order of
    removal."""
    config, settings, itemsize, n = load
    # With offloading, layers in the order of removal take the place of the original ones.
    ordered = 0 if settings.offload else itemsize * ordered_parameters(config) / n
    weights = held_bytes(load) + ordered
    levels = settings.rounds.levels * level_bytes(config, itemsize) / n
    supernet = share_held(levels, load)
    return Need(name, weights, supernet, pool_bytes(load), working, flops)


def descent_need(sparsity: float, load: Load) -> Need:
    """What a round's descent needs: slopes from a backward pass at full width, and scores of proposals."""
    config, settings, itemsize, n = load
    data, rounds = settings.data, settings.rounds
    length, units = data.search_length, unit_counts(config)
    together = max(length, SLOPE_TOKENS // length * length)
    tokens = settings.descent_sequences(data.search_tokens // length) * length
    # Forward, recomputed, and backward: to the inputs of all products, and the weights of the two sites.
    share = level_bytes(config, 1) / count_parameters(config)[0]
    slopes = tokens * ((3 + share) * block_flops(config, units, length) + 3 * head_flops(config))
    proposals = 1 + len(surrogate.CAUTIONS)
    scores = proposals * model_flops(config, kept_units(config, sparsity), tokens, length)
    kept = share_held(config.depth, load) * together * config.hidden * itemsize
    if settings.offload:
        kept += tokens / n * config.hidden * itemsize
    # For a layer, a copy of its levels, and the chosen one: as stored, as used, and its slope.
    levels = (settings.rounds.levels / n + 3) * level_bytes(config, itemsize) / config.depth
    layers = levels + 2 * layer_working(together, length, load)
    working = kept + max(layers, head_working(together, load))
    return searched_need("descent", working, rounds.descent_steps * (slopes + scores), load)


def evolution_need(sparsity: float, load: Load) -> Need:
    """What a round's evolution needs: the residual of the trunk before every layer, and candidates."""
    config, settings, itemsize, n = load
    length, space = settings.data.search_length, planned_space(config, settings)
    together = max(length, BATCH_TOKENS // length * length)
    states = (share_held(config.depth, load) + 1) * together * config.hidden * itemsize
    if settings.offload:
        # The residuals of all candidates before a layer.
        with guarded(settings.search, "queries"):
            most = max(size * count for size, count, _ in settings.search.queries(space))
        states += most * length * config.hidden * itemsize / n
    chosen = level_bytes(config, itemsize) / config.depth if n > 1 else 0
    layer = chosen + layer_working(together, length, load)
    working = states + max(layer, head_working(together, load))
    with guarded(settings.search, "queries"):
        tokens = settings.search.candidate_tokens(space)
    flops = model_flops(config, kept_units(config, sparsity), tokens, length)
    return searched_need("search", working, flops, load)


def evaluation_need(sparsity: float, load: Load) -> Need:
    """What measuring a pruned model needs, with the dense one in memory."""
    config, settings, _, n = load
    length, tokens = settings.data.evaluation_length, evaluation_tokens(settings)
    together = min(max(length, BATCH_TOKENS), -(-tokens // n))
    working = max(layer_working(together, length, load), head_working(together, load))
    weights = (1 - sparsity) * weight_bytes(load) + held_bytes(load)
    flops = model_flops(config, kept_units(config, sparsity), tokens, length)
    return Need("evaluation", weights, 0, 0, working, flops)


def needs(load: Load) -> list[tuple[Need, int]]:
    """What every stage needs, and how often it runs."""
    settings = load.settings
    targets, rounds = len(settings.sparsity), settings.rounds
    sparsity = min(settings.sparsity)
    single = last_pruning_need(load)
    evaluation = evaluation_need(sparsity, load)
    written = writing_need(load)
    trained = [(reconstruction_need(load), targets)] if settings.pruning.reconstruct else []
    # Every target has a uniform model, one that is searched, and one that is reconstructed.
    evaluated = (evaluation, targets * (1 + bool(rounds.rounds) + bool(trained)))
    dense = [(written, 1)] if written else []
    dense += [(answers_need(load), 1), (metric_need(load), int(settings.pruning.metric != "none"))]
    if not rounds.rounds:
        stages = [*dense, (single, targets), evaluated, *trained]
        return [(need, times) for need, times in stages if times]
    first = fold_need("first supernet", rounds.levels * targets, load)
    later = fold_need("next supernets", rounds.levels, load)
    searches = {
        descent_need(sparsity, load): rounds.descent_steps > 0,
        evolution_need(sparsity, load): True,
    }
    # Without a refit, the supernets of the uniform model and of the one that is found are built again.
    again = 0 if rounds.refit else targets
    stages = [
        *dense,
        (first, 1 + again * (2 if rounds.rounds == 1 else 1)),
        (later, targets * (rounds.rounds - 1) + again * (rounds.rounds > 1)),
        *((need, targets * rounds.rounds * happens) for need, happens in searches.items()),
        (single, 2 * targets - 2 * again),
        evaluated,
        *trained,
    ]
    return [(need, times) for need, times in stages if times]


def host_bytes(load: Load) -> dict[str, float]:
    """Bytes of host memory in addition to what devices hold, by what they are for."""
    config, settings, itemsize, _ = load
    largest = itemsize * config.depth * config.hidden * max(site_channels(config))
    stacked = share_held(largest, load)
    residuals = itemsize * calibration_tokens(settings) * config.hidden
    backward = settings.offload and settings.pruning.metric != "none"
    before = backward * itemsize * config.depth * settings.pruning.metric_tokens * config.hidden
    return {
        "reading weights": 2 * max(stacked, itemsize * config.vocab * config.hidden),
        "writing residuals": residuals,
        "dense predictions": evaluation_tokens(settings) * FLOAT * (2 * config.hidden + 1),
        "residuals before layers": before,
    }
