"""Where things are kept from one run to the next: downloads, and programs that XLA has compiled."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 2 * 2**30
"""Compiled programs are kept up to this size; those not used for longest go first."""


def cache_directory() -> Path:
    """The root of it: `TYR_JAX_CACHE`, or `~/.cache/tyr_jax`."""
    return Path(os.environ.get("TYR_JAX_CACHE") or "~/.cache/tyr_jax").expanduser()


def processor() -> str:
    """A short name of this machine's kind of processor, by what it says of itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join([platform.machine(), platform.processor(), *told]).encode()).hexdigest()[
        :12
    ]


def keep_compiled() -> None:
    """Let JAX keep what it compiles in the cache, unless the user has told it where to keep it already.

    Programs compiled for one processor may not run on another, and a home directory may be shared by
    several: each kind has a folder of its own.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled" / processor()))
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
