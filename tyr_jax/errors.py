"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake of the user's: one sentence that names the thing and says how to mend it."""


def require(holds: bool, flag: str, value: object, wanted: str) -> None:
    """Refuse a flag's `value` where what is `wanted` of it does not hold.

    Raises:
        UserError: it does not; names the flag, its value and what is wanted.
    """
    if not holds:
        raise UserError(f"{flag} is {value}, but must be {wanted}")


def overflow(what: str) -> UserError:
    """The error for a model, and where it is asked, whose predictions are not finite."""
    return UserError(
        f"the predictions of {what} are not finite: the model overflows there; check its weights, and "
        "whether they were meant for a wider type"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for messages that must fit on one."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
