"""Commands that tests start as processes of their own."""

import sys

MAIN_JOB = """
import sys
sys.modules["torch"] = None
import transformers
del sys.modules["torch"]
from tyr_jax.prune import main
main()
"""
"""Transformers decides when it is imported whether there is torch; it would take longer to import that than
all else takes to start."""


def main_job(*arguments: str) -> list[str]:
    """The main job's command, as if torch were not installed: nothing of it is needed."""
    return [sys.executable, "-c", MAIN_JOB, *arguments]
