"""Programs of this process, and of those that it starts, that are compiled with some optimizations."""

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

import jax

NAME = "jax_disable_most_optimizations"


@contextlib.contextmanager
def quick_code() -> Iterator[None]:
    """For what has the processor at work rather than the compiler."""
    before = jax.config.values[NAME]
    with mock.patch.dict(os.environ, {NAME.upper(): "0"}):
        jax.config.update(NAME, False)
        try:
            yield
        finally:
            jax.config.update(NAME, before)
