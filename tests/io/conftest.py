"""Reference tokenizers, and the helpers of `io_samples` as fixtures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from io_samples import make_lines, rewrite_tokenizer, write_gguf


@pytest.fixture(scope="session")
def lines() -> list[str]:
    return make_lines()


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[[Path, list[str], bool], list[list[int]]]:
    """llama.cpp's tokenizer: (GGUF, texts, whether to add bos and eos) → tokens, special tokens parsed."""
    bindings = pytest.importorskip("llama_cpp_py_sync._cffi_bindings")
    ffi, lib = bindings.get_ffi(), bindings.get_lib()
    lib.llama_backend_init()

    def tokenize(path: Path, texts: list[str], add_special: bool = False) -> list[list[int]]:
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        assert model != ffi.NULL
        vocab = lib.llama_model_get_vocab(model)
        results = []
        for text in texts:
            raw = text.encode()
            buffer = ffi.new(f"llama_token[{2 * len(raw) + 16}]")
            count = lib.llama_tokenize(vocab, raw, len(raw), buffer, 2 * len(raw) + 16, add_special, True)
            results.append([buffer[i] for i in range(count)])
        lib.llama_model_free(model)
        return results

    return tokenize


@pytest.fixture(scope="session")
def gguf_writer() -> Callable[..., Path]:
    return write_gguf


@pytest.fixture(scope="session")
def tokenizer_rewriter() -> Callable[[Path, Path, dict[str, Any]], Path]:
    return rewrite_tokenizer
