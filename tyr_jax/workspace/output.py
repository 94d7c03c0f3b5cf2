"""Outputs: built next to their target, in a directory that one process at a time holds, then moved there."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

from tyr_jax.errors import UserError
from tyr_jax.process import note_written
from tyr_jax.workspace import manifest
from tyr_jax.workspace.ownership import check_directory, check_file


class WorkPaths(NamedTuple):
    """Where a run works: `staging` becomes its output, `finished` has work that survives an interruption,
    `settings` its settings, `events` its log, and `stage` the current stage."""

    staging: Path
    finished: Path
    settings: Path
    events: Path
    stage: Path


def place_of(final: Path) -> Path:
    """The directory in which `final` is built."""
    return final.with_name(f".{final.name}.unfinished")


def work_paths(target: Path) -> WorkPaths:
    """The paths of a run for `target`."""
    place = place_of(target.resolve())
    files = (place / name for name in ("settings.json", "events.jsonl", "stage.json"))
    return WorkPaths(place / "output", place / "finished", *files)


@contextlib.contextmanager
def staged_directory(
    target: Path, overwrite: bool, restart: bool, inputs: Iterable[Path] = ()
) -> Iterator[WorkPaths]:
    """Paths next to `target`. If the body succeeds, the staging directory becomes `target`.

    If the body fails, everything is deleted, except finished work and its records, which the next run for the
    same target finds (unless `restart`). Only one run at a time can hold these paths.

    Raises:
        UserError: as `check_directory`; or `target` cannot be written, or another run holds the paths.
    """
    with contextlib.ExitStack() as stack:
        try:
            check_directory(target, overwrite, inputs)
            # If `target` is a link, stage on the disk that it leads to.
            final = target.resolve()
            stack.enter_context(_parents(final))
            stack.enter_context(_claimed(place_of(final), target))
            paths = work_paths(final)
            stack.callback(_leave, paths)
            if restart or not _has_work(paths):
                _empty(paths)
            # Anything in it is from an earlier run.
            shutil.rmtree(paths.staging, ignore_errors=True)
            paths.staging.mkdir()
            paths.finished.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write output directory {target}: {error.strerror or error}") from None
        try:
            yield paths
            manifest.seal(paths.staging)
            _give_modes(paths.staging)
            check_directory(target, overwrite, inputs)
            _publish(paths, final, target)
        except OSError as error:
            if error.filename and not Path(str(error.filename)).is_relative_to(final.parent):
                # The error is not about the output, but about an input, for instance.
                raise
            raise UserError(
                f"could not finish writing {target}: {error.strerror or error}; free space or fix the "
                "permissions, and run the same command again"
            ) from error
        except KeyboardInterrupt as error:
            if _has_work(paths):
                raise type(error)("the same command continues where it stopped") from None
            raise


def _has_work(paths: WorkPaths) -> bool:
    """Whether there is finished work to continue from."""
    return paths.finished.is_dir() and any(paths.finished.iterdir())


def _publish(paths: WorkPaths, final: Path, target: Path) -> None:
    """Move the output of a run to `final`, which is called `target`, and close the run."""
    try:
        try:
            _replace(paths.staging, final)
        finally:
            _close(paths, target)
    except KeyboardInterrupt:
        # The signal may have come while the run was being closed.
        _close(paths, target)
        raise


def _close(paths: WorkPaths, target: Path) -> None:
    """If the output is in place, note that, and delete everything else that the run has made."""
    if not paths.staging.exists():
        note_written(target)
        _empty(paths)


def _empty(paths: WorkPaths) -> None:
    """Delete everything that runs left."""
    shutil.rmtree(paths.finished, ignore_errors=True)
    shutil.rmtree(paths.staging, ignore_errors=True)
    for path in (paths.settings, paths.events, paths.stage):
        path.unlink(missing_ok=True)


def _leave(paths: WorkPaths) -> None:
    """Delete what cannot be continued from: the staging directory, or without finished work, everything."""
    if _has_work(paths):
        shutil.rmtree(paths.staging, ignore_errors=True)
    else:
        _empty(paths)


@contextlib.contextmanager
def new_directory(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory next to `target` that becomes it if the body succeeds, and is deleted if not.

    Raises:
        UserError: as `staged_directory`; or an interrupted run for `target` can still be continued (unless
            `overwrite`).
    """
    check_directory(target, overwrite)
    if _has_work(work_paths(target)) and not overwrite:
        raise UserError(
            f"an interrupted run for {target} can still be continued: run its command again, choose another "
            "directory, or discard its work with --overwrite"
        )
    with staged_directory(target, overwrite, restart=True) as paths:
        yield paths.staging


@contextlib.contextmanager
def staged_file(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A path for a file that becomes `target` if the body succeeds, and is deleted if not.

    The path is in a separate directory next to `target`. Only one command at a time can hold it.

    Raises:
        UserError: as `check_file`; or `target` cannot be written, or another command is writing it.
    """
    try:
        check_file(target, overwrite, ours)
        with _claimed(place_of(target), target) as place:
            staging = place / "output"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                yield staging / target.name
                _give_modes(staging)
                check_file(target, overwrite, ours)
                try:
                    (staging / target.name).replace(target)
                    manifest.note([target])
                finally:
                    if not (staging / target.name).exists():
                        note_written(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; no partial file remains: mend "
            "this and run the command again"
        ) from error


@contextlib.contextmanager
def _claimed(place: Path, target: Path) -> Iterator[Path]:
    """Lock the directory `place`, which contains no links; it is deleted at the end if it is empty.

    If the process dies, for whatever reason, the lock is released.

    Raises:
        UserError: another process holds it, it is a link or another user's, or it contains a link or a pipe.
    """
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    if not _is_own(place):
        raise UserError(
            f"{place} is in the way: it is not a directory of yours; remove it, or change --output"
        )
    lock = place / "lock"
    if not lock.exists() and any(place.iterdir()):
        raise UserError(f"{place} is in the way: no run has made it; move it, or change --output")
    try:
        with filelock.FileLock(lock, timeout=0):
            _check_links(place)
            try:
                yield place
            finally:
                # Files that are not ours stay. The directory may also be gone already.
                with contextlib.suppress(OSError):
                    if os.listdir(place) == [lock.name]:
                        lock.unlink()
                        place.rmdir()
    except filelock.Timeout:
        raise UserError(
            f"another run is writing {target}; wait until it is done, or choose another with --output"
        ) from None


def _is_own(place: Path) -> bool:
    """Whether `place` is a directory that belongs to the user, or to the owner of its parent directory.

    Another user may have created it in a directory that all may write to. The parent's owner is accepted
    because on some network file systems one other user owns everything.
    """
    found = place.lstat()
    whose = getattr(os, "getuid", lambda: found.st_uid)()
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (whose, place.parent.stat().st_uid)


def _check_links(place: Path) -> None:
    """Check that nothing in `place` is a link, which leads elsewhere, or a pipe, which would block.

    Raises:
        UserError: something is; names it.
    """
    for directory, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(directory, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is a link or a pipe, which this program never makes; remove it")


def _give_modes(staging: Path) -> None:
    """Give files the permissions of the user's umask; libraries create some that only the user can read."""
    umask = os.umask(0)
    os.umask(umask)
    for directory, _, files in os.walk(staging):
        os.chmod(directory, 0o777 & ~umask)
        for name in files:
            os.chmod(Path(directory, name), 0o666 & ~umask)


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Create the directories above `path`, and delete those that were missing again if the body fails."""
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
    """Move `staging` to `target`. An existing `target` is deleted only after the new one is in place.

    Raises:
        UserError: files appeared in the existing one meanwhile, which are kept.
    """
    if not target.exists():
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
    try:
        os.replace(target, old)
        os.replace(staging, target)
    except BaseException:
        if not target.exists():
            os.replace(old, target)
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    manifest.delete(old)
    if old.exists():
        raise UserError(
            f"{target} is complete, but files appeared in the one before while it was replaced; they are "
            f"kept in {old}"
        )
