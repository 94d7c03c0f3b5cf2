"""Coarse to fine: searches in several rounds with ever finer levels, and one search among fine levels.

  python scripts/ablation_rounds.py --evaluation wikitext-2-raw-test.txt news.txt

Each row is a run of `python -m tyr_jax.prune` that begins at the uniform distribution, without descent, as in
the paper. After every round, layers are pruned again around what the search found, to levels half as far
apart; the generations are shared out so that all rows search equally long. "Search only" has one round with
levels `--fine` apart over the whole range of the first round (paper, Table 6 and Figure 3). In every
generation the best are scored on the whole search text, so that objectives can be compared. Runs that exist
are not repeated.
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
from tyr_jax.settings import PRESETS, WIKITEXT, Preset


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
    fine: float = 0.03125
    """Distance between the levels of "search only", as a fraction of a layer's units."""
    generations: int = 24
    """Generations of all rounds together."""
    offspring: int = 8
    """Offspring in a generation."""
    calibration_tokens: int = 8192
    """Tokens to prune on."""
    search_tokens: int = 4096
    """Tokens of the search text."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/ablation_rounds")
    """Directory of all models."""


def ways(asked: Ablation) -> dict[str, tuple[int, list[str]]]:
    """The number of rounds, and the options, of all that is compared, by name."""
    coarse = PRESETS[asked.preset].rounds
    levels = round((coarse.levels - 1) * coarse.interval / asked.fine) + 1
    found = {"search only": (1, ["--interval", str(asked.fine), "--levels", str(levels)])}
    for rounds in sorted(asked.rounds):
        found[f"{rounds} round{'s' if rounds > 1 else ''}"] = rounds, []
    return found


def run(asked: Ablation, way: str, seed: int) -> dict[str, Any]:
    """The summary of a run."""
    output = asked.results / f"{way.replace(' ', '-')}-seed{seed}"
    rounds, options = ways(asked)[way]
    stages = [max(1, asked.search_tokens // part) for part in (8, 4, 1)]
    options += ["--model", asked.model, "--preset", asked.preset, "--sparsity", str(asked.sparsity)]
    options += ["--rounds", str(rounds), "--generations", str(asked.generations // rounds)]
    options += ["--search", "evolution", "--offspring", str(asked.offspring)]
    options += ["--survivors", "2", "1", "1", "--stage-tokens", *map(str, stages)]
    options += ["--calibration-tokens", str(asked.calibration_tokens)]
    options += ["--search-tokens", str(asked.search_tokens), "--seed", str(seed)]
    options += ["--evaluation", *asked.evaluation, *asked.options.split()]
    make(prune.main, options, output, [output / "summary.json"])
    return json.loads((output / "summary.json").read_text())


def rounds_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a run, each with the seconds that its supernet and its search took."""
    rounds, searches = summary["rounds"], [each["search"] for each in summary["settings"]["search"]]

    def took(number: int, *stages: str) -> float:
        return sum(summary["seconds"][f"round {number}/{len(rounds)}: {stage}"] for stage in stages)

    return [
        each
        | {"seconds": {"supernet": took(each["round"], "supernet"), "search": took(each["round"], *searches)}}
        for each in rounds
    ]


def row_of(label: str, step: str, models: list[dict[str, Any]]) -> None:
    """Print the medians of KL and perplexity over seeds, and the span of KL, of models on every text."""
    cells = [kl_cell([model["quality"][text] for model in models]) for text in models[0]["quality"]]
    print_row(label, step, *cells)


def main(asked: Ablation) -> None:
    """Make the missing runs, write what they found to `results.json`, and print the table."""
    for rounds in asked.rounds:
        divides = rounds >= 1 and asked.generations >= 1 and asked.generations % rounds == 0
        require(divides, "--rounds", rounds, f"a divisor of --generations ({asked.generations})")
    require(0 < asked.fine <= 1, "--fine", asked.fine, "above 0 and at most 1")
    asked.results.mkdir(parents=True, exist_ok=True)
    found = {way: [run(asked, way, seed) for seed in asked.seeds] for way in ways(asked)}
    kept = {
        way: [{"rounds": rounds_of(each), "searched": each["searched"]} for each in summaries]
        for way, summaries in found.items()
    }
    write_json(asked.results / "results.json", kept)
    first, *_ = found.values()
    texts = (f"{text}: KL (span), perplexity" for text in first[0]["dense"]["quality"])
    print_header("rounds", "finest step: heads, neurons", *texts)
    row_of("uniform", "", [each["uniform"] for each in first])
    for way, summaries in found.items():
        step = summaries[0]["rounds"][-1]["step"]
        row_of(way, f"{step['attention']}, {step['ffn']}", [each["searched"] for each in summaries])


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="scripts/ablation_rounds.py", description=__doc__)
