"""What a run will need, from its configuration and settings alone: memory, disk, FLOPs and time.

Memory is that of one of `n` devices, which divide weights and text among them, at the peak of a stage. Axis
letters: `D` hidden, `F` FFN width, `N` heads, `H` head dim, `L` layers, `E` levels.
"""

import dataclasses
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from tyr_jax.components import guarded
from tyr_jax.data import to_write
from tyr_jax.evaluation import writing
from tyr_jax.model.cost import block_flops, head_flops, unit_counts
from tyr_jax.model.spec import UNIT_AXES, ModelConfig
from tyr_jax.model.tensors import count_parameters
from tyr_jax.planning.load import (
    FLOAT,
    Load,
    calibration_tokens,
    entering_bytes,
    evaluation_tokens,
    held_bytes,
    kept_units,
    kinds_of,
    level_bytes,
    metric_bytes,
    ordered_parameters,
    planned_space,
    share_held,
    site_channels,
    site_counts,
    site_sizes,
    stream_bytes,
    sublayer_parameters,
    weight_bytes,
)
from tyr_jax.planning.working import (
    BACKWARD,
    attention_working,
    drift_working,
    ffn_working,
    gathered,
    head_working,
    layer_working,
    reconstruction_working,
    site_working,
    statistics_working,
)
from tyr_jax.pruning import fisher
from tyr_jax.pruning.hessian import gram_flops
from tyr_jax.runtime.batches import BATCH_TOKENS
from tyr_jax.scoring.slopes import SLOPE_TOKENS
from tyr_jax.search.contract import Search
from tyr_jax.settings import Settings


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
    FFNs have learnt; if weights are on disk, also the mini-batches, and once more what FFNs have learnt."""
    config, settings, itemsize, _ = load
    learnt = learnt_bytes(config, itemsize)
    minibatches = calibration_tokens(settings) * (2 * itemsize * config.hidden + FLOAT)
    sites = len(settings.sparsity) * (level_bytes(config, itemsize) + learnt)
    return sites + (minibatches + learnt if settings.offload else 0)


def learnt_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes for what the FFNs of a model have learnt, without their sites' weights."""
    others = sublayer_parameters(config, "ffn") - config.hidden * site_channels(config)[1]
    return itemsize * config.depth * others


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


def model_flops(config: ModelConfig, units: np.ndarray, tokens: float, length: int) -> float:
    """FLOPs of a model with `units [S, L]` on `tokens` tokens, head included."""
    return tokens * (block_flops(config, units, length) + head_flops(config))


def pruning_flops(config: ModelConfig, tokens: int, length: int) -> float:
    """FLOPs of a fold on `tokens` tokens: forward pass, XᵀX, its inverse, the downdates of that, and
    solutions of all levels."""
    sites = sum(
        count * (gram_flops(size, tokens) + 2 * size**2 * (3 * size + config.hidden))
        for count, size in zip(site_counts(config), site_sizes(config), strict=True)
    )
    return tokens * block_flops(config, unit_counts(config), length) + config.depth * sites


def last_pruning_need(load: Load) -> Need:
    """What the last pruning, to the distribution found, needs: a fold of one level, in which drift may be
    corrected."""
    config, settings, _, _ = load
    single = fold_need("refit", 1, load)
    if not corrects_drift(settings):
        return single
    tokens, length = calibration_tokens(settings), settings.data.sequence_length
    hidden = config.hidden
    sites = sum(
        2 * count * size * (2 * tokens * hidden + size * (size + hidden))
        for count, size in zip(site_counts(config), site_sizes(config), strict=True)
    )
    flops = tokens * block_flops(config, unit_counts(config), length) + config.depth * sites
    return single._replace(
        text=single.text + stream_bytes(load),
        working=max(single.working, drift_working(load)),
        flops=single.flops + flops,
    )


def cuts_models(settings: Settings) -> bool:
    """Whether models are cut from the last round's supernet, which then stays after its search. If it is the
    only round, several targets share its supernet, and it does not stay."""
    rounds = settings.rounds
    return not rounds.refit and (rounds.rounds > 1 or rounds.rounds == len(settings.sparsity) == 1)


def corrects_drift(settings: Settings) -> bool:
    """Whether the last pruning corrects drift."""
    pruning, rounds = settings.pruning, settings.rounds
    return pruning.drift > 0 and bool(rounds.refit or not rounds.rounds or pruning.reconstruct)


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
    block = gathered(max(sublayer_parameters(config, sublayer) for sublayer in UNIT_AXES), load)
    sites = len(kinds_of(config))
    layer = block + BACKWARD * units + 2 * sites * FLOAT * config.hidden**2
    working = residuals + max(layer, head_working(together, load))
    # Forward, recomputed, and backward to the inputs.
    flops = tokens * (3 * block_flops(config, unit_counts(config), length) + 2 * head_flops(config))
    flops += sites * config.depth * gram_flops(config.hidden, tokens)
    weights = weight_bytes(load) + metric_bytes(load)
    return Need("Fisher metric", weights, 0, 0, working, flops)


def reconstruction_need(load: Load) -> Need:
    """What pruning once more needs if what is left of each FFN is trained: in addition to the last pruning,
    what FFNs have learnt, the mini-batches, and Adam's state for an FFN. What enters a site is gone while an
    FFN learns."""
    config, settings, itemsize, n = load
    pruned, passes = last_pruning_need(load), settings.pruning.reconstruct
    kept, entering = 1 - min(settings.sparsity), entering_bytes(load)
    # The dense FFN makes the targets, and the trained one, still in dense shapes, the output. A step is three
    # passes.
    runs = 2 + 3 * passes * kept
    return pruned._replace(
        stage="reconstruction",
        weights=pruned.weights + (0 if settings.offload else learnt_bytes(config, itemsize) / n),
        text=pruned.text - entering,
        working=max(pruned.working + entering, reconstruction_working(load)),
        flops=pruned.flops + runs * calibration_tokens(settings) * ffn_flops(config),
    )


def ffn_flops(config: ModelConfig) -> float:
    """FLOPs per token in all FFNs of a dense model."""
    units = unit_counts(config)
    return block_flops(config, units, 1) - block_flops(config, units * [[1], [0]], 1)


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
    if cuts_models(settings):
        # Levels of heads that cost as much as denser ones are left out of a copy.
        levels *= 1 + site_channels(config)[0] / sum(site_channels(config))
    supernet = share_held(levels, load)
    return Need(name, weights, supernet, pool_bytes(load), working, flops)


def search_need(search: Search, sparsity: float, load: Load) -> Need:
    """What a search of a round needs: the residual of the trunk before every layer, and candidates; for
    slopes, a backward pass at full width."""
    config, settings, _, _ = load
    length, units = settings.data.search_length, unit_counts(config)
    with guarded(search, "queries"):
        asked = search.queries(planned_space(config, settings))
    # Forward, recomputed, and backward: to the inputs of all products, and the weights of the two sites.
    share = level_bytes(config, 1) / count_parameters(config)[0]
    of_slopes = (3 + share) * block_flops(config, units, length) + 3 * head_flops(config)
    of_scores = model_flops(config, kept_units(config, sparsity), 1, length)
    flops = sum(
        each.candidates * each.sequences * each.times * length * (of_slopes if each.slopes else of_scores)
        for each in asked
    )
    working = max(
        slopes_working(each.sequences * length, load)
        if each.slopes
        else scores_working(each.candidates * each.sequences * length, load)
        for each in asked
    )
    return searched_need(search.name, working, flops, load)


def slopes_working(tokens: int, load: Load) -> float:
    """Bytes per device for slopes on this many tokens."""
    config, settings, itemsize, n = load
    length = settings.data.search_length
    together = max(length, SLOPE_TOKENS // length * length)
    kept = share_held(config.depth, load) * together * config.hidden * itemsize
    if settings.offload:
        kept += tokens / n * config.hidden * itemsize
    # For a layer, a copy of its levels, and the chosen one: as stored, as used, and its slope.
    levels = (settings.rounds.levels / n + 3) * level_bytes(config, itemsize) / config.depth
    layers = levels + 2 * layer_working(together, length, load)
    return kept + max(layers, head_working(together, load))


def scores_working(tokens: int, load: Load) -> float:
    """Bytes per device for scores of candidates, at most this many candidate-tokens at a time."""
    config, settings, itemsize, n = load
    length = settings.data.search_length
    together = max(length, BATCH_TOKENS // length * length)
    states = (share_held(config.depth, load) + 1) * together * config.hidden * itemsize
    if settings.offload:
        # The residuals of all candidates before a layer.
        states += tokens * config.hidden * itemsize / n
    chosen = level_bytes(config, itemsize) / config.depth if n > 1 else 0
    layer = chosen + layer_working(together, length, load)
    return states + max(layer, head_working(together, load))


def evaluation_need(sparsity: float, load: Load) -> Need:
    """What measuring a pruned model needs, with the dense one in memory."""
    config, settings, itemsize, n = load
    length, tokens = settings.data.evaluation_length, evaluation_tokens(settings)
    together = min(max(length, BATCH_TOKENS), -(-tokens // n))
    working = max(layer_working(together, length, load), head_working(together, load))
    weights = (1 - sparsity) * weight_bytes(load) + held_bytes(load)
    flops = model_flops(config, kept_units(config, sparsity), tokens, length)
    levels = settings.rounds.levels * level_bytes(config, itemsize) / n
    supernet = share_held(levels, load) if cuts_models(settings) else 0
    return Need("evaluation", weights, supernet, 0, working, flops)


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
    # Without a refit, the first supernet is built again for the uniform model, unless it is at hand as the
    # only one. If it is shared, it is also built again for the model that is found.
    if rounds.refit:
        again = 0
    elif rounds.rounds > 1:
        again = 1
    else:
        again = 0 if cuts_models(settings) else 2
    stages = [
        *dense,
        (first, 1 + targets * again),
        (later, targets * (rounds.rounds - 1)),
        *((search_need(search, sparsity, load), targets * rounds.rounds) for search in settings.search),
        (single, 2 * targets if rounds.refit else 0),
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
