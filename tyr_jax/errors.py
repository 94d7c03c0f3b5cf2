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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for output that must fit on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
