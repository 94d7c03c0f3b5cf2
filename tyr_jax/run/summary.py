"""What a run found for a target: its `summary.json`."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tyr_jax import __version__
from tyr_jax.data import fingerprint
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import active_size, all_specs, count_parameters
from tyr_jax.options import as_json
from tyr_jax.pruning.prices import Pricing
from tyr_jax.run.measure import figures
from tyr_jax.run.pipeline import Outcome, Pruned
from tyr_jax.run.rounds import by_kind
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.records import (
    PRUNED,
    Damped,
    Health,
    ModelRecord,
    PrunedModel,
    Size,
    Sparsity,
    Summary,
    Text,
    Units,
)

PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


def size(config: ModelConfig, dtype: np.dtype) -> Size:
    """Parameters inside the blocks, parameters in total, and the bytes that these take in `dtype`. Of a
    mixture of experts, also the parameters that a token uses."""
    block, total = count_parameters(config)
    used = {"active_parameters": sum(active_size(spec, config) for spec in all_specs(config))}
    return Size(
        block_parameters=block,
        parameters=total,
        **(used if config.experts else {}),
        bytes=total * dtype.itemsize,
    )


def units(outcome: Outcome, pruned: Pruned) -> dict[str, Units]:
    """For each kind: the units it had, keeps and loses, and the resulting sparsity."""
    result = {}
    config = outcome.dense.model.config
    nouns = {kind.name: kind.noun for kind in outcome.run.settings.pruning.site_kinds(config)}
    for kind, layers in zip(outcome.dense.kinds, pruned.kept, strict=True):
        total, kept = int(kind.most(config.depth).sum()), int(layers.sum())
        lost, share = total - kept, 1 - kept / total
        result[kind.name] = Units(total=total, kept=kept, removed=lost, sparsity=share, noun=nouns[kind.name])
    return result


def parameters_removed(outcome: Outcome) -> float:
    """Share of the blocks' parameters that the final model lacks, or that are zero in the masked layout."""
    dense = count_parameters(outcome.dense.model.config)[0]
    return 1 - outcome.final.block_parameters / dense


def resources_left(outcome: Outcome) -> dict[str, float]:
    """The share that the final model's blocks take of every limited resource, relative to the dense model's.
    In the masked layout they take all of it."""
    dense, final = outcome.dense.model.config, outcome.final.config
    pricings = {name: Pricing.of(dense, outcome.run.settings.pruning, name) for name in outcome.target.limits}
    return {name: pricing.blocks(final.layers) / pricing.blocks() for name, pricing in pricings.items()}


def describe(outcome: Outcome, pruned: Pruned) -> PrunedModel:
    """One pruned model: units per layer, sparsity obtained, size and quality."""
    return PrunedModel(
        kept=by_kind(outcome.dense.kinds, pruned.kept),
        units=units(outcome, pruned),
        size=size(pruned.config, outcome.dense.dtype),
        quality=figures(pruned.quality),
        sample=pruned.sample,
    )


def health(events: EventLog) -> Health:
    """What a run had to work around: sites whose damping was raised because their Hessian could not be
    inverted accurately (to what, and in which stage), and the number of candidates whose objective was not
    finite."""
    # An interrupted run logs a problem again if the work in which it met it was not saved.
    raised = {(entry["stage"], entry["site"]): entry for entry in events.written("damping raised")}
    lost = {(entry["stage"], entry["step"]): entry for entry in events.written("objective not finite")}
    return Health(
        damping_raised=[
            Damped(**{name: each[name] for name in Damped.model_fields}) for each in raised.values()
        ],
        objectives_not_finite=sum(entry["candidates"] for entry in lost.values()),
    )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of this package, of Python, and of `packages`."""
    own = {"tyr_jax": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds per stage, rounded to a tenth."""
    return {name: round(value, 1) for name, value in seconds.items()}


def summarise(outcome: Outcome, arguments: Sequence[str]) -> Summary:
    """Everything needed to judge and to repeat what a run did for one target."""
    dense, settings = outcome.dense, outcome.run.settings
    texts = {
        "calibration": dense.splits.calibration,
        "search": dense.splits.search,
        "choice": dense.splits.choice,
        **dense.splits.evaluation,
    }
    pruned = {name: getattr(outcome, name) for name in PRUNED}
    return Summary(
        arguments=list(arguments),
        settings=as_json(settings),
        versions=versions(PACKAGES),
        device=f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        sparsity=Sparsity(
            asked=outcome.target.sparsity,
            budget=settings.pruning.budget,
            parameters=parameters_removed(outcome),
            left=resources_left(outcome),
            **{kind: each.sparsity for kind, each in units(outcome, outcome.final).items()},
        ),
        base_model=as_json(dense.model.origin),
        distribution=by_kind(dense.kinds, outcome.final.kept),
        dense=ModelRecord(
            size=size(dense.model.config, dense.model.stored_dtype),
            quality=figures(dense.quality),
            sample=dense.sample,
        ),
        **{name: model and describe(outcome, model) for name, model in pruned.items()},
        written=outcome.written,
        choice=outcome.chosen[1],
        rounds=outcome.rounds,
        health=health(outcome.run.events),
        texts={
            name: Text(
                sequences=len(tokens),
                length=int(np.shape(tokens)[1]),
                sha256=fingerprint(tokens),
                source=dense.splits.sources.get(name),
                calibrated=name in dense.splits.calibrated,
            )
            for name, tokens in texts.items()
        },
        seconds=rounded(outcome.run.progress.timings),
        shared_seconds=rounded(outcome.run.progress.shared),
    )
