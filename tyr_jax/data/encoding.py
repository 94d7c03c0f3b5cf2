"""Tokens of texts. A tokenizer is a program of the model's: whatever it raises becomes a sentence."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tyr_jax.errors import UserError, first_line


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Say in a sentence that begins with `what` why something of a tokenizer's failed.

    `tokenizers` raises bare exceptions, and where its own code fails, one that is no `Exception` at all.

    Raises:
        UserError: the body raises anything that does not end the process.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {first_line(error)[:300]}") from error


def encode(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Tokens of a text, with `special` ones as the tokenizer puts them around a text.

    Raises:
        UserError: the tokenizer fails.
    """
    with refusing(f"the model's tokenizer cannot read the text that begins with {text[:40]!r}"):
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded, which halves of surrogate pairs cannot be."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
