"""The output directory: built beside its final place and moved there whole, with events as they happen."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from tyr_jax.errors import UserError


class WorkPaths(NamedTuple):
    """Where a run works: `staging` becomes its output; `finished` is for work that an interruption must not
    cost, and `settings` for what was asked of it."""

    staging: Path
    finished: Path
    settings: Path


def work_paths(target: Path) -> WorkPaths:
    """Where a run for `target` works."""
    final = target.resolve()
    root = final.with_name(f".{final.name}.unfinished")
    return WorkPaths(root / "output", root / "finished", root / "settings.json")


@contextlib.contextmanager
def staged_directory(target: Path, overwrite: bool, restart: bool) -> Iterator[WorkPaths]:
    """A place beside `target` whose staging directory becomes `target` if the body succeeds.

    If it fails, everything vanishes, unless there is finished work: then the place is found again by the
    next run for the same target (unless `restart`). One run at a time can have it.

    Raises:
        UserError: `target` exists and is not empty (unless `overwrite`), is a file, cannot be written, or
            another run has the place.
    """
    with contextlib.ExitStack() as stack:
        try:
            # Staged on the disk where a link leads, and away from names such as `.` that cannot be moved.
            final = target.resolve()
            _check_target(final, target, overwrite)
            stack.enter_context(_parents(final))
            place = work_paths(final)
            root = place.staging.parent
            root.mkdir(exist_ok=True)
            stack.enter_context(_alone(root / "lock", target))
            stack.callback(_leave, place)
            if restart or not _has_work(place):
                _empty(place)
            place.staging.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write output directory {target}: {error.strerror or error}") from None
        try:
            yield place
            _replace(place.staging, final)
            _empty(place)
        except OSError as error:
            raise UserError(
                f"could not finish writing {target}: {error.strerror or error}; free space or mend the "
                "permissions and run the same command again"
            ) from error
        except KeyboardInterrupt as error:
            if _has_work(place):
                raise type(error)("the same command goes on from what is finished") from None
            raise


def _has_work(place: WorkPaths) -> bool:
    """Whether there is anything to go on from."""
    return place.finished.is_dir() and any(place.finished.iterdir())


def _empty(place: WorkPaths) -> None:
    """Take away all that runs left."""
    shutil.rmtree(place.finished, ignore_errors=True)
    shutil.rmtree(place.staging, ignore_errors=True)
    place.settings.unlink(missing_ok=True)


def _leave(place: WorkPaths) -> None:
    """Take the place away, if there is nothing to go on from."""
    if not _has_work(place):
        shutil.rmtree(place.staging.parent, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path, target: Path) -> Iterator[None]:
    """Hold the lock at `path`, which a process that dies loses, whatever kills it.

    Raises:
        UserError: another process has it.
    """
    try:
        with filelock.FileLock(path, timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(
            f"another run is writing {target}; wait until it is done, or choose another with --output"
        ) from None


@contextlib.contextmanager
def staged_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A path beside `target` for a file that becomes `target` if the body succeeds, and vanishes if not.

    Raises:
        UserError: `target` exists (unless `overwrite`), is a directory, or cannot be written.
    """
    if target.is_dir():
        raise UserError(f"output {target} is a directory; choose a file with --output")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another with --output, or replace it with --overwrite")
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; nothing was left") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _check_target(final: Path, target: Path, overwrite: bool) -> None:
    """Refuse what cannot become, or may not be replaced by, the output directory."""
    if final.exists() and not final.is_dir():
        raise UserError(f"output {target} is a file; choose a directory with --output")
    above = next(parent for parent in final.parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"output {target} lies below {above}, which is a file; choose another with --output")
    if final.is_dir() and any(final.iterdir()) and not overwrite:
        raise UserError(
            f"output directory {target} exists and is not empty; choose another with --output, or replace "
            "it with --overwrite"
        )


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the directories above `path`; those that were missing go again if the body fails."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _replace(staging: Path, target: Path) -> None:
    """Move `staging` to `target`; an existing `target` is only deleted once the new one is in place."""
    if not target.exists():
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        os.replace(target, old)
        os.replace(staging, target)
    except BaseException:
        if not target.exists():
            os.replace(old, target)
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
