"""The one exception for mistakes a user can mend, and how a command ends on it."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A mistake of the user's: one sentence that names the thing and says how to mend it."""


def require(holds: bool, flag: str, value: object, wanted: str) -> None:
    """Refuse a flag's `value` where what is `wanted` of it does not hold.

    Raises:
        UserError: it does not; names the flag, its value and what is wanted.
    """
    if not holds:
        raise UserError(f"{flag} is {value}, but must be {wanted}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, for messages that must fit on one."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds a command as Ctrl-C does."""


def _terminated(*_: Any) -> None:
    raise Terminated


def run(command: Callable[[], None]) -> None:
    """Run a command; print a `UserError` as one line on stderr and exit with status 2.

    Ctrl-C and SIGTERM unwind it, so that it leaves nothing half written, and end in 130 and 143. A
    reader that has had enough of the output (`… --help | head`) ends it in silence.
    """
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        command()
        sys.stdout.flush()
    except (BrokenPipeError, UserError, KeyboardInterrupt) as error:
        raise SystemExit(report(error)) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def report(error: BaseException) -> int:
    """Say on stderr what ended a command, its trace if it is no user's doing; returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):
        # What is still buffered has nowhere to go; without this the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        what, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        print(f"{what}: {str(error) or 'nothing was written'}", file=sys.stderr)
        return status
    traceback.print_exception(error)
    return 1
