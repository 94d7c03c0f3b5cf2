"""Running a command as a process: its streams, the signals that stop it, and its exit status."""

import contextlib
import importlib
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from tyr_jax.errors import Notice, UserError, first_line
from tyr_jax.formatting import in_words, printable

LEAST_ADDRESSES = 3 * 2**30
"""Bytes of address space without which not even a tiny model is pruned."""

CLOSED_PIPE = 141
"""Exit status of a command whose output pipe was closed by the reader (128 + SIGPIPE)."""

PATIENCE = 5.0
"""Seconds for which a stopped command may clean up while further signals are ignored."""

LATER = 0.1
"""A signal whose exception was lost is sent again within this many seconds. The delay is random, so that it
does not hit the same callback every time."""


HOOKS: list[Callable[[Any], None]] = []
"""All hooks that were ever set. Python calls a hook by a borrowed reference, and threads of TensorStore call
it at any time: if it were deleted when it is replaced, such a call would crash the process."""


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; unwinds a command as Ctrl-C does."""


class HungUp(KeyboardInterrupt):
    """Raised on SIGHUP, when the terminal is gone; unwinds a command as well."""


class Stop(NamedTuple):
    """How a signal stops a command: the exception that it raises, its name in messages, the exit status."""

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
"""The stops, by signal number. (Windows has no SIGHUP.)"""


class Output:
    """Standard output that remembers what was not written yet, so that it can be shown elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.pending, self.failed = stream, "", False

    def write(self, text: str) -> int:
        """Write a text."""
        self.pending += text
        with self._failing():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is buffered. What could not be written once is lost to the stream."""
        with self._failing():
            self._stream.flush()
        if not self.failed:
            self.pending = ""

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_written: list[Path] = []
"""Outputs that the running command has moved into place."""


def entry_point(name: str) -> Callable[..., None]:
    """The function that runs the command `name` of `tyr_jax.cli`, with the arguments of the process if none
    are given."""
    return lambda arguments=None: run(lambda: _launch(name, sys.argv[1:] if arguments is None else arguments))


def _launch(name: str, arguments: list[str]) -> None:
    """Import a command, which takes seconds, and start it."""
    # If an extension of JAX imported NumPy first, a signal meanwhile would be printed and forgotten.
    importlib.import_module("numpy")
    importlib.import_module(f"tyr_jax.cli.{name}").main(arguments)


def note_written(path: Path) -> None:
    """Note that an output file or directory is complete and in place, even if the command fails later."""
    if path not in _written:
        _written.append(path)


def run(command: Callable[[], None]) -> None:
    """Run a command. An error that the user can fix prints one line on stderr and exits with status 2.

    Ctrl-C, SIGTERM and SIGHUP unwind the command, so that nothing is left half written, and exit with status
    130, 143 and 129. If the reader closes the output pipe (`… --help | head`), the command ends silently.
    """
    steady_streams()
    _written.clear()
    with stoppable(), remembered(), noticed():
        try:
            check_address_space()
            command()
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            known = isinstance(error, UserError | OSError | KeyboardInterrupt)
            if not (known or is_memory(error) or is_platform(error)):
                raise
            raise SystemExit(report(error)) from None


def steady_streams() -> None:
    """Make the output streams safe to write to.

    Characters that the encoding lacks become `?`. A closed stdout fails on writing, as a full disk does.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.stdout is None:
        # A stream opened for reading fails only when something is written to it.
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """A context whose standard output is an `Output`."""
    before = sys.stdout
    sys.stdout = cast(TextIO, Output(before))
    try:
        yield
    finally:
        sys.stdout = before


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """A context that prints each `Notice` as one line on stderr, and not what asyncio logs: errors of reads
    that nobody waits for, because another one failed first."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        show = warnings.showwarning

        def told(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                _tell(f"warning: {message}")
            else:
                show(message, category, *rest, **options)

        warnings.simplefilter("always", Notice)
        warnings.showwarning = told
        yield


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A context in which a signal of `STOPS` raises its exception.

    Further signals are ignored for `PATIENCE` seconds, while the command cleans up. Signals that the process
    was started to ignore, for example by `nohup`, stay ignored.
    """
    stopped = 0.0

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        if time.monotonic() - stopped > PATIENCE:
            stopped = time.monotonic()
            raise STOPS[number].exception

    def lost(unraisable: Any) -> None:
        """Send the signal again if its exception was raised in a callback, where it is lost."""
        nonlocal stopped
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            # When one of many reads fails, TensorStore reports the others when nobody waits for them.
            if "Event loop is closed" not in str(unraisable.exc_value):
                hook(unraisable)
            return
        stopped = 0.0
        again(unraisable.exc_type)

    # In Python, only the main thread can handle signals.
    here = threading.current_thread() is threading.main_thread()
    heeded = [number for number in STOPS if here and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in heeded}
    HOOKS.append(lost)
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def again(kind: type[BaseException]) -> None:
    """Send this process the signal whose exception is of this `kind` again, a little later (see `LATER`)."""
    (number,) = (number for number, stop in STOPS.items() if stop.exception is kind)
    timer = threading.Timer(random.uniform(0, LATER), os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def is_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the host or of a device ran out."""
    told = str(error)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in told or "Out of memory" in told


def is_platform(error: BaseException) -> bool:
    """Whether an error means that JAX cannot use the devices that it was told to use."""
    if isinstance(error, RuntimeError):
        return "Unable to initialize backend" in str(error)
    # Where a platform has no plug-in, JAX fails in an assertion of its own, without a message.
    where = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) and bool(where) and Path(where[-1].filename).stem == "xla_bridge"


def check_address_space() -> None:
    """Refuse to start where `ulimit -v` leaves less than JAX reserves: it would abort in the middle.

    Raises:
        UserError: it does.
    """
    with contextlib.suppress(ImportError, OSError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
            raise UserError(
                f"this process may reserve only {in_words(limit)} of addresses (ulimit -v), but JAX reserves "
                f"{in_words(LEAST_ADDRESSES)} and more; raise that limit, and limit memory in another way"
            )


def report(error: BaseException) -> int:
    """Print on stderr what ended a command, and return the exit status.

    An error that the user cannot fix is printed with its traceback.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    lost = _settle_output()
    if isinstance(error, KeyboardInterrupt):
        stop = next((each for each in STOPS.values() if type(error) is each.exception), STOPS[signal.SIGINT])
        complete = f"{', '.join(map(str, _written))} is complete" if _written else "nothing was written"
        _tell(f"{stop.name}: {str(error) or complete}")
        return stop.status
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    if lost is not None and isinstance(error, OSError) and not error.filename:
        complete = f"; {', '.join(map(str, _written))} is complete" if _written else ""
        _tell(f"error: cannot write to standard output: {error.strerror}{complete}; the result is below")
        for line in lost.splitlines():
            _tell(line)
        return 2
    sentence = _sentence(error)
    if sentence is None:
        traceback.print_exception(error)
        return 1
    _tell(f"error: {sentence}")
    return 2


def _sentence(error: BaseException) -> str | None:
    """One sentence for an error that the user can fix; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if is_memory(error):
        return (
            f"out of memory ({first_line(error)[:200]}): try --compute-dtype bfloat16, shorter sequences, or "
            "--offload where the command has it; `python -m tyr_jax.prune --plan` shows what pruning needs"
        )
    if is_platform(error):
        asked = os.environ.get("JAX_PLATFORMS", "")
        told = f" ({first_line(error)})" if str(error) else ""
        return (
            f"JAX_PLATFORMS={asked} does not fit this installation of JAX{told}: name another, or install it"
        )
    if isinstance(error, OSError):
        what = f"use '{error.filename}'" if error.filename else "read or write"
        return f"cannot {what}: {error.strerror or first_line(error)}; fix that and try again"
    return None


def _settle_output() -> str | None:
    """Flush stdout, or else discard and return what cannot be written: otherwise the interpreter complains of
    it on exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return sys.stdout.pending if isinstance(sys.stdout, Output) and sys.stdout.failed else None


def _tell(line: str) -> None:
    """Print a line on stderr, if it can be written to."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
