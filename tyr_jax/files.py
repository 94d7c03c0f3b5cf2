"""Reading and writing a user's files: reads check the file first, and writes are all or nothing."""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyr_jax.errors import UserError, first_line

MAX_JSON_BYTES = 2**24
"""The largest JSON file that is read, in bytes. Configurations, indices and records are far smaller, and the
values of a file of this size always fit into memory."""


def resolved(path: Path) -> Path:
    """A path with its links followed; nothing need be there.

    Raises:
        UserError: a link leads back to itself.
    """
    try:
        found = path.resolve()
        loops = found.is_symlink()
    except RuntimeError:  # Python 3.13 returns such a path, earlier releases raise
        loops = True
    if loops:
        raise UserError(f"{path} is a link that leads back to itself; remove it, or name another path")
    return found


def check_regular(path: Path, what: str = "") -> None:
    """Check that `path` is a regular file that can be read, not a directory, a pipe or a device.

    Args:
        path: where the file is; links are followed.
        what: what the file should be, for the message, such as `weights file`.

    Raises:
        UserError: it is not; names the path.
    """
    name = f"{what} '{path}'".strip()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {reason(error)}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {name}: it is not a regular file")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {name}: Permission denied")


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text of a file of at most `limit` bytes.

    Raises:
        UserError: it cannot be read, is not a regular file, is longer, or is not UTF-8; names the path.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{path} has more than {limit} bytes, far more than such a file needs; check it")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None


def parse_json(text: str, where: str) -> Any:
    """The JSON value of `text`; `where` names its source, for messages.

    Raises:
        UserError: it is not valid JSON, is nested too deeply, or holds an unpaired surrogate; names
            `where`.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            # Unpaired surrogates can be neither printed nor written.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise UserError(f"{where} is not valid JSON: it is nested too deeply") from None
    except UnicodeEncodeError:
        raise UserError(f"{where} is not valid JSON: it holds an unpaired surrogate") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {first_line(error)}") from None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: it cannot be read, or does not hold a JSON object; names the path.
    """
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def inside(directory: Path, name: str, where: str) -> Path:
    """The path of the file that `where` (such as an index) calls `name`, in `directory`.

    Raises:
        UserError: the name leads out of the directory.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"{where} names '{name}', which is not a file in its directory")
    return directory / name


def sha256(path: Path) -> str:
    """The sha256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file next to `path` that replaces it if the body succeeds, and is deleted if not.

    Its name is unpredictable, and it is created without following links. A link at `path` itself is replaced,
    not followed. Permissions are those of the user's umask.
    """
    fresh = path.with_name(f".unfinished-{secrets.token_hex(8)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(fresh, flags, 0o666))
    try:
        yield fresh
        fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text: all of it or nothing."""
    with replaced(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON: all of it or nothing.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    write_text(path, as_text(value))


def as_text(value: Any) -> str:
    """`value` as indented JSON.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def reason(error: Exception) -> str:
    """What an error says, on one line; of one of the system, without its number and path."""
    return (getattr(error, "strerror", None) or first_line(error)).rstrip(".")
