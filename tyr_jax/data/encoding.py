"""Tokens of texts. A tokenizer comes with a model, so whatever it raises becomes a one-line error."""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers

from tyr_jax import confinement
from tyr_jax.confinement import Kept, Limits
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


_serialised: "weakref.WeakKeyDictionary[Any, tuple[int, Kept]]" = weakref.WeakKeyDictionary()
"""The parts of tokenizers that work on texts, serialised, with the sizes of their vocabularies then."""


def encode(tokenizer: Any, text: str, *, special: bool = False) -> np.ndarray:
    """Tokens of a text, int32; with `special`, also the special tokens that the tokenizer puts around it.

    They are those of `tokenizer(text, add_special_tokens=special)`, from a process with limits.

    Raises:
        UserError: the tokenizer fails, or takes too much.
    """
    what = f"the model's tokenizer cannot read the text that begins with {text[:40]!r}"
    size, default = len(text), Limits()
    limits = Limits(default.seconds + size / 2e5, default.memory + 128 * size)
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    arguments = (_kept(tokenizer), split, text, special, what)
    tokens: np.ndarray = confinement.call(what, "tyr_jax.data.encoding:encoded", *arguments, limits=limits)
    return tokens


def encoded(serialised: str, split: bool, text: str, special: bool, what: str) -> np.ndarray:
    """`encode`, by the tokenizer that was `serialised`; with `split`, special tokens are split as other text.

    Raises:
        UserError: the tokenizer fails.
    """
    with refusing(what):
        backend = _backend(serialised)
        backend.encode_special_tokens = split
        (found,) = backend.encode_batch_fast([text], add_special_tokens=special)
        return np.asarray(found.ids, np.int32)


@functools.lru_cache(maxsize=confinement.MOST_KEPT)
def _backend(serialised: str) -> Any:
    backend = tokenizers.Tokenizer.from_str(serialised)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _kept(tokenizer: Any) -> Kept:
    size, kept = _serialised.get(tokenizer, (0, None))
    if kept is None or size != len(tokenizer):
        size, kept = len(tokenizer), Kept(tokenizer.backend_tokenizer.to_str())
        _serialised[tokenizer] = size, kept
    return kept


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. An unpaired surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
