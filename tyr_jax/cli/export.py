"""Write a model, dense or pruned, as a GGUF file: `python -m tyr_jax.export`.

It runs in llama.cpp and whatever is built on it, as they come: layers that
differ are written as an architecture that they know.

Examples:

  python -m tyr_jax.export pruned
      pruned/model-f16.gguf

  python -m tyr_jax.export pruned --quantize q4_k_m --output small.gguf
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tyr_jax.cli import command
from tyr_jax.errors import require
from tyr_jax.io import deci, llama_cpp
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.spec import all_specs
from tyr_jax.workspace.output import staged_file
from tyr_jax.workspace.progress import Progress

Quantize = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m"
]


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What to write, and where."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """The file to write (default: model-TYPE.gguf, in the model's directory if it has one)."""
    overwrite: bool = False
    """Replace a file that exists, once the new one is complete."""
    format: Literal["gguf"] = "gguf"
    """Its format."""
    quantize: Quantize = "f16"
    """Type of the matrices; those with a `k` are llama.cpp's own work, and need `tyr-jax[llama]`."""
    neuron_multiple: int = 1
    """Fill FFN widths up with zeros to a multiple of this, beyond what the type itself needs; 256 lets
    llama.cpp's tools quantise the file further."""


def output_of(settings: ExportSettings) -> Path:
    """The file to write."""
    directory = Path(settings.model)
    name = f"model-{settings.quantize}.{settings.format}"
    return settings.output or (directory / name if directory.is_dir() else Path(name))


def write(model: LoadedModel, path: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write the GGUF file, through a wider one where llama.cpp is to quantise it."""
    direct = settings.quantize in deci.TYPES
    kind, multiple = (settings.quantize, 1) if direct else ("f32", llama_cpp.MULTIPLE)
    wide = path if direct else path.with_name(f"{path.name}.f32")
    try:
        with progress.stage("write", len(all_specs(model.config)), "tensors") as stage:
            deci.write_gguf(
                wide,
                model.config,
                model.params,
                model.tokenizer,
                kind,
                max(multiple, settings.neuron_multiple),
                lambda name: stage.advance(),
            )
        if not direct:
            with progress.stage("quantise", 1, "files") as stage:
                llama_cpp.quantise_file(wide, path, settings.quantize)
                stage.advance()
    finally:
        if not direct:
            wide.unlink(missing_ok=True)


def run(settings: ExportSettings) -> None:
    """Read the model, write the file.

    Raises:
        UserError: anything about the model, the output or the settings that cannot work.
    """
    require(settings.neuron_multiple >= 1, "--neuron-multiple", settings.neuron_multiple, "at least 1")
    if settings.quantize in llama_cpp.TYPES:
        llama_cpp.bindings()
    output = output_of(settings)
    with staged_file(output, settings.overwrite) as path, Progress() as progress:
        with progress.stage("load model", 1, "models") as stage:
            model = load_model(settings.model)
            stage.advance()
        write(model, path, settings, progress)
        size = path.stat().st_size
    print(f"written to {output} ({size / 1e6:.0f} MB): run with `llama-cli -m {output}`")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the export."""
    command.execute(run, ExportSettings, arguments, prog="python -m tyr_jax.export", description=__doc__)


if __name__ == "__main__":
    main()
