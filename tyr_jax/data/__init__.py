"""Text sources → tokens `[sequences, T]`: disjoint calibration, search and evaluation splits.

`sources.py` names and reads texts, `builtin.py` is the text that needs neither network nor files, and
`packing.py` turns them into arrays.
"""

from tyr_jax.data.packing import (
    OPENING,
    DataSpec,
    Splits,
    Tokenizer,
    check_sizes,
    evaluation_sources,
    fingerprint,
    load_evaluation,
    load_splits,
    read_tokens,
    to_write,
    tokenize,
)
from tyr_jax.data.sources import (
    Source,
    anchored,
    describe,
    needs_trust,
    parse_source,
    read_documents,
)

__all__ = [
    "OPENING",
    "DataSpec",
    "Source",
    "Splits",
    "Tokenizer",
    "anchored",
    "check_sizes",
    "describe",
    "evaluation_sources",
    "fingerprint",
    "load_evaluation",
    "load_splits",
    "needs_trust",
    "parse_source",
    "read_documents",
    "read_tokens",
    "to_write",
    "tokenize",
]
