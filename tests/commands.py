"""Commands that tests start in separate processes."""

import sys

MAIN_JOB = """
import sys
sys.modules["torch"] = None
import transformers
del sys.modules["torch"]
from tyr_jax.prune import main
main()
"""
"""The main job without torch. transformers looks for torch when it is imported, and importing torch would
take longer than everything else at the start."""


def main_job(*arguments: str) -> list[str]:
    """The main job's command, as if torch were not installed. The job does not need torch."""
    return [sys.executable, "-c", MAIN_JOB, *arguments]
