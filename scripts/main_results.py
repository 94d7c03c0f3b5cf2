"""The main results: dense, uniform, searched, reconstructed and recovered, at several targets, in one go.

All targets are one run of the main job, each of its models is recovered by `python -m tyr_jax.finetune`, and
seeds make runs of their own. What is interrupted goes on, and what is there already is not made again, unless
it was made with other options: then another directory is asked for. Rerun:

  python scripts/main_results.py --calibration builtin speeches.txt self@2 \\
      --evaluation wikitext-2-raw-test.txt news.txt
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from jobs import make
from markdown_table import print_header, print_row

from tyr_jax.cli import command, finetune, prune
from tyr_jax.files import write_json
from tyr_jax.settings import WIKITEXT, Preset

MODELS = "uniform", "searched", "reconstructed", "recovered"
"""In the order in which they are made."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Which runs make the table."""

    model: str = "builtin"
    """The dense model."""
    sparsities: tuple[float, ...] = (0.2109, 0.4463)
    """Shares of the blocks' parameters to remove: of SmolLM2, as many as the paper's 25 % and 50 % of
    units."""
    calibration: tuple[str, ...] = ("builtin", "self")
    """Calibration text."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, beside what is held out of the calibration text."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each makes runs of its own."""
    preset: Preset = "standard"
    """Preset of every run."""
    reconstruct: int = 4
    """Passes of reconstruction; 0 leaves it out."""
    recovery: str = ""
    """Options of `python -m tyr_jax.finetune` in one argument, such as --recovery="--tokens 400000"; without
    any, nothing is recovered."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/main_results")
    """Directory of all models."""


def run_seed(asked: Results, seed: int) -> dict[str, dict[str, Any]]:
    """What the runs of a seed found, by target and model, the dense one among them."""
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
    """Perplexity and KL of a model on a text: medians over seeds, and the span of KL where there are any."""
    kl = [quality["kl"] for quality in qualities]
    span = f" ({min(kl):.3f}–{max(kl):.3f})" if len(kl) > 1 else ""
    perplexity = statistics.median(quality["perplexity"] for quality in qualities)
    return f"{perplexity:.1f}, {statistics.median(kl):.3f}{span}"


def print_markdown(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print a row per target and text of what was `found` by seed, target and model."""
    first, *_ = found.values()
    shown = [model for model in MODELS if all(model in models for models in first.values())]
    print_header("block parameters", "text", "dense", *(f"{model}: perplexity, KL" for model in shown))
    for target, models in first.items():
        size = models[shown[-1]]["size"]["block_parameters"]
        for text, dense in models["dense"]["quality"].items():
            cells = [
                cell([of_seed[target][model]["quality"][text] for of_seed in found.values()])
                for model in shown
            ]
            print_row(f"{size / 1e6:.1f} M ({target})", text, f"{dense['perplexity']:.1f}", *cells)


def main(asked: Results) -> None:
    """Make the missing runs, write what they found to `results.json`, then print the table in Markdown."""
    asked.results.mkdir(parents=True, exist_ok=True)
    found = {str(seed): run_seed(asked, seed) for seed in asked.seeds}
    write_json(asked.results / "results.json", found)
    print_markdown(found)


if __name__ == "__main__":
    command.execute(main, Results, None, prog="scripts/main_results.py", description=__doc__)
