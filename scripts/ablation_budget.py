"""What exchange between heads and neurons gains: equal shares of both, beside one budget of parameters.

  python scripts/ablation_budget.py --evaluation wikitext-2-raw-test.txt news.txt

For each seed, `python -m tyr_jax.prune` runs with `--budget units`, where heads and neurons have budgets of
their own, as in the paper, and with `--budget parameters`, where they compete, for as many block parameters
as the first has left. Runs that exist are not repeated.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jobs import make
from markdown_table import kl_cell, print_header, print_row

from tyr_jax.cli import command, prune
from tyr_jax.files import write_json
from tyr_jax.settings import WIKITEXT, Preset

Found = dict[str, dict[str, dict[str, Any]]]
"""Size and quality of the models of a seed, by target, budget and model."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What to compare, and on what."""

    model: str = "builtin"
    """The dense model."""
    sparsities: tuple[float, ...] = (0.25, 0.5)
    """Shares of heads and of neurons to remove. The other budget removes as many parameters."""
    preset: Preset = "quick"
    """Preset of every run."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/ablation_budget")
    """Directory of all models."""


def run(asked: Ablation, budget: str, sparsities: list[float], seed: int) -> list[dict[str, Any]]:
    """The summaries of a run, one for each target."""
    output = asked.results / f"{budget}-seed{seed}"
    targets = [f"{sparsity:.5f}" for sparsity in sparsities]
    made = [output / f"{float(target):g}" for target in targets] if len(targets) > 1 else [output]
    options = ["--model", asked.model, "--preset", asked.preset, "--sparsity", *targets, "--seed", str(seed)]
    options += ["--budget", budget, "--evaluation", *asked.evaluation, *asked.options.split()]
    make(prune.main, options, output, [one / "summary.json" for one in made])
    return [json.loads((one / "summary.json").read_text()) for one in made]


def compared(asked: Ablation, seed: int) -> Found:
    """The results of a seed."""
    units = run(asked, "units", list(asked.sparsities), seed)
    left = [one["uniform"]["size"]["block_parameters"] for one in units]
    dense = units[0]["dense"]["size"]["block_parameters"]
    # A little less: no layer must be one step smaller because a parameter is missing.
    gone = [1 - blocks / dense - 1e-5 for blocks in left]
    parameters = run(asked, "parameters", gone, seed)
    return {
        f"{sparsity:g}": {
            budget: {model: summary[model] for model in ("uniform", "searched")}
            for budget, summary in (("units", equal), ("parameters", exchanged))
        }
        for sparsity, equal, exchanged in zip(asked.sparsities, units, parameters, strict=True)
    }


def main(asked: Ablation) -> None:
    """Make the missing runs, write what they found to `results.json`, and print a table for each target."""
    asked.results.mkdir(parents=True, exist_ok=True)
    found = [compared(asked, seed) for seed in asked.seeds]
    write_json(asked.results / "results.json", dict(zip(map(str, asked.seeds), found, strict=True)))
    for target, budgets in found[0].items():
        texts = budgets["units"]["uniform"]["quality"]
        columns = (f"{text}: KL (span), perplexity" for text in texts)
        print_header(f"at {float(target):.0%}", "distribution", "parameters, M", *columns)
        for budget in budgets:
            for model in ("uniform", "searched"):
                each = [of_seed[target][budget][model] for of_seed in found]
                size = max(one["size"]["block_parameters"] for one in each) / 1e6
                cells = (kl_cell([one["quality"][text] for one in each]) for text in texts)
                print_row(f"`--budget {budget}`", model, f"{size:.2f}", *cells)


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="scripts/ablation_budget.py", description=__doc__)
