"""llama.cpp itself, through its C interface: tokens of texts, logits of tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tyr_jax.io import llama_cpp


@contextmanager
def loaded(path: Path, *, vocabulary_only: bool = False) -> Iterator[Any]:
    """The model of a GGUF file."""
    ffi, lib = llama_cpp.bindings()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = vocabulary_only
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    assert model != ffi.NULL, f"llama.cpp does not load {path}"
    yield model
    lib.llama_model_free(model)


def tokenize(path: Path, texts: list[str], add_special: bool = False) -> list[list[int]]:
    """Tokens of every text, special tokens parsed; `add_special` adds bos and eos where the file says so."""
    ffi, lib = llama_cpp.bindings()
    results = []
    with loaded(path, vocabulary_only=True) as model:
        vocab = lib.llama_model_get_vocab(model)
        for text in texts:
            raw = text.encode()
            room = 2 * len(raw) + 16
            buffer = ffi.new(f"llama_token[{room}]")
            count = lib.llama_tokenize(vocab, raw, len(raw), buffer, room, add_special, True)
            results.append([buffer[i] for i in range(count)])
    return results


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` of `tokens [T]`, with keys and values cached in float32."""
    ffi, lib = llama_cpp.bindings()
    length = len(tokens)
    with loaded(path) as model:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.type_k = parameters.type_v = 0
        parameters.flash_attn_type = 0
        context = lib.llama_init_from_model(model, parameters)
        batch = lib.llama_batch_init(length, 0, 1)
        batch.n_tokens = length
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = int(token), place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        assert lib.llama_decode(context, batch) == 0
        vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        buffer = ffi.buffer(lib.llama_get_logits(context), length * vocab * 4)
        result = np.frombuffer(buffer, np.float32).reshape(length, vocab).copy()
        lib.llama_batch_free(batch)
        lib.llama_free(context)
    return result
