"""A command as a process: its streams, the signals that stop it, and the status that it ends with."""

import contextlib
import importlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tyr_jax.errors import UserError, first_line
from tyr_jax.formatting import printable

CLOSED_PIPE = 141
"""The status of a command whose reader has had enough (128 + SIGPIPE)."""

PATIENCE = 5.0
"""Seconds for which a stopped command cleans up, whatever further signals come."""

LATER = 0.1
"""Seconds within which a signal is sent again whose exception got lost: at random, lest it meet the same
callback again and again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds a command as Ctrl-C does."""


class HungUp(KeyboardInterrupt):
    """SIGHUP, likewise: the terminal is gone."""


class Stop(NamedTuple):
    """How a signal stops a command: by what exception, called what, with which status."""

    exception: type[KeyboardInterrupt]
    name: str
    status: int


STOPS: dict[int, Stop] = {
    number: Stop(exception, name, 128 + number)
    for label, exception, name in (
        ("SIGINT", KeyboardInterrupt, "interrupted"),
        ("SIGTERM", Terminated, "terminated"),
        ("SIGHUP", HungUp, "hung up"),
    )
    if (number := getattr(signal, label, None))
}
"""By the signal's number; Windows has no SIGHUP."""

_written: list[Path] = []
"""What the command that runs has put in its place."""


def launch(name: str, arguments: list[str] | None = None) -> None:
    """Be the command that `tyr_jax.cli` has by that name, the import of its modules included: it takes
    seconds."""
    run(lambda: importlib.import_module(f"tyr_jax.cli.{name}").main(arguments))


def note_written(path: Path) -> None:
    """Note that a file or directory is in its place, whatever becomes of the command after."""
    _written.append(path)


def run(command: Callable[[], None]) -> None:
    """Run a command; print what a user can mend as one line on stderr and exit with status 2.

    Ctrl-C, SIGTERM and SIGHUP unwind it, so that it leaves nothing half written, and end in 130, 143 and
    129. A reader that has had enough of the output (`… --help | head`) ends it in silence.
    """
    steady_streams()
    _written.clear()
    with stoppable():
        try:
            command()
            sys.stdout.flush()
        except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:
            raise SystemExit(report(error)) from None
        except Exception as error:
            if not is_memory(error):
                raise
            raise SystemExit(report(error)) from None


def steady_streams() -> None:
    """Let what an encoding lacks be shown as `?`, and let output that is closed fail as full output does."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.stdout is None:
        # Writing to what is open for reading fails once there is something to say, not before.
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Signals that stop a command raise their exception in it, once; further ones wait while it cleans up.

    What the command is told to ignore, as `nohup` does, it ignores.
    """
    stopped = 0.0

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        if time.monotonic() - stopped > PATIENCE:
            stopped = time.monotonic()
            raise STOPS[number].exception

    def lost(unraisable: Any) -> None:
        """Exceptions in a callback go nowhere, so that the signal has to come again."""
        nonlocal stopped
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Where one of many reads fails, TensorStore tells of the others when nobody waits for them.
            if "Event loop is closed" not in str(unraisable.exc_value):
                hook(unraisable)
            return
        stopped = 0.0
        again(unraisable.exc_type)

    # Python lets only its first thread have signals.
    here = threading.current_thread() is threading.main_thread()
    heeded = [number for number in STOPS if here and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in heeded}
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def again(kind: type[BaseException]) -> None:
    """Send this process, a little later, the signal whose exception is of this `kind`."""
    (number,) = (number for number, stop in STOPS.items() if stop.exception is kind)
    timer = threading.Timer(random.uniform(0, LATER), os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a device, is used up."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def report(error: BaseException) -> int:
    """Say on stderr what ended a command, its trace if it is no user's doing; returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    _settle_output()
    if isinstance(error, KeyboardInterrupt):
        stop = next(stop for stop in STOPS.values() if isinstance(error, stop.exception))
        stop = next((each for each in STOPS.values() if type(error) is each.exception), stop)
        complete = f"{', '.join(map(str, _written))} is complete" if _written else "nothing was written"
        _tell(f"{stop.name}: {str(error) or complete}")
        return stop.status
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    sentence = _sentence(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    _tell(f"error: {sentence}")
    return 2


def _sentence(error: BaseException) -> str | None:
    """What a user can mend; None if it is no user's doing."""
    if isinstance(error, UserError):
        return str(error)
    if is_memory(error):
        return (
            f"memory is used up ({first_line(error)[:200]}); see what is needed with --plan, and try "
            "--compute-dtype bfloat16, --offload or shorter sequences"
        )
    if isinstance(error, OSError):
        what = f"use '{error.filename}'" if error.filename else "read or write"
        return f"cannot {what}: {error.strerror or first_line(error)}; mend that and try again"
    return None


def _settle_output() -> None:
    """Write what is still buffered, or drop it: the interpreter would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(line: str) -> None:
    """Print a line on stderr, if that takes it."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
