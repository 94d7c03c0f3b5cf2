"""A process that can only write to a few directories, and whose time, memory and output are watched."""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Numbers of Landlock's system calls, the same on every processor."""

WRITING = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
"""Landlock's rights to write, remove, make, link and truncate files."""

WRITE_FILE = 1 << 1

NO_NEW_PRIVILEGES = 38
PATH_BENEATH = 1

POLL = 0.02
"""Seconds between two checks of a process."""


class Limits(NamedTuple):
    """What a process may use: seconds, and bytes of memory beyond those that it starts with."""

    seconds: float
    memory: int


class Stop(NamedTuple):
    """A signal, and the seconds after which it is sent."""

    number: int
    seconds: float


class Ended(NamedTuple):
    """How a process ended.

    This is its status (negative: the signal), the `limit` that it exceeded, if any, its seconds, its bytes of
    memory beyond those that it started with, and what it printed.
    """

    status: int
    limit: str
    seconds: float
    memory: int
    out: str
    err: str


VERSION = 1
"""Flag that asks Landlock for its version, instead of creating rules."""


def is_available() -> bool:
    """Whether the system can confine a process: Linux with Landlock 3 or newer."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, VERSION) >= 3


def restrict_writing(directories: Iterable[Path]) -> None:
    """Let this process and its children write only below these directories and to devices (Landlock).

    Raises:
        OSError: The system does not support it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: object) -> int:
        result = libc.syscall(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock is not available")
        return int(result)

    handled = struct.pack("Q", WRITING)
    ruleset = call(CREATE_RULESET, handled, len(handled), 0)
    for path, rights in {**dict.fromkeys(directories, WRITING), Path("/dev"): WRITE_FILE}.items():
        opened = os.open(path, os.O_PATH)
        call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
        os.close(opened)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def run(
    work: Callable[[], None],
    here: Path,
    writable: Iterable[Path],
    limits: Limits,
    stop: Stop | None = None,
) -> Ended:
    """Do `work` in a child process, until it is done or a signal stops it.

    `here` is its current directory. It can only write below `here` and the `writable` directories. Its output
    is kept in files next to `here`. It is killed if it exceeds the `limits`.
    """
    streams = [here.with_name(f"{here.name}.{name}") for name in ("out", "err")]
    for stream in streams:
        stream.touch()
    started, began = time.monotonic(), _memory(os.getpid())
    child = os.fork()
    if not child:
        _be(work, here, writable, streams)
    most, before, limit = 0, 0, ""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        now = sum(map(_memory, _group(child))) - began
        # For a moment, a process that starts another program counts twice.
        most, before = max(most, min(before, now)), now
        if stop is not None and time.monotonic() - started > stop.seconds:
            os.kill(child, stop.number)
            stop = None
        if not limit:
            limit = _broken(limits, time.monotonic() - started, most)
            if limit:
                os.killpg(child, signal.SIGKILL)
        time.sleep(POLL)
    _kill_group(child)
    out, err = (stream.read_bytes().decode("utf-8", "replace") for stream in streams)
    return Ended(os.waitstatus_to_exitcode(status), limit, time.monotonic() - started, most, out, err)


def _broken(limits: Limits, seconds: float, memory: int) -> str:
    if seconds > limits.seconds:
        return "time"
    return "memory" if memory > limits.memory else ""


def _kill_group(child: int) -> None:
    """Kill everything that the process has started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def _be(work: Callable[[], None], here: Path, writable: Iterable[Path], streams: list[Path]) -> None:
    """Run `work` as the child process, and exit."""
    status = 70
    try:
        os.setsid()
        os.chdir(here)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # The fuzzer itself may ignore these signals, in the background or under `nohup`.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, start=1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        streams_of = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.stdout, sys.stderr = streams_of
        restrict_writing([here, *writable])
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _group(child: int) -> list[int]:
    """The process and all that it has started."""
    found = [child]
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            session = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[3])
            if session == child and int(name) != child:
                found.append(int(name))
    return found


def _memory(process: int) -> int:
    """Bytes of memory of a process, without pages of files such as libraries.

    A child starts without the file pages that its parent has read, so counting them would be misleading.
    """
    try:
        _, resident, shared = Path(f"/proc/{process}/statm").read_text().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
