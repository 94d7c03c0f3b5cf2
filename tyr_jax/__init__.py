"""tyr_jax: structural pruning of large language models in JAX (after Týr-the-Pruner, NeurIPS 2025)."""

import os
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tyr-jax")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# Where torch is missing, Transformers advises to install it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
