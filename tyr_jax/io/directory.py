"""Checks of a model's directory before anything in it is opened: what it may hold and where links may lead.

Text files of a model (configuration, tokenizer, chat templates) are copied into what is written. A planted
link to a secret file would therefore end up in the output, so it is refused. Weights are numbers, and links
to them may lead elsewhere.
"""

import fnmatch
import itertools
from collections.abc import Iterator
from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.files import check_regular

TEXTS = (
    *("*config.json", "*.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja"),
)
"""Name patterns of files that libraries read into memory at once."""

WEIGHTS = "*.safetensors"

TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates."""

MAX_TEXT_BYTES = 2**27
"""The largest text file that is accepted, in bytes: four times the largest known `tokenizer.json`."""


def check_directory(directory: Path) -> None:
    """Check that libraries can safely open the files of a model's directory.

    Pipes, devices and text files that are too long are refused, and so are text files that are links to
    nothing or to another directory.

    Raises:
        UserError: one of these is found (names the file), or the directory cannot be read.
    """
    try:
        paths = sorted(_files(directory))
    except OSError as error:
        raise UserError(f"cannot read the directory {directory}: {error.strerror or error}") from error
    for path in paths:
        if _is_text(path):
            _check_text(path, directory)
        elif not _is_gone(path):
            check_regular(path, "weights file")


def _files(directory: Path) -> Iterator[Path]:
    """The files that libraries may open: texts and weights."""
    templates = directory / TEMPLATES
    further = templates.iterdir() if templates.is_dir() else ()
    for path in itertools.chain(directory.iterdir(), further):
        if _is_text(path) or fnmatch.fnmatch(path.name, WEIGHTS):
            yield path


def _is_text(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in TEXTS)


def _check_text(path: Path, directory: Path) -> None:
    if _is_gone(path):
        raise UserError(f"{path} is a link that leads nowhere: download the model again, or remove it")
    if not any(path.resolve().is_relative_to(home) for home in _homes(directory.resolve())):
        raise UserError(
            f"{path} is a link that leads out of the model's directory, to {path.resolve()}, and would be "
            "copied into what is written: if it is meant, put a copy of the file in its place"
        )
    check_regular(path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(
            f"{path} has more than {MAX_TEXT_BYTES} bytes, far more than such a file needs; check it"
        )


def _is_gone(path: Path) -> bool:
    """Whether it is a link to a file that does not exist."""
    return path.is_symlink() and not path.exists()


def _homes(directory: Path) -> list[Path]:
    """The directories in which files of a model's directory may really be.

    The hub's cache keeps the files of `models--…/snapshots/…` in `models--…/blobs`.
    """
    model = directory.parents[1] if len(directory.parents) > 1 else directory
    cached = directory.parent.name == "snapshots" and model.name.startswith("models--")
    return [directory, model / "blobs"] if cached else [directory]
