"""What is kept from one run to the next: downloads, and programs that XLA has compiled."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 2 * 2**30
"""Maximum size of all compiled programs; the least recently used go first."""


def cache_directory() -> Path:
    """The cache's root: `TYR_JAX_CACHE`, or `~/.cache/tyr_jax`."""
    return Path(os.environ.get("TYR_JAX_CACHE") or "~/.cache/tyr_jax").expanduser()


def processor() -> str:
    """A short hash that names this machine's kind of processor, from what it reports of itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join([platform.machine(), platform.processor(), *told]).encode()).hexdigest()[
        :12
    ]


def keep_compiled() -> None:
    """Let JAX keep compiled programs in the cache, unless the user has already told it where to keep them.

    Programs compiled for one processor may not run on another, and machines may share a home directory. So
    each kind of processor has its own folder.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled" / processor()))
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
