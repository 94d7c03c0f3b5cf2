"""What long jobs share: a place to work that an interruption does not cost, devices, progress, and a log."""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.options import as_json
from tyr_jax.runtime import devices, hosts
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.output import WorkPaths, staged_directory, work_paths
from tyr_jax.workspace.progress import Ended, Progress
from tyr_jax.workspace.records import asked_record, read_asked, read_stage, stage_record
from tyr_jax.workspace.store import Store

INCIDENTAL = "output", "overwrite", "restart", "push_to_hub", "preset", "trust_record"
"""Settings that do not change what is found."""


class JobSettings(Protocol):
    """Settings of a long job, a dataclass."""

    @property
    def output(self) -> Path:
        """Its directory."""

    @property
    def overwrite(self) -> bool:
        """Whether one that is not empty is replaced."""

    @property
    def restart(self) -> bool:
        """Whether finished work is thrown away."""


@dataclasses.dataclass(frozen=True)
class Request:
    """How a job is asked for: the command-line `arguments` that are recorded, whether it works `in_memory`,
    without the directory that its settings name, and whether it is `quiet`."""

    arguments: Sequence[str] = ()
    in_memory: bool = False
    quiet: bool = False


class Workspace(NamedTuple):
    """What a job works with: what it writes to `staging` becomes its output, unless it works in memory."""

    staging: Path | None
    store: Store
    events: EventLog
    progress: Progress


@contextlib.contextmanager
def open_workspace(
    settings: JobSettings, request: Request, inputs: Iterable[Path] = ()
) -> Iterator[Workspace]:
    """All devices in use, and a place beside the output directory that becomes it if the body succeeds; what
    was finished before an interruption is there. A job in memory has no such place. Its output must not hold
    any of the `inputs`.

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
                earlier=[ended_of(entry["ended"]) for entry in log.written("stage")],
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
    """Where a job works, claimed for what it is asked; of several hosts, the first makes it.

    Raises:
        UserError: as `staged_directory` and `claim`; or a host does not see what the first has made.
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
    """Log that a stage is over, which is then no longer noted as `running`."""
    if running:
        running.unlink(missing_ok=True)
    log.write("stage", ended=ended._asdict())


def note_stage(running: Path | None, so_far: Ended) -> None:
    """Note how long the stage that runs has taken, should the process be killed in it."""
    if running:
        write_json(running, stage_record(so_far._asdict()))


def count_killed(log: EventLog, running: Path) -> None:
    """Log the stage that an earlier process was killed in, if it was, as far as it gave signs of life.

    Raises:
        UserError: what is noted of it is damaged.
    """
    noted = read_stage(running)
    if noted is not None:
        write_stage(log, running, ended_of(noted))


def ended_of(saved: Mapping[str, Any]) -> Ended:
    """A stage that is over, as a record has it."""
    return Ended(*(saved[field] for field in Ended._fields))


def asked(settings: JobSettings) -> dict[str, Any]:
    """Settings that change what is found, as JSON has them."""
    return {name: value for name, value in as_json(settings).items() if name not in INCIDENTAL}


def claim(path: Path, settings: JobSettings) -> None:
    """Note at `path` what a job is asked for; one that was interrupted is only gone on with for the same.

    Raises:
        UserError: it was asked for something else; names the options. Or the note cannot be read.
    """
    before = read_asked(path)
    if before is None:
        write_json(path, asked_record(asked(settings)))
    elif flags := differences(before, asked(settings)):
        raise UserError(
            f"the interrupted run of {settings.output} used a different {', '.join(flags)}; give the same to "
            "continue it, or start over with --restart"
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Flags of the settings that differ between two runs, from their JSON."""
    flags = []
    for name in one.keys() | other.keys():
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            flags += differences(left, right)
        elif left != right:
            flags.append(f"--{name.replace('_', '-')}")
    return sorted(flags)
