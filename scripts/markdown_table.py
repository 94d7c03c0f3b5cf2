"""Print Markdown tables, one row at a time."""

import statistics
from collections.abc import Mapping, Sequence


def print_row(*cells: object) -> None:
    """Print a row."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_header(*columns: str) -> None:
    """Print the header of a table."""
    print_row(*columns)
    print("|---" * len(columns) + "|")


def kl_cell(qualities: Sequence[Mapping[str, float]]) -> str:
    """The medians of KL and perplexity over seeds, and the span of KL, if there are several seeds."""
    kl = [quality["kl"] for quality in qualities]
    perplexity = statistics.median(quality["perplexity"] for quality in qualities)
    span = f" ({min(kl):.3f}–{max(kl):.3f})" if len(kl) > 1 else ""
    return f"{statistics.median(kl):.3f}{span}, {perplexity:.1f}"
