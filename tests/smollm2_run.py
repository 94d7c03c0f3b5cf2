"""SmolLM2 pruned by the whole method, in about a minute."""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from reference import select

from tyr_jax.cli.prune import parse
from tyr_jax.model.spec import Params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.run import pipeline
from tyr_jax.run.pipeline import Outcome
from tyr_jax.run.prepare import Run
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress

ARGUMENTS = shlex.split("""--sparsity 0.5 --calibration builtin --sequence-length 256 --search-length 512
    --calibration-tokens 1024 --search-tokens 2048 --evaluation-length 256 --evaluation-windows 6
    --rounds 1 --levels 17
    --interval 0.0625 --descent.generations 1 --descent.tokens 512 --generations 2 --offspring 4 --survivors 1
    --stage-tokens 1024""")
"""A small part of what a preset spends: enough to show the direction."""


class Found(NamedTuple):
    """The outcome of a run, and its final model at full width with pruned weights set to zero."""

    outcome: Outcome
    masked: Params


def prune(events: Path) -> Found:
    """Run at 50%, and measure on text that neither calibration nor search saw."""
    masked: list[Params] = []

    def compress_and_keep(params: Params, supernet: Supernet, levels: np.ndarray, *rest: Any) -> Any:
        masked.append(select(params, supernet, levels))
        return compress(params, supernet, levels, *rest)

    with pytest.MonkeyPatch.context() as patch, EventLog(events) as log, Progress() as progress:
        patch.setattr(pipeline, "compress", compress_and_keep)
        (outcome,) = pipeline.prune_targets(Run(parse(ARGUMENTS).settings, progress, log))
    return Found(outcome, masked[-1])
