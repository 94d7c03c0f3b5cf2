import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from io_samples import add_metadata, finish, make_lines, write_sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tyr_jax.errors import UserError
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.gguf_tokenizer import tokenizer_from_gguf
from tyr_jax.io.tokenizer import tokenizer_from_directory

Reference = Callable[[Path, list[str], bool], list[list[int]]]
Rewriter = Callable[[Path, Path, dict[str, Any]], Path]


def load(path: Path) -> PreTrainedTokenizerFast:
    return tokenizer_from_gguf(open_gguf(path), path)


def encode(tokenizer: Any, lines: list[str], special: bool) -> list[list[int]]:
    return [tokenizer(line, add_special_tokens=special).input_ids for line in lines]


def assert_same(ours: list[list[int]], theirs: list[list[int]], lines: list[str]) -> None:
    different = [line for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]
    assert not different, f"{len(different)} of {len(lines)} lines differ, such as {different[0]!r}"


@pytest.mark.smollm2
@pytest.mark.parametrize("special", [False, True])
def test_smollm2_like_llama_cpp(
    smollm2_path: Path, lines: list[str], llama_cpp: Reference, special: bool
) -> None:
    assert len(lines) == 1000
    assert_same(encode(load(smollm2_path), lines, special), llama_cpp(smollm2_path, lines, special), lines)


@pytest.mark.smollm2
def test_smollm2_like_transformers(smollm2_path: Path) -> None:
    """Only lines without digits: training split SmolLM2's numbers into digits, but transformers does not."""
    lines = [
        line
        for line in make_lines(4000)
        if not any(unicodedata.category(letter).startswith("N") for letter in line)
    ]
    assert len(lines) >= 1000
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    assert_same(encode(load(smollm2_path), lines, False), encode(theirs, lines, False), lines)


@pytest.mark.smollm2
@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe", "qwen2"])
def test_other_ways_to_split(
    pre: str,
    small_vocabulary: Path,
    tmp_path: Path,
    lines: list[str],
    llama_cpp: Reference,
    tokenizer_rewriter: Rewriter,
) -> None:
    """SmolLM2's vocabulary with other models' pre-tokenizers. `llama-bpe` also adds a bos by default."""
    changes = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": None}
    path = tokenizer_rewriter(small_vocabulary, tmp_path / "other.gguf", changes)
    if pre == "qwen2":
        # Qwen2's own tokenizer composes Unicode, and so does ours. llama.cpp does not.
        lines = [line for line in lines if unicodedata.is_normalized("NFC", line)]
    assert len(lines) > 900
    tokenizer = load(path)
    assert_same(encode(tokenizer, lines, True), llama_cpp(path, lines, True), lines)
    assert (tokenizer("x").input_ids[0] == tokenizer.bos_token_id) == (pre == "llama-bpe")


@pytest.mark.smollm2
@pytest.mark.parametrize("add_bos", [False, True])
def test_saved_tokenizer_is_the_same(
    add_bos: bool, small_vocabulary: Path, tmp_path: Path, lines: list[str], tokenizer_rewriter: Rewriter
) -> None:
    changes = {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_bos}
    original = load(tokenizer_rewriter(small_vocabulary, tmp_path / "other.gguf", changes))
    original.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    again = tokenizer_from_directory(tmp_path)
    assert_same(encode(again, lines, True), encode(original, lines, True), lines)
    assert again.special_tokens_map == original.special_tokens_map
    chat = [{"role": "user", "content": "hi"}]
    assert again.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(
        chat, tokenize=False
    )
    assert (original("x").input_ids[-1] == original.eos_token_id) == add_bos


@pytest.mark.smollm2
def test_smollm2_special_tokens_and_template(smollm2_path: Path) -> None:
    tokenizer = load(smollm2_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token == "<|endoftext|>"
    assert len(tokenizer) == 49152
    assert tokenizer.model_max_length == 8192
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n")
    ids = tokenizer(text).input_ids
    assert ids.count(1) == 2
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepiece_like_llama_cpp(
    prefix: bool | None, sentencepiece_model: Any, tmp_path: Path, lines: list[str], llama_cpp: Reference
) -> None:
    changes = {"tokenizer.ggml.add_space_prefix": prefix}
    path = write_sentencepiece(tmp_path / "spm.gguf", sentencepiece_model, changes)
    tokenizer = load(path)
    assert_same(encode(tokenizer, lines, True), llama_cpp(path, lines, True), lines)
    assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id


def test_sentencepiece_like_itself(sentencepiece_model: Any, tmp_path: Path, lines: list[str]) -> None:
    """Ordinary text only: SentencePiece itself reads `<s>` in a text as letters, and drops NUL."""
    path = write_sentencepiece(tmp_path / "spm.gguf", sentencepiece_model, {})
    tokenizer = load(path)
    plain = [line for line in lines if not any(token in line for token in ("<s>", "</s>", "<unk>"))]
    assert len(plain) > 500
    assert_same(encode(tokenizer, plain, False), [sentencepiece_model.encode(line) for line in plain], plain)
    text = "Hello  wörld, 日本\n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_no_torch_needed(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, gguf_writer: Any) -> None:
    """Load a tokenizer in both ways, and import all of `tyr_jax.io`, with torch impossible to import."""
    tiny_tokenizer.save_pretrained(tmp_path)
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 8, "hidden_size": 8, "intermediate_size": 8}
    config = {"model_type": "llama", "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 300}
    path = gguf_writer(tmp_path / "m.gguf", sizes | config, {})
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import tyr_jax.io.checkpoint
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.tokenizer import tokenizer_from_directory
from tyr_jax.io.gguf_tokenizer import tokenizer_from_gguf
path = Path({str(path)!r})
print(tokenizer_from_gguf(open_gguf(path), path)("ab").input_ids)
print(tokenizer_from_directory(Path({str(tmp_path)!r}))("the").input_ids)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["[256]", str(tiny_tokenizer("the").input_ids)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model.*bert"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model"),
        ({"tokenizer.ggml.pre": "martian"}, "tokenizer.ggml.pre.*martian.*smollm"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["x yz"]}, "vocabulary and merges"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.eos_token_id": 999}, "tokenizer.ggml.eos_token_id.*999"),
    ],
)
def test_gguf_errors(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["x", "y", "xy"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["x y"],
    }
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    add_metadata(writer, values | changes)
    finish(writer)
    with pytest.raises(UserError, match=named):
        load(tmp_path / "t.gguf")


def test_directory_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match=r"cannot load the tokenizer .*tokenizer\.json: "):
        tokenizer_from_directory(tmp_path)
