"""What a run will need, from its configuration and settings alone."""

import math

from tyr_jax.config import Settings
from tyr_jax.data import OPENING
from tyr_jax.model.spec import ModelConfig, count_parameters

FLOAT = 4
"""Bytes of a number of the dense model's answers."""


def level_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one level of all sites: the output projections of attention and FFN of every layer."""
    shape = config.dense_shape
    return itemsize * config.depth * config.hidden * (shape.heads * config.head_dim + shape.ffn)


def disk_bytes(config: ModelConfig, settings: Settings, itemsize: int, written: int) -> dict[str, int]:
    """Bytes on disk, by what they are for, at the moment of a run when they are most.

    `itemsize` is that of the weights and residuals in memory, `written` that of the weights written.
    """
    data, targets = settings.data, len(settings.sparsity)
    calibration = data.calibration_tokens + data.calibration_openings * OPENING
    texts = len(data.calibration) + len(data.evaluation)
    searching = settings.rounds.rounds > 0
    search = data.search_tokens if searching else 0
    evaluation = texts * data.evaluation_windows * data.evaluation_length
    answer = FLOAT * (2 * config.hidden + 1)
    observed = FLOAT * config.hidden * len(settings.objective.observed_layers(config.depth))
    level = level_bytes(config, itemsize)
    levels = settings.rounds.levels * (targets if targets > 1 else 1) if searching else 0
    models = targets * (2 if searching else 1)
    refits = level if settings.rounds.refit or not searching else level * levels
    return {
        "supernet": levels * level,
        "residuals": 2 * itemsize * calibration * config.hidden,
        "dense answers": (search + evaluation) * answer + search * (observed + FLOAT),
        "pruned sites": models * refits,
        "models": targets * written * count_parameters(config)[1],
    }


def in_words(count: float) -> str:
    """A number of bytes, such as `1.4 GB`."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
