"""Finished work of a run on disk, from which an interrupted run can continue.

Every piece is an Orbax checkpoint: a directory with a pytree of arrays and a JSON text of facts. Orbax moves
it into place once it is complete, so a piece is either complete or missing, whenever the process dies. Of
work in steps, only the last finished step is kept; the one before is deleted once the new one is in place.
"""

import contextlib
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from tyr_jax.errors import UserError
from tyr_jax.files import parse_json
from tyr_jax.runtime import devices, hosts
from tyr_jax.workspace.records import ANY_FACTS, FORMAT_VERSION
from tyr_jax.workspace.schema import Format, check, check_version, mended


class Saved(NamedTuple):
    """A piece of finished work: a pytree of dicts and lists of arrays, and facts as JSON."""

    arrays: Any
    facts: dict[str, Any]


def checksum(arrays: Any) -> int:
    """CRC-32 of all arrays of a pytree."""
    total = 0
    for array in jax.tree.leaves(arrays):
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, total)
    return total


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer for pytrees. It does not compress: weights hardly shrink, and it takes longer than the
    disk."""
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """A context without Orbax's log, which prints unreadable data as it is, control characters included."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class Store:
    """Pieces of finished work by name, in a directory. Without a directory, nothing is kept."""

    def __init__(self, directory: Path | None = None, root: Path | None = None) -> None:
        self.directory = directory
        self.root = root or directory

    def part(self, name: str) -> "Store":
        """The store of a part of the work."""
        return Store(self.directory and self.directory / name, self.root)

    def save(self, name: str, arrays: Any = None, facts: Mapping[str, Any] | None = None) -> None:
        """Store `arrays` (a pytree of arrays that are not empty) and `facts` as the piece `name`.

        Raises:
            UserError: they cannot be written, for example because the disk is full; or the root directory of
                the store has disappeared.
        """
        if self.directory is None:
            return
        path = self.directory / name
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"{self.root} has disappeared during the run; start the same command again")
        told = json.dumps({"format_version": FORMAT_VERSION, "facts": facts or {}}, allow_nan=False)
        piece = {"facts": np.frombuffer(told.encode(), np.uint8)}
        if arrays is not None:
            piece["arrays"] = devices.fetch(arrays)
        piece["checksum"] = np.asarray(checksum(piece), np.uint32)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _checkpointer() as checkpointer:
                checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(piece), force=True)
        except (OSError, ValueError) as error:
            if hosts.is_lost(error):
                raise
            raise UserError(
                f"cannot keep finished work in {path}: {_reason(error)}; free space or fix the permissions "
                "and run the same command again, which continues from here"
            ) from error

    def load(self, name: str, form: Format = ANY_FACTS) -> Saved | None:
        """The piece `name`, with NumPy arrays, or None if there is none.

        Args:
            name: its name.
            form: the format of its facts.

        Raises:
            UserError: the piece is damaged, or of another version of this program.
        """
        if self.directory is None or not (self.directory / name).is_dir():
            return None
        path = self.directory / name
        with self.reading(name):
            with _unlogged(), _checkpointer() as checkpointer:
                tree = checkpointer.metadata(path.resolve()).item_metadata.tree
                numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                piece = checkpointer.restore(path.resolve(), args=ocp.args.PyTreeRestore(restore_args=numpy))
            if piece.pop("checksum") != checksum(piece):
                raise ValueError("its checksum differs")
            where = f"finished work in {path}"
            with mended(form):
                told = parse_json(piece["facts"].tobytes().decode(), where)
            check_version(told, form, where)
            check(told["facts"], form, where)
            return Saved(piece.get("arrays"), told["facts"])

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """A context for reading the piece `name`, whose contents may be damaged.

        Raises:
            UserError: the body failed.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # On damaged data, Orbax and TensorStore may raise any exception.
            raise UserError(
                f"finished work in {self.directory}/{name} is damaged or cannot be read; start over with "
                "--restart"
            ) from error

    def save_step(
        self, name: str, step: int, arrays: Any = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Store the state of the work `name` after `step`, and delete that of earlier steps."""
        self.save(f"{name}-{step}", arrays, facts)
        for before in self._steps(name):
            if before < step:
                self.drop(f"{name}-{before}")

    def last_step(self, name: str, form: Format = ANY_FACTS) -> tuple[int, Saved] | None:
        """(step, stored state) of the last step of the work `name`, or None if there is none."""
        steps = self._steps(name)
        saved = self.load(f"{name}-{max(steps)}", form) if steps else None
        return (max(steps), saved) if saved else None

    def _steps(self, name: str) -> list[int]:
        """The stored steps of the work `name`."""
        if self.directory is None or not self.directory.is_dir():
            return []
        found = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in self.directory.iterdir())
        return [int(match[1]) for match in found if match]

    def drop(self, name: str) -> None:
        """Delete the piece `name`."""
        self.part(name).clear()

    def clear(self) -> None:
        """Delete all pieces and parts."""
        if self.directory is None or not hosts.is_first():
            return
        # Renamed first, because a half deleted directory must not look like a piece.
        gone = self.directory.with_name(f"{self.directory.name}.dropped")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _reason(error: Exception) -> str:
    """An error in one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
