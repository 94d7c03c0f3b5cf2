"""Reference tokenizers, and the helpers of `io_samples` as fixtures."""

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_reference
import pytest
from io_samples import fewer_tokens, make_lines, rewrite_tokenizer, write_gguf, write_sentencepiece


@pytest.fixture(scope="session")
def lines() -> list[str]:
    return make_lines()


@pytest.fixture(scope="session")
def llama_cpp() -> Callable[[Path, list[str], bool], list[list[int]]]:
    """llama.cpp's tokenizer: (GGUF, texts, whether to add bos and eos) → tokens, special tokens parsed."""
    return llama_reference.tokenize


@pytest.fixture(scope="session")
def gguf_writer() -> Callable[..., Path]:
    return write_gguf


@pytest.fixture(scope="session")
def tokenizer_rewriter() -> Callable[[Path, Path, dict[str, Any]], Path]:
    return rewrite_tokenizer


@pytest.fixture(scope="session")
def small_vocabulary(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer, cut to its first 6000 tokens because gguf takes seconds to read them all."""
    path = tmp_path_factory.mktemp("vocabulary") / "small.gguf"
    return rewrite_tokenizer(smollm2_path, path, fewer_tokens(smollm2_path, 6000))


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("sentencepiece")
    (directory / "text").write_text("\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text"),
        model_prefix=str(directory / "spm"),
        vocab_size=2000,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "spm.model"))


@pytest.fixture(scope="session")
def sentencepiece_file(sentencepiece_model: Any) -> Callable[[Path, dict[str, Any]], Path]:
    """Write SentencePiece's vocabulary, with some metadata changed, as a GGUF without tensors."""
    return lambda path, changes: write_sentencepiece(path, sentencepiece_model, changes)
