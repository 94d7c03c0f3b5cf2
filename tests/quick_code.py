"""Compile programs with the usual optimizations, in this process and in those that it starts."""

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

import jax

NAME = "jax_disable_most_optimizations"


@contextlib.contextmanager
def quick_code() -> Iterator[None]:
    """For tests whose time goes to computing rather than compiling."""
    before = jax.config.values[NAME]
    with mock.patch.dict(os.environ, {NAME.upper(): "0"}):
        jax.config.update(NAME, False)
        try:
            yield
        finally:
            jax.config.update(NAME, before)
