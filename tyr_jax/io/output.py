"""The output directory: built beside its final place and moved there whole, with events as they happen."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyr_jax.errors import UserError


@contextlib.contextmanager
def staged_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A staging directory beside `target` that becomes `target` if the body succeeds, and vanishes if not.

    Raises:
        UserError: `target` exists and is not empty (unless `overwrite`), is a file, or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"output {target} is a file; choose a directory with --output")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"output directory {target} exists and is not empty; choose another with --output, or replace "
            "it with --overwrite"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        staging.chmod(0o755)
    except OSError as error:
        raise UserError(f"cannot write output directory {target}: {error.strerror}") from None
    try:
        yield staging
        _replace(staging, target)
    except OSError as error:
        raise UserError(
            f"could not finish writing {target}: {error.strerror or error}; free space or mend the "
            "permissions and run again (nothing was left half written)"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, target: Path) -> None:
    """Move `staging` to `target`; an existing `target` is only deleted once the new one is in place."""
    if not target.exists():
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)


class EventLog:
    """Events of a run as JSON lines, each flushed when it happens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._start = time.monotonic()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the seconds since the start."""
        seconds = round(time.monotonic() - self._start, 3)
        self._file.write(json.dumps({"event": event, "seconds": seconds, **fields}) + "\n")
        self._file.flush()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
