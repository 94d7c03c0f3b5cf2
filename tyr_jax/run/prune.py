"""Pruning as a job: open a workspace, run the pipeline in it, and write the outcomes."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tyr_jax.data import anchored
from tyr_jax.errors import UserError
from tyr_jax.io import hub
from tyr_jax.io.checkpoint import load_model
from tyr_jax.results import PruneResult, write_records, write_weights
from tyr_jax.run.models import GivenModel, read_paths
from tyr_jax.run.pipeline import Outcome, prune_targets
from tyr_jax.run.prepare import Run
from tyr_jax.run.summary import summarise
from tyr_jax.runtime import hosts
from tyr_jax.settings import Settings, validate
from tyr_jax.workspace.job import Request, Workspace, open_workspace
from tyr_jax.workspace.schema import versioned


def anchor(settings: Settings) -> Settings:
    """The settings with sources of text that do not depend on the current directory, so that a summary can be
    used from another one."""
    fields = "calibration", "search_text", "evaluation"
    whole: Any = {name: tuple(map(anchored, getattr(settings.data, name))) for name in fields}
    data = dataclasses.replace(settings.data, **whole)
    return dataclasses.replace(settings, data=data)


def parts_of(settings: Settings) -> list[str]:
    """Name of each target's subdirectory in the output directory; empty for a single target."""
    several = len(settings.sparsity) > 1
    return [f"{sparsity:g}" if several else "" for sparsity in settings.sparsity]


def repositories_of(settings: Settings) -> list[str]:
    """The hub repositories that the targets are to be uploaded to, if any."""
    name = settings.push_to_hub
    return [] if name is None else [f"{name}-{part}" if part else name for part in parts_of(settings)]


def prune(settings: Settings, request: Request, given: GivenModel) -> list[PruneResult]:
    """Prune a model to each of the targets. Nothing is uploaded here, but it is checked first that an upload
    is possible.

    Raises:
        UserError: the settings, the model or the text cannot be used.
    """
    validate(settings)
    if settings.offload and jax.process_count() > 1:
        raise UserError(
            "--offload works on one host only: leave it out; several hosts divide the "
            "weights among their devices"
        )
    if settings.prompt and jax.process_count() > 1:
        raise UserError(
            "--prompt works on one host only: leave it out, and run `python -m tyr_jax.generate` on the "
            "written model there"
        )
    settings = anchor(settings)
    for name in repositories_of(settings) if hosts.is_first() else []:
        hub.check_upload(name, settings.overwrite)
    inputs = read_paths([given], (*settings.data.drawn, *settings.data.evaluation))
    with open_workspace(settings, request, inputs) as workspace:
        run = Run(settings, workspace.progress, workspace.events, workspace.store)
        outcomes = zip(parts_of(settings), prune_targets(run, given), strict=True)
        return [finish(outcome, part, workspace, request.arguments) for part, outcome in outcomes]


def finish(outcome: Outcome, part: str, workspace: Workspace, arguments: Sequence[str]) -> PruneResult:
    """The result for a target, written to its part of the output directory, if there is one."""
    settings, events, model = outcome.run.settings, outcome.run.events, outcome.model
    if workspace.staging is None:
        return PruneResult(lambda: model, versioned(summarise(outcome, arguments)), events)
    write_weights(workspace.staging / part, model, outcome.run.progress)
    summary = summarise(outcome, arguments)
    write_records(workspace.staging / part, summary)
    # Read on demand, so that only one of several models is in memory at a time.
    written = Path(settings.output, part)
    read = functools.partial(
        load_model,
        str(written.resolve()),
        settings.compute_dtype,
        offload=settings.offload,
        ignore_keys=tuple(model.hf_config),
    )
    return PruneResult(read, versioned(summary), events, directory=written)
