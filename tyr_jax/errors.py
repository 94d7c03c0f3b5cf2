"""The one exception for mistakes a user can mend, and how a command ends on it."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A mistake of the user's: one sentence that names the thing and says how to mend it."""


def _terminated(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def run(command: Callable[[], None]) -> None:
    """Run a command; print a `UserError` as one line on stderr and exit with status 2.

    Ctrl-C and SIGTERM unwind it, so that it leaves nothing half written, and end in 130 and 143. A
    reader that has had enough of the output (`… --help | head`) ends it in silence.
    """
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
