"""The one exception for mistakes a user can mend, and how a command ends on it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user's: one sentence that names the thing and says how to mend it."""


def run(command: Callable[[], None]) -> None:
    """Run a command; print a `UserError` as one line on stderr and exit with status 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
