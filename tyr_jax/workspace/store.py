"""Finished work of a run on disk, from which an interrupted run can continue.

Every piece is an Orbax checkpoint: a directory with the arrays of a pytree, and a JSON text of what else it
consists of and of facts. Each host writes its part of arrays that are divided between hosts. Orbax moves the
directory into place once it is complete, so a piece is either complete or missing, whenever the process dies.
Of work in steps, only the last finished step is kept; the one before is deleted once the new one is in place.
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

import numpy as np
import orbax.checkpoint as ocp

from tyr_jax.errors import UserError
from tyr_jax.files import parse_json, reason
from tyr_jax.runtime import hosts
from tyr_jax.workspace import pytrees
from tyr_jax.workspace.facts import Work
from tyr_jax.workspace.pytrees import SAVED, Leaf
from tyr_jax.workspace.schema import VERSION, check_version, mended, parse

IN_NUMPY = ocp.RestoreArgs(restore_type=np.ndarray)
"""How to read an array on the host."""


class Saved(NamedTuple):
    """A piece of finished work: a pytree, and facts."""

    tree: Any
    facts: Any = Work()


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer for pytrees. It does not compress: weights hardly shrink, and it takes longer than the
    disk."""
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """A context without Orbax's log, which prints tracebacks of what is raised as well, and unreadable data
    as it is, control characters included."""
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

    def save(self, name: str, tree: Any = None, facts: Work | None = None) -> None:
        """Store a pytree and `facts` as the piece `name`.

        Raises:
            UserError: they cannot be written, for example because the disk is full; or the root directory of
                the store has disappeared.
        """
        if self.directory is None:
            return
        path = self.directory / name
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"{self.root} has disappeared during the run; start the same command again")
        leaves, arrays = pytrees.encode(tree)
        record = {VERSION: Work.version, "leaves": leaves, "facts": facts.as_json() if facts else {}}
        told = json.dumps(record, allow_nan=False)
        piece = {"checksum": _checksum(told, arrays), "arrays": arrays}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _checkpointer() as checkpointer, _unlogged():
                saved, note = ocp.args.PyTreeSave(piece), {"record": told}
                checkpointer.save(path.resolve(), args=saved, force=True, custom_metadata=note)
        except (OSError, ValueError) as error:
            if hosts.is_lost(error):
                raise
            raise UserError(
                f"cannot keep finished work in {path}: {_cause(error)}; free space or fix the "
                "permissions and run the same command again, which continues from here"
            ) from error

    def load(self, name: str, kind: type[Work] = Work, like: Any = SAVED) -> Saved | None:
        """The piece `name`, or None if there is none.

        Args:
            name: its name.
            kind: the class of its facts.
            like: an example of its pytree, as `tyr_jax.workspace.pytrees.decode` takes it. Arrays that lie on
                several devices there are read as they lie there; each host reads its part.

        Raises:
            UserError: the piece is damaged, or of another version of this program.
        """
        if self.directory is None or not (self.directory / name).is_dir():
            return None
        path, where = self.directory / name, f"finished work in {self.directory / name}"
        with self.reading(name), _unlogged(), _checkpointer() as checkpointer:
            told = checkpointer.metadata(path.resolve()).custom_metadata["record"]
            with mended(kind):
                record = parse_json(told, where)
            check_version(record, kind, where)
            leaves = [Leaf(*each) for each in record["leaves"]]
            wanted = {"checksum": IN_NUMPY, "arrays": _wanted(leaves, like)}
            args = ocp.args.PyTreeRestore(restore_args=wanted)
            piece = checkpointer.restore(path.resolve(), args=args)
            arrays = piece["arrays"]
            if piece["checksum"] != _checksum(told, arrays):
                raise ValueError("its checksum differs")
            facts = parse(kind, record["facts"], where)
            return Saved(pytrees.decode(leaves, arrays, like), facts)

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

    def save_step(self, name: str, step: int, tree: Any = None, facts: Work | None = None) -> None:
        """Store the state of the work `name` after `step` steps, and delete that after fewer."""
        self.save(f"{name}-{step}", tree, facts)
        for before in self._steps(name):
            if before < step:
                self.drop(f"{name}-{before}")

    def last_step(self, name: str, begun: Saved) -> tuple[int, Saved]:
        """(steps done, the state after them) of the work `name` as saved last. If nothing is saved, (0, what
        it is `begun` with), which otherwise is the example for `load`."""
        steps = self._steps(name)
        saved = self.load(f"{name}-{max(steps)}", type(begun.facts), begun.tree) if steps else None
        return (max(steps), saved) if saved else (0, begun)

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


def _cause(error: Exception) -> str:
    """What an error says; of one of TensorStore, what the system said."""
    told = re.search(r"([^:]+) \[os_error_code", text := reason(error))
    return told[1].strip() if told else text[:200]


def _checksum(told: str, arrays: Mapping[str, Any]) -> np.ndarray:
    """The checksum of a piece: of its JSON text and of its arrays."""
    return np.asarray(zlib.crc32(told.encode(), pytrees.checksum(arrays)), np.uint32)


def _wanted(leaves: list[Leaf], like: Any) -> dict[str, ocp.RestoreArgs]:
    """How to read each array: in NumPy, or as it lies on devices in an example of the pytree."""
    examples: dict[Any, Any] = dict(pytrees.placed_leaves(like))
    wanted = {}
    for number, leaf in enumerate(leaves):
        if leaf.shape is not None and 0 not in leaf.shape:
            example = examples.get(tuple(leaf.place))
            wanted[str(number)] = (
                ocp.ArrayRestoreArgs(sharding=example.sharding) if pytrees.is_divided(example) else IN_NUMPY
            )
    return wanted
