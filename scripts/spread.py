"""How much a result depends on chance: the same run with several seeds, and with several orders of summation.

A seed draws other text for calibration and search. On another number of devices, sums are taken in another
order, so that only rounding differs (paper, Table 11, for seeds). On a CPU, the devices are virtual. Usage:

  python scripts/spread.py --evaluation wikitext-2-raw-test.txt news.txt

Runs that exist are not repeated.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs import make
from markdown_table import kl_cell, print_header, print_row

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.settings import WIKITEXT, Preset


@dataclasses.dataclass(frozen=True)
class Spread:
    """The runs to compare."""

    model: str = "builtin"
    """The dense model."""
    sparsity: float = 0.25
    """Share of the block parameters to remove."""
    preset: Preset = "quick"
    """Preset of every run."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, each on one device."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Numbers of devices, each with the first seed."""
    options: str = ""
    """More options of `python -m tyr_jax.prune`, in one argument."""
    results: Path = Path("runs/spread")
    """Directory of all models."""


def prune(devices: int, arguments: list[str]) -> None:
    """Run the main job on a number of virtual devices, in a process of its own.

    Raises:
        UserError: The run fails.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command_line = [sys.executable, "-m", "tyr_jax.prune", *arguments]
    if subprocess.run(command_line, env={**os.environ, "XLA_FLAGS": flags.strip()}).returncode:
        raise UserError("a run failed; see its output above")


def run(asked: Spread, seed: int, devices: int) -> dict[str, Any]:
    """The quality of the uniform and the searched model of a run, by model and text."""
    output = asked.results / f"seed{seed}-{devices}-devices"
    options = ["--model", asked.model, "--preset", asked.preset, "--sparsity", str(asked.sparsity)]
    options += ["--seed", str(seed), "--evaluation", *asked.evaluation, *asked.options.split()]
    make(functools.partial(prune, devices), options, output, [output / "summary.json"])
    summary = json.loads((output / "summary.json").read_text())
    return {model: summary[model]["quality"] for model in ("uniform", "searched")}


def main(asked: Spread) -> None:
    """Make the missing runs, write their quality to `results.json`, and print a row per text and model."""
    asked.results.mkdir(parents=True, exist_ok=True)
    first = asked.seeds[0]
    by_seed = {seed: run(asked, seed, 1) for seed in asked.seeds}
    by_devices = {devices: run(asked, first, devices) for devices in asked.devices}
    write_json(asked.results / "results.json", {"seeds": by_seed, "devices": by_devices})
    print_header("text", "model", "over seeds: KL (span), perplexity", "over orders of summation")
    for text in by_seed[first]["uniform"]:
        for model in ("uniform", "searched"):
            groups = by_seed.values(), by_devices.values()
            print_row(text, model, *(kl_cell([each[model][text] for each in group]) for group in groups))


if __name__ == "__main__":
    command.execute(main, Spread, None, prog="python scripts/spread.py", description=__doc__)
