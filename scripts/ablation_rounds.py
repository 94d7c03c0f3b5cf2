"""Coarse to fine: the same search in one round, and shared out over several with ever finer levels.

  python scripts/ablation_rounds.py --evaluation wikitext-2-raw-test.txt news.txt

Each row is a run of the main job. After every round, layers are pruned again around what the search found, to
levels half as far apart; the generations are shared out so that all rows search equally long. Descent is
left out, because it would come once in every round. Rerun: the command above. Runs that exist are not
repeated.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jobs import make
from markdown_table import kl_cell, print_header, print_row

from tyr_jax.cli import command, prune
from tyr_jax.errors import require
from tyr_jax.files import write_json
from tyr_jax.settings import WIKITEXT, Preset


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What to compare, and on what."""

    model: str = "builtin"
    """The dense model."""
    sparsity: float = 0.5
    """Share of the block parameters to remove."""
    preset: Preset = "quick"
    """Preset of every run."""
    rounds: tuple[int, ...] = (1, 2, 4)
    """Numbers of rounds to compare."""
    generations: int = 12
    """Generations of all rounds together."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/ablation_rounds")
    """Directory of all models."""


def run(asked: Ablation, rounds: int, seed: int) -> dict[str, Any]:
    """The summary of a run."""
    output = asked.results / f"{rounds}-rounds-seed{seed}"
    share = asked.generations // rounds
    options = ["--model", asked.model, "--preset", asked.preset, "--sparsity", str(asked.sparsity)]
    options += ["--rounds", str(rounds), "--generations", str(share), "--descent-steps", "0"]
    options += ["--seed", str(seed)]
    options += ["--evaluation", *asked.evaluation, *asked.options.split()]
    make(prune.main, options, output, [output / "summary.json"])
    return json.loads((output / "summary.json").read_text())


def row_of(label: str, step: str, models: list[dict[str, Any]]) -> None:
    """Print the medians of KL and perplexity over seeds, and the span of KL, of models on every text."""
    cells = [kl_cell([model["quality"][text] for model in models]) for text in models[0]["quality"]]
    print_row(label, step, *cells)


def main(asked: Ablation) -> None:
    """Make the missing runs, write what they found to `results.json`, and print the table."""
    for rounds in asked.rounds:
        divides = rounds >= 1 and asked.generations >= 1 and asked.generations % rounds == 0
        require(divides, "--rounds", rounds, f"a divisor of --generations ({asked.generations})")
    asked.results.mkdir(parents=True, exist_ok=True)
    found = {rounds: [run(asked, rounds, seed) for seed in asked.seeds] for rounds in sorted(asked.rounds)}
    kept = {
        str(rounds): [{"rounds": each["rounds"], "searched": each["searched"]} for each in summaries]
        for rounds, summaries in found.items()
    }
    write_json(asked.results / "results.json", kept)
    first, *_ = found.values()
    texts = (f"{text}: KL (span), perplexity" for text in first[0]["dense"]["quality"])
    print_header("rounds", "finest step: heads, neurons", *texts)
    row_of("uniform", "", [each["uniform"] for each in first])
    for rounds, summaries in found.items():
        step = summaries[0]["rounds"][-1]["step"]
        row_of(str(rounds), f"{step['attention']}, {step['ffn']}", [each["searched"] for each in summaries])


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="scripts/ablation_rounds.py", description=__doc__)
