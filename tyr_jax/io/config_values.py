"""Values of a `config.json`, each checked when it is read."""

import contextlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.files import read_json

Json = dict[str, Any]

LARGEST = 2**31 - 1
"""The largest size there is, beyond any model's."""

LIMITS = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "vocab_size": 2**24,
}
"""What sizes can be at most, some hundred times those of the largest models. For every layer, head and neuron
something is allocated before any tensor contradicts a size."""

LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""What is computed with is float32."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 3, 80


def shown(value: Any) -> str:
    """A value for a message: of one that is long or deep, its beginning."""
    return _SHORT.repr(value)


@contextlib.contextmanager
def of_file(path: Path) -> Iterator[None]:
    """Errors about values say first what file they are of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_values(path: Path) -> Json:
    """The JSON object in a file; what is read can be written again.

    Raises:
        UserError: it cannot be read, or is none, or holds NaN or infinity, which JSON does not have.
    """
    values = read_json(path)
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise UserError(f"{path} holds NaN, or a number that is infinite: JSON has neither") from None
    return values


def unsupported(key: str, value: Any, supported: str) -> UserError:
    """The error for a `key` whose `value` is none of those `supported`."""
    return UserError(f"config key '{key}' is {shown(value)}, which is not supported: it must be {supported}")


def integer(config: Mapping[str, Any], key: str, where: str = "", most: int = LARGEST) -> int:
    """A positive integer of `config`, an object that lies at `where`.

    Raises:
        UserError: it is missing, or something else, or more than the `most` it can be; names the key.
    """
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive integer")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise unsupported(where + key, value, f"a positive integer of at most {most}")
    return value


def number(config: Mapping[str, Any], key: str, where: str = "") -> float:
    """A positive number that float32 can hold; otherwise as `integer`."""
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive number")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < LARGEST_NUMBER:
        raise unsupported(where + key, value, "a positive number, and not beyond float32")
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
