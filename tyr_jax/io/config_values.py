"""Values of a `config.json`, each checked when it is read."""

from collections.abc import Mapping
from typing import Any

from tyr_jax.errors import UserError

Json = dict[str, Any]


def unsupported(key: str, value: Any, supported: str) -> UserError:
    """The error for a `key` whose `value` is none of those `supported`."""
    return UserError(f"config key '{key}' is {value!r}, which is not supported: it must be {supported}")


def integer(config: Mapping[str, Any], key: str, where: str = "") -> int:
    """A positive integer of `config`, an object that lies at `where`.

    Raises:
        UserError: it is missing, or something else; names the key.
    """
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive integer")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise unsupported(where + key, value, "a positive integer")
    return value


def number(config: Mapping[str, Any], key: str, where: str = "") -> float:
    """A positive number; otherwise as `integer`."""
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive number")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise unsupported(where + key, value, "a positive number")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Whether `key` is true; false where it is missing.

    Raises:
        UserError: it is something else; names the key.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise unsupported(key, value, "true or false")
    return value
