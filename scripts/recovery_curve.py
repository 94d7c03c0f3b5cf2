"""How much recovery gains: quality against training tokens, for several ways to train.

Each point is a training of its own, with the whole learning-rate schedule. An interrupted training continues,
and a finished one is not repeated. Usage:

  python scripts/recovery_curve.py runs/demo --data builtin wikipedia.txt --evaluation wikitext-2-raw-test.txt
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import tyro
from jobs import make
from markdown_table import print_header, print_row

from tyr_jax.cli import command, finetune
from tyr_jax.files import write_json


@dataclasses.dataclass(frozen=True)
class Curve:
    """The trainings of the curve."""

    pruned: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """The model to train: a directory that `python -m tyr_jax.prune` has written."""
    teacher: str = "builtin"
    """The dense model."""
    data: tuple[str, ...] = ("builtin",)
    """Text to train on."""
    evaluation: tuple[str, ...] = ()
    """Further texts to measure on."""
    tokens: tuple[int, ...] = (30_000, 100_000, 300_000, 1_000_000)
    """Tokens to train on."""
    ways: tuple[str, ...] = ("lora", "full", "full muon")
    """What is trained, and by which optimiser if not AdamW. A number is the learning rate."""
    options: str = ""
    """More options of `python -m tyr_jax.finetune`, in one argument: --options="--step-tokens 4096"."""
    results: Path = Path("runs/recovery_curve")
    """Directory of all models."""


def flags(way: str) -> list[str]:
    """Options of a way to train, such as `full muon 0.001`."""
    found = []
    for word in way.split():
        if word in ("lora", "full"):
            found += ["--method", word]
        elif word in ("adamw", "muon"):
            found += ["--optimizer", word]
        else:
            found += ["--learning-rate", word]
    return found


def run(curve: Curve, way: str, tokens: int) -> dict[str, Any]:
    """Results of a training: tokens, learning rate, perplexity and KL by model and text, seconds by stage."""
    output = curve.results / f"{way.replace(' ', '-')}-{tokens}"
    arguments = [curve.pruned, "--teacher", curve.teacher, "--data", *curve.data, "--tokens", str(tokens)]
    if curve.evaluation:
        arguments += ["--evaluation", *curve.evaluation]
    arguments += [*flags(way), *curve.options.split()]
    make(finetune.main, arguments, output, [output / "recovery.json"])
    record = json.loads((output / "recovery.json").read_text())
    return {name: record[name] for name in ("trained_tokens", "learning_rate", "quality", "seconds")}


def closed(quality: dict[str, Any], text: str) -> float:
    """The share of the log-perplexity gap between the dense and the pruned model that training has closed."""
    dense, pruned, recovered = (
        math.log(quality[model][text]["perplexity"]) for model in ("dense", "pruned", "recovered")
    )
    return (pruned - recovered) / (pruned - dense)


def main(curve: Curve) -> None:
    """Run the missing trainings, write the results to `results.json`, and print a row for each."""
    curve.results.mkdir(parents=True, exist_ok=True)
    found = {way: [run(curve, way, tokens) for tokens in curve.tokens] for way in curve.ways}
    write_json(curve.results / "results.json", found)
    texts = list(found[curve.ways[0]][0]["quality"]["pruned"])
    print_header("trained", "tokens", "tokens/s", *(f"{text}: perplexity, gap closed" for text in texts))
    for way, points in found.items():
        for point in points:
            quality, count = point["quality"], point["trained_tokens"]
            cells = [
                f"{quality['recovered'][text]['perplexity']:.1f}, {closed(quality, text):.0%}"
                for text in texts
            ]
            print_row(way, f"{count:,}", f"{count / point['seconds']['train']:.0f}", *cells)


if __name__ == "__main__":
    command.execute(main, Curve, None, prog="scripts/recovery_curve.py", description=__doc__)
