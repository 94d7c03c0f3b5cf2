"""The one exception for mistakes that a user can fix, and the one warning."""


class UserError(Exception):
    """A user's mistake. The message is one sentence that names the cause and says how to fix it."""


class Notice(UserWarning):
    """What a user should know although the work goes on. A command prints it as one line."""


def require(holds: bool, flag: str, value: object, wanted: str) -> None:
    """Check that a flag's `value` is what is `wanted`: that `holds` is true.

    Raises:
        UserError: it is not; names the flag, its value and what is wanted.
    """
    if not holds:
        given = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"{flag} is {given if given != '' else 'empty'}, but must be {wanted}")


def overflow(what: str) -> UserError:
    """The error for predictions that are not finite; `what` names the model and the text."""
    return UserError(
        f"the predictions of {what} are not finite: the model overflows there; check its weights, and "
        "whether they were meant for a wider type"
    )


MOST_CHARACTERS = 300
"""Of another program's error message, at most so much is shown: it may quote what it could not read."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for output that must fit on one line."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}…"
