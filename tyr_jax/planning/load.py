"""What is planned, and its size: numbers of a model and of its sites, and tokens of the text.

Axis letters: `D` hidden, `F` FFN width, `N` heads, `H` head dim, `S` kinds of site, `L` layers, `E` levels.
"""

import math
from typing import NamedTuple

import numpy as np

from tyr_jax.data import OPENING, choice_size, evaluation_sources
from tyr_jax.model.cost import unit_counts
from tyr_jax.model.spec import UNIT_AXES, ModelConfig, Sublayer
from tyr_jax.model.tensors import block_specs, count_parameters
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.target import target_of
from tyr_jax.runtime.batches import BATCH_TOKENS
from tyr_jax.search.contract import SearchSpace
from tyr_jax.settings import Settings
from tyr_jax.space import LevelGrid, centre_distribution, level_grid

FLOAT = 4
"""Bytes of a number in the dense model's predictions, in XᵀX and in the computation of softmaxes."""


class Load(NamedTuple):
    """What is planned: pruning a model of `config` as `settings` say, on `n` devices, with weights and
    activations of `itemsize` bytes per number."""

    config: ModelConfig
    settings: Settings
    itemsize: int
    n: int


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


def kinds_of(config: ModelConfig) -> tuple[SiteKind, ...]:
    """The kinds of site of a model. Which of several units is removed changes none of the sizes here."""
    return PruningSettings().site_kinds(config)


def site_sizes(config: ModelConfig) -> list[int]:
    """Rows of XᵀX of each of a layer's sites: N·H and F, of one expert."""
    return [kind.gram_shape(config)[-1] for kind in kinds_of(config)]


def site_counts(config: ModelConfig) -> list[int]:
    """How many XᵀX each of a layer's sites has: one, or one for each expert."""
    return [math.prod(kind.gram_shape(config)[:-2]) for kind in kinds_of(config)]


def site_channels(config: ModelConfig) -> list[int]:
    """Input channels of each of a layer's sites, of all experts together."""
    return np.multiply(site_sizes(config), site_counts(config)).tolist()


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
    return FLOAT * share_held(len(kinds_of(config)) * config.depth * config.hidden**2, load) / n


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
    """Tokens that models are measured on, those for the choice between models included."""
    data = settings.data
    choice = math.prod(choice_size(data)) if settings.several_models else 0
    return choice + len(evaluation_sources(data)) * data.evaluation_windows * data.evaluation_length


def ordered_parameters(config: ModelConfig) -> int:
    """Parameters of a dense model that a search holds in the order of removal: those of every tensor with an
    axis of units, except the output projections, of which a supernet has every level."""
    units, outputs = set(UNIT_AXES.values()), {kind.output for kind in kinds_of(config)}
    specs = (spec for layer in range(config.depth) for spec in block_specs(config, layer))
    moved = (spec for spec in specs if units & set(spec.axes) and spec.name not in outputs)
    return sum(math.prod(spec.shape) for spec in moved)


def sublayer_parameters(config: ModelConfig, sublayer: Sublayer) -> int:
    """Parameters of a layer's attention or FFN in a dense model."""
    return sum(math.prod(spec.shape) for spec in block_specs(config, 0) if spec.sublayer == sublayer)


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


def kept_units(config: ModelConfig, sparsity: float) -> np.ndarray:
    """Heads and neurons of every layer `[S, L]` that a sparsity leaves if it is spread evenly."""
    return (1 - sparsity) * unit_counts(config)
