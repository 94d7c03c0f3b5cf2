"""tyr_jax: structural pruning of large language models in JAX (after Týr-the-Pruner, NeurIPS 2025).

`tyr_jax.api` documents the functions. It is imported when one of them is first used.
"""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m` looks in the current directory first, so a `gguf.py` next to downloaded weights would run.
    # Plug-ins are still found there: see `tyr_jax.plugins`.
    sys.path.pop(0)

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tyr_jax.errors import UserError

if TYPE_CHECKING:
    from tyr_jax.api import (
        AnyModel,
        Benchmark,
        BenchmarkSettings,
        DataSpec,
        EvaluationSettings,
        Evolution,
        ExportSettings,
        GenerationSettings,
        LoadedModel,
        LocalPruner,
        Loss,
        Objective,
        Perplexities,
        PruneResult,
        PruningPlan,
        PruningSettings,
        RecoverResult,
        RecoverySettings,
        Rounds,
        Saliency,
        Sampling,
        Search,
        Settings,
        TaskScores,
        Training,
        benchmark_model,
        evaluate_model,
        export_model,
        generate_text,
        load_model,
        plan_pruning,
        prune_model,
        recover_model,
        stream_text,
    )

__all__ = [
    "AnyModel",
    "Benchmark",
    "BenchmarkSettings",
    "DataSpec",
    "EvaluationSettings",
    "Evolution",
    "ExportSettings",
    "GenerationSettings",
    "LoadedModel",
    "LocalPruner",
    "Loss",
    "Objective",
    "Perplexities",
    "PruneResult",
    "PruningPlan",
    "PruningSettings",
    "RecoverResult",
    "RecoverySettings",
    "Rounds",
    "Saliency",
    "Sampling",
    "Search",
    "Settings",
    "TaskScores",
    "Training",
    "UserError",
    "__version__",
    "benchmark_model",
    "evaluate_model",
    "export_model",
    "generate_text",
    "load_model",
    "plan_pruning",
    "prune_model",
    "recover_model",
    "stream_text",
]

try:
    __version__ = version("tyr-jax")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

# Without torch, Transformers prints advice to install it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# On a CPU, JAX factorises with OpenBLAS, whose threads wait for each other in busy loops. If one of them
# shares its core with another program, a factorisation takes up to a hundred times as long. So a core stays
# free.
_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, _cores - 1)))


def __getattr__(name: str) -> Any:
    """Import a name of the Python API when it is first used: the import takes seconds, which `--help` avoids.

    Raises:
        AttributeError: the API has no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tyr_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
