"""Text sources → tokens `[sequences, T]`: disjoint calibration, search and evaluation splits.

`sources.py` names texts, `documents.py` reads them, `builtin.py` is the text that needs neither network nor
files, `packing.py` turns texts into arrays, and `splits.py` cuts a run's splits.
"""

from tyr_jax.data.documents import read_documents
from tyr_jax.data.packing import OPENING, Tokenizer, fingerprint, read_tokens, tokenize
from tyr_jax.data.sources import Source, anchored, describe, needs_trust, parse_source
from tyr_jax.data.splits import (
    DataSpec,
    Splits,
    check_sizes,
    choice_size,
    evaluation_sources,
    load_evaluation,
    load_splits,
    to_write,
)

__all__ = [
    "OPENING",
    "DataSpec",
    "Source",
    "Splits",
    "Tokenizer",
    "anchored",
    "check_sizes",
    "choice_size",
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
