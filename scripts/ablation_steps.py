"""How much each of five additions to local pruning helps: alone, on top of those before it, and at the end.

Measures uniform models, all with the number of block parameters that `--budget units` leaves at each
sparsity. All other settings are those of the `standard` preset, in the row `before` as well. Each of the last
rows leaves out one of the additions that need no training. The texts are from the domains that layers were
pruned on, and from others. Usage:

  python scripts/ablation_steps.py --evaluation wikitext-2-raw-test.txt news.txt
"""

import dataclasses
import functools
import operator
import statistics
from pathlib import Path
from typing import Any

from jobs import Results
from markdown_table import kl_cell, print_header, print_row

from tyr_jax.cli import command
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import count_parameters
from tyr_jax.run import pipeline, prepare
from tyr_jax.settings import PRESETS, WIKITEXT, Settings
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress

STEPS: dict[str, dict[str, Any]] = {
    "budget of parameters": {"budget": "parameters"},
    "errors in nats": {"metric": "fisher"},
    "drift corrected": {"drift": PRESETS["standard"].pruning.drift},
    "self-generated text": {"calibration": PRESETS["standard"].data.calibration},
    "reconstruction": {"reconstruct": 4},
}
"""The settings that each step changes, in the order in which the steps are combined."""

BEFORE: dict[str, Any] = {
    "budget": "units",
    "metric": "none",
    "drift": 0.0,
    "reconstruct": 0,
    "calibration": ("builtin",),
}
"""The same settings before any of the steps."""


def variants() -> dict[str, dict[str, Any]]:
    """The settings of each row of the table."""
    found, added = {"before": BEFORE}, dict(BEFORE)
    for name, change in STEPS.items():
        if added != BEFORE:
            found[f"{name} alone"] = BEFORE | change
        added |= change
        found[f"+ {name}"] = dict(added)
    *untrained, _ = STEPS
    for name in untrained[:-1]:
        others = [STEPS[other] for other in untrained if other != name]
        found[f"all but {name}, without reconstruction"] = functools.reduce(operator.or_, others, BEFORE)
    return found


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What to compare, and on what."""

    model: str = "builtin"
    """The dense model."""
    sparsities: tuple[float, ...] = (0.25, 0.5)
    """Shares of heads and neurons removed from every layer. Budgets of parameters keep as many parameters."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    calibration_tokens: int = 8192
    """Tokens that layers are pruned on."""
    metric_tokens: int = 4096
    """Tokens that errors in nats are computed from."""
    windows: int = 4
    """Windows of 1024 tokens of each text to measure on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the calibration text."""
    results: Path = Path("runs/ablation_steps.json")
    """File of the results. Results that it already has are not computed again. If they were made with other
    settings, name another file."""


def settings_of(
    ablation: Ablation, sparsity: tuple[float, ...], changes: dict[str, Any], seed: int
) -> Settings:
    """Settings of a run of one variant."""
    base = PRESETS["standard"]
    changes = dict(changes)
    data = dataclasses.replace(
        base.data,
        calibration=changes.pop("calibration"),
        calibration_tokens=ablation.calibration_tokens,
        search_tokens=0,
        evaluation=ablation.evaluation,
        evaluation_length=1024,
        evaluation_windows=ablation.windows,
    )
    return dataclasses.replace(
        base,
        model=ablation.model,
        sparsity=sparsity,
        seed=seed,
        data=data,
        pruning=dataclasses.replace(base.pruning, metric_tokens=ablation.metric_tokens, **changes),
        rounds=dataclasses.replace(base.rounds, rounds=0),
    )


def as_parameters(before: dict[str, Any], config: ModelConfig) -> tuple[float, ...]:
    """The share of the block parameters that each of the models `before` lost, by sparsity."""
    blocks = count_parameters(config)[0]
    return tuple(1 - model["parameters"] / blocks for model in before.values())


def measure(settings: Settings, sparsities: tuple[float, ...], progress: Progress) -> dict[str, Any]:
    """Block parameters, and KL and perplexity by text, of the uniform model at each sparsity."""
    with EventLog() as events:
        run = prepare.Run(settings, progress, events)
        outcomes = list(pipeline.prune_prepared(run, prepare.prepare(run)))
    return {
        f"{sparsity:g}": {
            "parameters": model.block_parameters,
            "texts": {name: quality.saved().as_json() for name, quality in model.quality.items()},
        }
        # What reconstruction makes counts here even where the job would not write it.
        for sparsity, outcome in zip(sparsities, outcomes, strict=True)
        for model in [outcome.reconstructed or outcome.final]
    }


def print_markdown(results: dict[str, Any], ablation: Ablation) -> None:
    """Print a table per sparsity: for each text, the medians of KL and perplexity over seeds, and the span of
    KL."""
    for sparsity in (f"{each:g}" for each in ablation.sparsities):
        texts = list(results[f"before, seed {ablation.seeds[0]}"][sparsity]["texts"])
        print_header(f"at {sparsity}", "parameters, M", *(f"{text}: KL (span), perplexity" for text in texts))
        for variant in variants():
            rows = [results[f"{variant}, seed {seed}"][sparsity] for seed in ablation.seeds]
            cells = [kl_cell([row["texts"][text] for row in rows]) for text in texts]
            size = statistics.median(row["parameters"] for row in rows) / 1e6
            print_row(variant, f"{size:.1f}", *cells)


def main(ablation: Ablation) -> None:
    """Compute what is missing, then print the tables."""
    common = dataclasses.replace(ablation, seeds=(), results=Path())
    results, config = Results.of(ablation.results, common), load_model(ablation.model).config
    with Progress() as progress:
        for seed in ablation.seeds:
            for variant, changes in variants().items():
                sparsity = ablation.sparsities
                if changes["budget"] == "parameters":
                    sparsity = as_parameters(results.found[f"before, seed {seed}"], config)
                asked = settings_of(ablation, sparsity, changes, seed)
                progress.log(name := f"{variant}, seed {seed}")
                results.get(name, functools.partial(measure, asked, ablation.sparsities, progress))
    print_markdown(results.found, ablation)


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="scripts/ablation_steps.py", description=__doc__)
