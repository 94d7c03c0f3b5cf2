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
    """Paths beside `target`, of which the staging directory becomes `target` if the body succeeds.

    If it fails, everything vanishes, unless there is finished work: then the next run for the same target
    finds it there (unless `restart`). One run at a time can have these paths.

    Raises:
        UserError: `target` exists and is not empty (unless `overwrite`), is a file, cannot be written, or
            another run has the paths.
    """
    with contextlib.ExitStack() as stack:
        try:
            # Staged on the disk where a link leads, and away from names such as `.` that cannot be moved.
            final = target.resolve()
            _check_target(final, target, overwrite)
            stack.enter_context(_parents(final))
            paths = work_paths(final)
            root = paths.staging.parent
            root.mkdir(exist_ok=True)
            stack.enter_context(_alone(root / "lock", target))
            stack.callback(_leave, paths)
            if restart or not _has_work(paths):
                _empty(paths)
            paths.staging.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write output directory {target}: {error.strerror or error}") from None
        try:
            yield paths
            _replace(paths.staging, final)
            _empty(paths)
        except OSError as error:
            raise UserError(
                f"could not finish writing {target}: {error.strerror or error}; free space or mend the "
                "permissions and run the same command again"
            ) from error
        except KeyboardInterrupt as error:
            if _has_work(paths):
                raise type(error)("the same command goes on from what is finished") from None
            raise


def _has_work(paths: WorkPaths) -> bool:
    """Whether there is anything to go on from."""
    return paths.finished.is_dir() and any(paths.finished.iterdir())


def _empty(paths: WorkPaths) -> None:
    """Take away all that runs left."""
    shutil.rmtree(paths.finished, ignore_errors=True)
    shutil.rmtree(paths.staging, ignore_errors=True)
    paths.settings.unlink(missing_ok=True)


def _leave(paths: WorkPaths) -> None:
    """Take the directory of all of them away, if there is nothing to go on from."""
    if not _has_work(paths):
        shutil.rmtree(paths.staging.parent, ignore_errors=True)


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
def new_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `target` that becomes it if the body succeeds, and vanishes if not.

    Raises:
        UserError: as `staged_directory`; or an interrupted run for `target` can still go on (unless
            `overwrite`).
    """
    if _has_work(work_paths(target)) and not overwrite:
        raise UserError(
            f"a run for {target} was interrupted and can still go on; let it, choose another directory, or "
            "replace it with --overwrite"
        )
    with staged_directory(target, overwrite, restart=True) as paths:
        yield paths.staging


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
