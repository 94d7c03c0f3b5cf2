"""Write a model, dense or pruned, as a GGUF file: `python -m tyr_jax.export`.

The file runs in stock llama.cpp and in programs built on it: layers that differ
are written in an architecture that they support.

Examples:

  python -m tyr_jax.export pruned
      pruned/model-f16.gguf

  python -m tyr_jax.export pruned --quantize q4_k_m --output small.gguf
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.run.export import ExportSettings


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """What to write, and where."""

    model: command.Model
    settings: command.Flat[ExportSettings]
    reading: command.Flat[command.Reading]
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The file to write (default: model-TYPE.gguf, in the model's directory if it has one)."""
    format: Literal["gguf"] = "gguf"
    """Format of the file."""


def run(asked: ExportArguments) -> None:
    """Read the model, write the file, and print how to run it.

    Raises:
        UserError: a problem with the model, the output or the settings.
    """
    path = api.export_model(asked.reading.named(asked.model), asked.output, settings=asked.settings)
    size = path.stat().st_size
    command.say(f"written to {path} ({size / 1e6:.0f} MB): run with `llama-cli -m {path}`")


def main(arguments: list[str]) -> None:
    """Entry point of the export."""
    command.execute(run, ExportArguments, arguments, prog="python -m tyr_jax.export", description=__doc__)
