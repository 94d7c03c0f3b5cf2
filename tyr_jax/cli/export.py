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
from tyr_jax.run.export import GgufSettings, Quantize
from tyr_jax.run.models import NamedModel


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What to write, and where."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The file to write (default: model-TYPE.gguf, in the model's directory if it has one)."""
    overwrite: bool = GgufSettings.overwrite
    """Replace a file that this command wrote, once the new one is complete."""
    format: Literal["gguf"] = "gguf"
    """Format of the file."""
    quantize: Quantize = GgufSettings.quantize
    """Type of the matrices; those with a `k` are made by llama.cpp's own quantiser, in `tyr-jax[llama]`."""
    neuron_multiple: int = GgufSettings.neuron_multiple
    """Pad FFN widths with zeros to a multiple of this, beyond what the type itself needs; 256 lets
    llama.cpp's tools quantise the file further."""
    family: command.Family = None
    ignore_keys: command.IgnoredKeys = ()


def run(settings: ExportSettings) -> None:
    """Read the model, write the file, and print how to run it.

    Raises:
        UserError: a problem with the model, the output or the settings.
    """
    path = api.export_model(
        NamedModel(settings.model, settings.ignore_keys),
        settings.output,
        quantize=settings.quantize,
        neuron_multiple=settings.neuron_multiple,
        overwrite=settings.overwrite,
    )
    size = path.stat().st_size
    command.say(f"written to {path} ({size / 1e6:.0f} MB): run with `llama-cli -m {path}`")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the export."""
    command.execute(run, ExportSettings, arguments, prog="python -m tyr_jax.export", description=__doc__)


if __name__ == "__main__":
    main()
