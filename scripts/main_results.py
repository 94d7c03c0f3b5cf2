"""The main results in one command: dense, uniform, searched, reconstructed and recovered at several targets.

For each seed, one run of `python -m tyr_jax.prune` prunes to all targets. With --recovery, `python -m
tyr_jax.finetune` then recovers each of its models. An interrupted run continues, and a finished run is not
repeated. If a finished run was made with other options, name another directory. Usage:

  python scripts/main_results.py --calibration builtin wikipedia.txt self@2 \\
      --evaluation wikitext-2-raw-test.txt news.txt
"""

import dataclasses
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from jobs import make
from markdown_table import print_header, print_row

from tyr_jax.cli import command, finetune, prune
from tyr_jax.files import write_json
from tyr_jax.settings import WIKITEXT, Preset

MODELS = "uniform", "searched", "reconstructed", "recovered"
"""Models in the order in which they are made."""


@dataclasses.dataclass(frozen=True)
class Results:
    """The runs of the table."""

    model: str = "builtin"
    """The dense model."""
    sparsities: tuple[float, ...] = (0.2109, 0.4463)
    """Shares of the block parameters to remove. For SmolLM2, the default removes as many parameters as the
    paper's budgets, which are 25% and 50% of units."""
    calibration: tuple[str, ...] = ("builtin", "self")
    """Calibration text."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    seeds: tuple[int, ...] = (0,)
    """Seeds. Each seed has runs of its own."""
    preset: Preset = "standard"
    """Preset of every run."""
    reconstruct: int = 4
    """Passes of reconstruction; 0 skips it."""
    recovery: str = ""
    """Options of `python -m tyr_jax.finetune` in one argument, such as --recovery="--tokens 400000". By
    default nothing is recovered."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/main_results")
    """Directory of all models."""


def run_seed(asked: Results, seed: int) -> dict[str, dict[str, Any]]:
    """Results of the runs of a seed, by target and model, including the dense model."""
    targets = [f"{sparsity:g}" for sparsity in asked.sparsities]
    output = asked.results / f"seed{seed}"
    made = [output / target if len(targets) > 1 else output for target in targets]
    texts = ["--calibration", *asked.calibration, "--evaluation", *asked.evaluation]
    options = ["--model", asked.model, "--preset", asked.preset, "--sparsity", *targets, "--seed", str(seed)]
    options += [*texts, "--reconstruct", str(asked.reconstruct), *asked.options.split()]
    make(prune.main, options, output, [one / "summary.json" for one in made])
    found = {}
    for target, pruned in zip(targets, made, strict=True):
        summary = json.loads((pruned / "summary.json").read_text())
        found[target] = {model: summary[model] for model in ("dense", *MODELS) if summary.get(model)}
        found[target]["written"] = summary["written"]
        found[target]["seconds"] = {"pruned": summary["seconds"], "shared": summary["shared_seconds"]}
        if asked.recovery:
            recovered = asked.results / f"seed{seed}-{target}-recovered"
            taught = [str(pruned), "--teacher", asked.model, "--evaluation", *asked.evaluation]
            taught += ["--seed", str(seed), *asked.recovery.split()]
            make(finetune.main, taught, recovered, [recovered / "recovery.json"])
            recovery = json.loads((recovered / "recovery.json").read_text())
            written = summary[summary["written"]]
            quality = recovery["quality"]["recovered"]
            found[target]["recovered"] = {"size": written["size"], "quality": quality}
            found[target]["seconds"]["recovered"] = recovery["seconds"]
    return found


def cell(qualities: list[dict[str, float]]) -> str:
    """Perplexity and KL of a model on a text: medians over seeds. With several seeds, also the span of KL."""
    kl = [quality["kl"] for quality in qualities]
    span = f" ({min(kl):.3f}–{max(kl):.3f})" if len(kl) > 1 else ""
    perplexity = statistics.median(quality["perplexity"] for quality in qualities)
    return f"{perplexity:.1f}, {statistics.median(kl):.3f}{span}"


def gain_cell(models: list[dict[str, Any]], text: str) -> str:
    """How far the search changes the KL on a text: the median over seeds, and the span of several."""
    kl = [[one[model]["quality"][text]["kl"] for model in ("uniform", "searched")] for one in models]
    changes = [searched / uniform - 1 for uniform, searched in kl]
    span = f" ({min(changes):+.0%} to {max(changes):+.0%})" if len(changes) > 1 else ""
    return f"{statistics.median(changes):+.0%}{span}".replace("-", "−")


def choice_cell(models: list[dict[str, Any]]) -> str:
    """Which models were chosen and written; of several seeds, how many of each."""
    counts = Counter(one["written"] for one in models)
    return ", ".join(f"{name} ({count})" if len(models) > 1 else name for name, count in counts.items())


def print_markdown(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print a row per target and text from the results `found`, which are by seed, target and model."""
    first, *_ = found.values()
    shown = [model for model in MODELS if all(model in models for models in first.values())]
    of_models = (f"{model}: perplexity, KL" for model in shown)
    print_header("block parameters", "text", "dense", *of_models, "KL by search", "written")
    for target, models in first.items():
        size = models[shown[-1]]["size"]["block_parameters"]
        of_seeds = [of_seed[target] for of_seed in found.values()]
        for text, dense in models["dense"]["quality"].items():
            cells = [cell([one[model]["quality"][text] for one in of_seeds]) for model in shown]
            cells += [gain_cell(of_seeds, text), choice_cell(of_seeds)]
            print_row(f"{size / 1e6:.1f} M ({target})", text, f"{dense['perplexity']:.1f}", *cells)


def main(asked: Results) -> None:
    """Make the missing runs, write the results to `results.json`, and print the table in Markdown."""
    asked.results.mkdir(parents=True, exist_ok=True)
    found = {str(seed): run_seed(asked, seed) for seed in asked.seeds}
    write_json(asked.results / "results.json", found)
    print_markdown(found)


if __name__ == "__main__":
    command.execute(main, Results, None, prog="scripts/main_results.py", description=__doc__)
