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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for messages that must fit on one."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
