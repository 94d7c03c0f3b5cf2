"""Tokenizers written to a GGUF file, read back, and used in llama.cpp."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from io_samples import finish
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tyr_jax.errors import UserError
from tyr_jax.io.deci import add
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.gguf_tokenizer import SPLITS, pre_tokenizer, tokenizer_from_gguf
from tyr_jax.io.vocabulary import gguf_vocabulary

Reference = Callable[[Path, list[str], bool], list[list[int]]]
Rewriter = Callable[[Path, Path, dict[str, Any]], Path]


def load(path: Path) -> PreTrainedTokenizerFast:
    return tokenizer_from_gguf(open_gguf(path), path)


def write(path: Path, tokenizer: PreTrainedTokenizerFast, size: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer, gguf_vocabulary(tokenizer, size))
    finish(writer)
    return path


def check(
    original: PreTrainedTokenizerFast, path: Path, lines: list[str], llama_cpp: Reference | None
) -> None:
    """Check that we and llama.cpp read the tokenizer `original` from `path`."""
    again = load(path)
    expected = [original(line).input_ids for line in lines]
    assert [again(line).input_ids for line in lines] == expected
    assert again.special_tokens_map == original.special_tokens_map
    assert again.chat_template == original.chat_template
    if llama_cpp:
        assert llama_cpp(path, lines, True) == expected


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("pre", "ends"),
    [
        ("smollm", False),
        ("smollm", True),
        ("gpt-2", False),
        ("default", True),
        ("llama-bpe", False),
        ("qwen2", True),
    ],
)
def test_byte_level(
    pre: str,
    ends: bool,
    smollm2_path: Path,
    small_vocabulary: Path,
    tmp_path: Path,
    lines: list[str],
    llama_cpp: Reference,
    tokenizer_rewriter: Rewriter,
) -> None:
    changes = {"pre": pre, "add_bos_token": ends, "add_eos_token": ends}
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    source = smollm2_path if pre == "smollm" and not ends else small_vocabulary
    original = load(tokenizer_rewriter(source, tmp_path / "original.gguf", changes))
    lines = [line for line in lines if unicodedata.is_normalized("NFC", line)]
    check(original, write(tmp_path / "again.gguf", original, len(original)), lines, llama_cpp)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(
    prefix: bool,
    sentencepiece_file: Callable[[Path, dict[str, Any]], Path],
    tmp_path: Path,
    lines: list[str],
    llama_cpp: Reference,
) -> None:
    changes = {"tokenizer.ggml.add_space_prefix": prefix}
    original = load(sentencepiece_file(tmp_path / "original.gguf", changes))
    check(original, write(tmp_path / "again.gguf", original, 2000), lines, llama_cpp)


def test_embeddings_without_a_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    values = gguf_vocabulary(tiny_tokenizer, 300)
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    count = len(tiny_tokenizer)
    assert len(tokens) == len(types) == 300
    assert tokens[count:] == [f"[PAD{index}]" for index in range(count, 300)]
    assert set(types[count:]) == {5}
    assert [tokens[index] for index, kind in enumerate(types) if kind == 3] == ["<unk>", "<s>", "</s>"]
    assert values["tokenizer.chat_template"] == tiny_tokenizer.chat_template


@pytest.mark.parametrize(
    ("normalizer", "cut"),
    [
        (None, pre_tokenizers.Whitespace()),
        (normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (None, None),
    ],
)
def test_ways_to_split_that_llama_cpp_does_not_know(normalizer: Any, cut: Any) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    with pytest.raises(UserError, match=f"its pre-tokenizer is none of {next(iter(SPLITS))}"):
        gguf_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 2)


def test_models_other_than_bpe() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="its model is WordLevel, not BPE"):
        gguf_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 1)


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ({}, [], "its vocabulary is empty"),
        ({"a": 0, "b": 1}, [], "it has no merges"),
        ({"a": 0, "b c": 1, "ab c": 2}, [("a", "b c")], None),
        (
            {"a b": 0, "c": 1, "a bc": 2},
            [("a b", "c")],
            r"merge \['a b', 'c'\] has a space within",
        ),
        ({"a": 0, "b": 9, "ab": 2}, [("a", "b")], "a token with id 9, but the model has only 3 embeddings"),
    ],
)
def test_vocabularies_that_cannot_be(vocab: Any, merges: Any, message: str | None) -> None:
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizer(SPLITS["gpt-2"])
    if message is None:
        assert gguf_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 3)
        return
    with pytest.raises(UserError, match=message):
        gguf_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 3)
