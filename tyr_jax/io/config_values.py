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
"""The largest integer that is accepted, above any model's sizes."""

LIMITS = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "moe_intermediate_size": 2**24,
    "num_experts": 2**16,
    "num_local_experts": 2**16,
    "vocab_size": 2**24,
}
"""Upper limits of sizes, about a hundred times those of the largest models. Memory is allocated for every
layer, head and neuron before any tensor can contradict a size."""

LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""The largest float32, the type that numbers are computed in."""


class _Short(reprlib.Repr):
    """Values cut short, with the names that JSON has for truth values and null."""

    def repr_bool(self, value: bool, level: int) -> str:
        return json.dumps(value)

    def repr_NoneType(self, value: None, level: int) -> str:
        return json.dumps(value)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring = 3, 80


def shown(value: Any) -> str:
    """A value for a message, cut short if it is long or deep."""
    return _SHORT.repr(value)


@contextlib.contextmanager
def of_file(path: Path) -> Iterator[None]:
    """A context that puts `path` in front of errors about the file's values.

    Raises:
        UserError: the body's, with the path.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_values(path: Path) -> Json:
    """The JSON object in a file. It can also be written again.

    Raises:
        UserError: it cannot be read, is not a JSON object, or holds NaN or infinity, which JSON lacks.
    """
    values = read_json(path)
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise UserError(f"{path} holds NaN, or a number that is infinite: JSON has neither") from None
    return values


def unsupported(key: str, value: Any, supported: str) -> UserError:
    """The error for a `key` whose `value` is not supported; `supported` says what is."""
    return UserError(f"config key '{key}' is {shown(value)}, which is not supported: it must be {supported}")


def integer(config: Mapping[str, Any], key: str, where: str = "", most: int = LARGEST, least: int = 1) -> int:
    """The integer under `key` of `config`, by default a positive one; `where` is the prefix of the key in
    messages.

    Raises:
        UserError: it is missing, is not an integer, or is below `least` or above `most`; names the key.
    """
    value = config.get(key)
    kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be {kind}")
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise unsupported(where + key, value, f"{kind}, at most {most}")
    return value


def number(config: Mapping[str, Any], key: str, where: str = "") -> float:
    """The positive number under `key`, which float32 must be able to hold. Otherwise like `integer`."""
    value = config.get(key)
    if value is None:
        raise UserError(f"config key '{where}{key}' is missing: it must be a positive number")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < LARGEST_NUMBER:
        raise unsupported(where + key, value, "a positive number, and not beyond float32")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Whether `key` is true; false where it is missing.

    Raises:
        UserError: it is not a boolean; names the key.
    """
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise unsupported(key, value, "true or false")
    return value
