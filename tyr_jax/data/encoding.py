"""Tokens of texts. A tokenizer comes with a model, so whatever it raises becomes a one-line error."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tyr_jax.errors import UserError, first_line


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises in the body into a `UserError` whose message begins with `what`.

    `tokenizers` raises bare exceptions, and where its own code panics, one that is not even an `Exception`.

    Raises:
        UserError: the body raises anything but an exit, an interrupt or a `MemoryError`.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {first_line(error)[:300]}") from error


def encode(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Tokens of a text; with `special`, also the special tokens that the tokenizer puts around it.

    Raises:
        UserError: the tokenizer fails.
    """
    with refusing(f"the model's tokenizer cannot read the text that begins with {text[:40]!r}"):
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. An unpaired surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
