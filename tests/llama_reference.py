"""llama.cpp as a reference: tokens of texts, and logits of tokens."""

from pathlib import Path

import numpy as np

from tyr_jax.io import llama_cpp


def tokenize(path: Path, texts: list[str], add_special: bool = False) -> list[list[int]]:
    """Tokens of every text, special tokens parsed; `add_special` adds bos and eos where the file says so."""
    ffi, lib = llama_cpp.bindings()
    results = []
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    assert model != ffi.NULL, f"llama.cpp does not load {path}"
    vocab = lib.llama_model_get_vocab(model)
    for text in texts:
        raw = text.encode()
        room = 2 * len(raw) + 16
        buffer = ffi.new(f"llama_token[{room}]")
        count = lib.llama_tokenize(vocab, raw, len(raw), buffer, room, add_special, True)
        results.append([buffer[i] for i in range(count)])
    lib.llama_model_free(model)
    return results


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` of `tokens [T]`, with keys and values cached in float32."""
    with llama_cpp.session(path, len(tokens)) as session:
        return session.run(tokens, 0, every=True)
