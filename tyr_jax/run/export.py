"""Writing a model, dense or pruned, as a GGUF file."""

import dataclasses
from pathlib import Path
from typing import Literal

from tyr_jax.errors import require
from tyr_jax.io import deci, llama_cpp
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.tensors import all_specs
from tyr_jax.run.models import GivenModel, load_shown
from tyr_jax.workspace import manifest
from tyr_jax.workspace.output import staged_file
from tyr_jax.workspace.progress import Progress

Quantize = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m"
]


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """The file to write. (The command line is generated from this class.)"""

    quantize: Quantize = "f16"
    """Type of the matrices; those with a `k` are made by llama.cpp's own quantiser, in `tyr-jax[llama]`."""
    neuron_multiple: int = 1
    """Pad FFN widths with zeros to a multiple of this, beyond what the type itself needs; 256 lets
    llama.cpp's tools quantise the file further."""
    overwrite: bool = False
    """Replace a file that this command wrote, once the new one is complete."""


def default_path(model: str, settings: ExportSettings) -> Path:
    """The file to write if none is named: in the model's directory if it has one, else in the current one."""
    directory, name = Path(model), f"model-{settings.quantize}.gguf"
    return directory / name if directory.is_dir() else Path(name)


def export(given: GivenModel, path: Path, settings: ExportSettings, progress: Progress) -> None:
    """Read a model and write it as a GGUF file.

    Raises:
        UserError: the model, the file or the settings cannot be used.
    """
    require(settings.neuron_multiple >= 1, "--neuron-multiple", settings.neuron_multiple, "at least 1")
    if settings.quantize in llama_cpp.TYPES:
        llama_cpp.bindings()
    with staged_file(path, settings.overwrite, is_ours) as staged, progress:
        model = load_shown(given, progress)
        write(model, staged, settings, progress)


def is_ours(path: Path) -> bool:
    """Whether this package wrote a GGUF file. In a result, whose manifest lists it, it must also be
    unchanged."""
    listed = (path.parent / manifest.Manifest.file).exists()
    return manifest.is_ours(path) if listed else deci.is_ours(path)


def write(model: LoadedModel, path: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write the file. Where llama.cpp quantises it, a temporary float32 file is written first.

    Raises:
        UserError: as `write_gguf`; or the multiple is larger than the widest FFN.
    """
    most = max(llama_cpp.MULTIPLE, *(shape.ffn for shape in model.config.layers))
    asked = settings.neuron_multiple
    require(asked <= most, "--neuron-multiple", asked, f"at most {most}, as many as the widest FFN has")
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
                max(multiple, asked),
                lambda name: stage.advance(),
            )
        if not direct:
            with progress.stage("quantise", 1, "files") as stage:
                llama_cpp.quantise_file(wide, path, settings.quantize)
                stage.advance()
    finally:
        if not direct:
            wide.unlink(missing_ok=True)
