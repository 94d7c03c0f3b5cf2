"""Writing a tokenizer as metadata of a GGUF file, the inverse of `tyr_jax.io.tokenizer`."""

import json
import re
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tyr_jax.data.encoding import encode
from tyr_jax.errors import UserError
from tyr_jax.io.gguf_tokenizer import SPACE, SPLITS, pre_tokenizer

PROBES = (
    "it's I'M we'll 'tis don'T",
    "12 1234 1234567 3.14159 a1b22 ٣٤٥ ½",
    "  two\n\n three \t tabs\r\n trailing   ",
    "punctuation?! (((a))) x+=y; $5 <=> ~~~ ^|^ — “quoted”…",
    "naïve Ὅμηρος 日本語 👩‍👧 e\u0301",
)
"""Texts that, taken together, no two entries of `SPLITS` split alike."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte token, which SentencePiece falls back to."""


def gguf_vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """The metadata `tokenizer.*` of a model with `size` embeddings.

    Raises:
        UserError: llama.cpp has no equivalent tokenizer, or a token has no embedding.
    """
    backend = tokenizer.backend_tokenizer
    description = json.loads(backend.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise UserError(f"a GGUF file cannot hold this tokenizer: its model is {model['type']}, not BPE")
    if not model["vocab"]:
        raise UserError("a GGUF file cannot hold this tokenizer: its vocabulary is empty")
    tokens, types = _tokens(description, size)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    values: dict[str, Any] = {"ggml.tokens": tokens, "ggml.token_type": types}
    if model["byte_fallback"]:
        first = next(map(backend.id_to_token, encode(tokenizer, "a").tolist()), "")
        values |= {"ggml.model": "llama", "ggml.scores": _scores(tokens, merges)}
        values |= {"ggml.pre": "default", "ggml.add_space_prefix": first.startswith(SPACE)}
    else:
        split = _split_name(backend, description)
        values |= {"ggml.model": "gpt2", "ggml.merges": _joined(merges), "ggml.pre": split}
    values |= _special(tokenizer)
    if isinstance(tokenizer.chat_template, str):
        values["chat_template"] = tokenizer.chat_template
    return {f"tokenizer.{key}": value for key, value in values.items()}


def _joined(merges: list[list[str]]) -> list[str]:
    """Merges as a GGUF file stores them: the two tokens with a space between them.

    Raises:
        UserError: there are no merges, or a token has a space within.
    """
    if not merges:
        # GGUF files cannot hold empty lists, and llama.cpp requires this one.
        raise UserError("a GGUF file cannot hold this tokenizer: it has no merges")
    joined = [" ".join(merge) for merge in merges]
    for merge, text in zip(merges, joined, strict=True):
        if text.find(" ", 1) != len(merge[0]):
            raise UserError(
                f"a GGUF file cannot hold this tokenizer: its merge {merge!r} has a space within a token"
            )
    return joined


def _tokens(description: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """(tokens, types), with an entry for every embedding. Embeddings without a token are of type UNUSED."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    model = description["model"]
    last = max(*model["vocab"].values(), *(added["id"] for added in description["added_tokens"]), 0)
    if last >= size:
        raise UserError(f"the tokenizer has a token with id {last}, but the model has only {size} embeddings")
    for token, index in model["vocab"].items():
        byte = model["byte_fallback"] and BYTE.fullmatch(token)
        tokens[index], types[index] = token, int(TokenType.BYTE if byte else TokenType.NORMAL)
    for added in description["added_tokens"]:
        index = added["id"]
        tokens[index] = added["content"]
        types[index] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Scores of the tokens that make SentencePiece merge in the order of `merges`."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _split_name(backend: Tokenizer, description: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which `backend` splits text before merging.

    Raises:
        UserError: it has none.
    """
    normalizer = description["normalizer"]
    if backend.pre_tokenizer is not None and (normalizer is None or normalizer["type"] == "NFC"):
        for name, split in SPLITS.items():
            cut = pre_tokenizer(split)
            alike = all(
                backend.pre_tokenizer.pre_tokenize_str(probe) == cut.pre_tokenize_str(probe)
                for probe in PROBES
            )
            options = (split.whole_words, split.compose)
            if alike and options == (description["model"]["ignore_merges"], normalizer is not None):
                return name
    raise UserError(
        f"a GGUF file cannot hold this tokenizer: its pre-tokenizer is none of {', '.join(SPLITS)}"
    )


def _special(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Metadata of the special tokens, and of whether texts begin with bos and end with eos."""
    indices = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    ends = encode(tokenizer, "a", special=True).tolist() or [None]
    return {f"ggml.{name}_token_id": index for name, index in indices.items() if index is not None} | {
        "ggml.add_bos_token": ends[0] == tokenizer.bos_token_id,
        "ggml.add_eos_token": ends[-1] == tokenizer.eos_token_id,
    }
