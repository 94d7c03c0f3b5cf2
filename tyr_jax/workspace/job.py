"""What long jobs share: a working directory that survives interruptions, devices, progress and a log."""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tyr_jax.errors import UserError
from tyr_jax.options import as_json
from tyr_jax.runtime import devices, hosts
from tyr_jax.workspace.events import EventLog, StageEvent
from tyr_jax.workspace.facts import Asked, Ended
from tyr_jax.workspace.output import WorkPaths, staged_directory, work_paths
from tyr_jax.workspace.programs import programs_of
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.schema import read, write
from tyr_jax.workspace.store import Store

INCIDENTAL = "output", "overwrite", "restart", "push_to_hub", "preset", "trust_record"
"""Settings that do not change the result."""


class JobSettings(Protocol):
    """Settings of a long job; a dataclass."""

    @property
    def output(self) -> Path:
        """The output directory."""

    @property
    def overwrite(self) -> bool:
        """Whether an output directory that is not empty is replaced."""

    @property
    def restart(self) -> bool:
        """Whether finished work is discarded."""


@dataclasses.dataclass(frozen=True)
class Request:
    """How a job is run: the command-line `arguments` to record, whether it works `in_memory` (without the
    output directory of its settings), and whether it is `quiet`."""

    arguments: Sequence[str] = ()
    in_memory: bool = False
    quiet: bool = False


class Workspace(NamedTuple):
    """What a job works with. What it writes to `staging` (None if it works in memory) becomes its output."""

    staging: Path | None
    store: Store
    events: EventLog
    progress: Progress


@contextlib.contextmanager
def open_workspace(
    settings: JobSettings, request: Request, inputs: Iterable[Path] = ()
) -> Iterator[Workspace]:
    """A context in which a job runs: with all devices in use, a log, progress and a staging directory.

    The staging directory is next to the output directory and becomes it if the body succeeds. Work that was
    finished before an interruption is still there. A job in memory has no such directory.

    Args:
        settings: the job's settings.
        request: how it is run.
        inputs: files and directories that it reads, which must not be in its output directory.

    Raises:
        UserError: as `claimed_paths`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.in_use())
        hosts.check_agreed("command line", zlib.crc32(repr(asked(settings)).encode()))
        paths = None if request.in_memory else stack.enter_context(claimed_paths(settings, inputs))
        writing = paths if hosts.is_first() else None
        log = stack.enter_context(EventLog(writing and writing.events))
        if writing:
            count_killed(log, writing.stage)
        progress = stack.enter_context(
            Progress(
                quiet=request.quiet or not hosts.is_first(),
                earlier=[StageEvent(**entry).ended for entry in log.written("stage")],
                on_end=functools.partial(write_stage, log, writing and writing.stage),
                on_sign=functools.partial(note_stage, writing and writing.stage),
            )
        )
        if paths:
            progress.log(
                f"finished work is kept in {paths.finished} until the run is complete, so that the same "
                f"command can continue; events are logged in {paths.events}"
            )
        log.write("start", arguments=list(request.arguments))
        yield Workspace(paths and paths.staging, Store(paths and paths.finished), log, progress)
        log.write("done")
        if writing:
            log.save(writing.staging)


@contextlib.contextmanager
def claimed_paths(settings: JobSettings, inputs: Iterable[Path]) -> Iterator[WorkPaths]:
    """The paths where a job works, claimed for its settings. With several hosts, the first one creates them.

    Raises:
        UserError: as `staged_directory` and `claim`; or a host does not see what the first one created.
    """
    if hosts.is_first():
        with staged_directory(settings.output, settings.overwrite, settings.restart, inputs) as paths:
            claim(paths.settings, settings)
            hosts.wait("place")
            yield paths
        return
    paths = work_paths(settings.output)
    hosts.wait("place")
    if not paths.settings.is_file():
        raise UserError(
            f"this host does not see what the first has made beside {settings.output}: choose an --output on "
            "a file system that all hosts share"
        )
    yield paths


def write_stage(log: EventLog, running: Path | None, ended: Ended) -> None:
    """Log a stage that has ended, and delete the note `running` of it."""
    if running:
        running.unlink(missing_ok=True)
    log.write("stage", ended=ended.as_json())


def note_stage(running: Path | None, so_far: Ended) -> None:
    """Write down how long the current stage has taken so far, in case the process is killed during it."""
    if running:
        write(running, so_far)


def count_killed(log: EventLog, running: Path) -> None:
    """Log the stage during which an earlier process was killed, if any, with its time up to the last note.

    Raises:
        UserError: the note of it is damaged.
    """
    noted = read(Ended, running)
    if noted is not None:
        write_stage(log, running, noted)


def asked(settings: JobSettings) -> dict[str, Any]:
    """The settings that change the result, as JSON."""
    return {name: value for name, value in as_json(settings).items() if name not in INCIDENTAL}


def claim(path: Path, settings: JobSettings) -> None:
    """Record a job's settings and programs at `path`. An interrupted job can be continued only with the same.

    Raises:
        UserError: the recorded settings differ (names the options), or the programs (names them), or the
            record cannot be read.
    """
    before, programs = read(Asked, path), programs_of(asked(settings))
    if before is None:
        write(path, Asked(settings=asked(settings), programs=programs))
        return
    if flags := differences(before.settings, asked(settings)):
        raise UserError(
            f"the interrupted run of {settings.output} used a different {', '.join(flags)}; give the same to "
            "continue it, or start over with --restart"
        )
    # Modules that were not loaded yet when the job began are not compared.
    if changed := [what for what, now in programs.items() if before.programs.get(what, now) != now]:
        raise UserError(
            f"the {' and the '.join(changed)} changed since the interrupted run of {settings.output} began; "
            "bring back what it began with, or start over with --restart"
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Flags of the settings that differ between two runs, given both settings as JSON."""
    flags = []
    for name in one.keys() | other.keys():
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            flags += differences(left, right)
        elif left != right:
            flags.append(f"--{name.replace('_', '-')}")
    return sorted(flags)
