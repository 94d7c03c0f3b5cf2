"""Tokenizers of GGUF files, without torch.

transformers' own conversion needs torch, and it splits numbers differently from SmolLM2's training. So the
tokenizer is built here from the file's metadata, and splits text as llama.cpp does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from tyr_jax.data.encoding import refusing
from tyr_jax.errors import UserError
from tyr_jax.io.config_values import shown
from tyr_jax.io.gguf import metadata
from tyr_jax.io.gguf_header import GgufFile
from tyr_jax.io.tokenizer import check_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Token types in GGUF."""


WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern for splitting text before merging."""


CASELESS_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of Llama 3 and Qwen2, which differ in how many digits stay together."""


class Split(NamedTuple):
    """A way of splitting text, which `tokenizer.ggml.pre` names."""

    patterns: tuple[str, ...]
    """Regular expressions. Each splits the pieces that the one before left."""
    whole_words: bool = False
    """Whether a piece that is in the vocabulary becomes one token, without merging."""
    add_bos: bool = False
    """Whether texts begin with the bos token if the file does not say so."""
    compose: bool = False
    """Whether Unicode is composed (NFC) first."""


LLAMA3 = Split((CASELESS_WORDS.format(digits=r"\p{N}{1,3}"),), whole_words=True, add_bos=True)


QWEN2 = Split((CASELESS_WORDS.format(digits=r"\p{N}"),), compose=True)


SPLITS: dict[str, Split] = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Split((WORDS,)),
    "smollm": Split((r"\p{N}", WORDS)),
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "llama-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}


SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's visible space."""


ARRAYS: dict[str, type | tuple[type, ...]] = {
    "tokens": str,
    "merges": str,
    "scores": (int, float),
    "token_type": int,
}
"""Array metadata under `tokenizer.ggml.`, and the type of their elements."""


SCALARS: dict[str, type] = {
    "ggml.pre": str,
    "chat_template": str,
    **dict.fromkeys(("ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix"), bool),
}
"""Other metadata under `tokenizer.` and their types, except for token ids."""


NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens, and their names in metadata."""


MOST_CUTS = 2**31
"""The largest sum of the squared lengths of all tokens. The cost of recovering merges grows with it. For the
largest vocabularies it is in the tens of millions."""


def tokenizer_from_gguf(file: GgufFile, path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file describes, including the chat template.

    Raises:
        UserError: metadata are missing, or their value is not supported (names the key); or the tokenizer
            does not work.
    """
    arrays = {
        f"tokenizer.ggml.{name}": value
        for name in ARRAYS
        if (value := file.values.get(f"tokenizer.ggml.{name}")) is not None
    }
    values = {key.removeprefix("tokenizer."): value for key, value in (metadata(file) | arrays).items()}
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = values.get("ggml.model")
    if kind not in builders:
        raise UserError(f"metadata key 'tokenizer.ggml.model' of {path} is {shown(kind)}: not gpt2 or llama")
    _require(values, path, "ggml.tokens")
    _check_kinds(values, path)
    with refusing(f"cannot build the tokenizer of {path}"):
        tokenizer, add_bos = builders[kind](values, path)
        _add_special_tokens(tokenizer, values)
        special = _named_tokens(values)
        _add_template(tokenizer, values, special, add_bos)
        result = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            model_max_length=_context_length(values),
            **special,
        )
    result.chat_template = values.get("chat_template")
    check_tokenizer(result, str(path))
    return result


def _check_kinds(values: Mapping[str, Any], path: Path) -> None:
    """Check the types and sizes of the tokenizer's metadata.

    Raises:
        UserError: one is of the wrong type or size; names the key.
    """

    def check(key: str, right: bool, wanted: str) -> None:
        if not right:
            found = shown(values[key])
            raise UserError(f"metadata key 'tokenizer.{key}' of {path} is {found}: it must be {wanted}")

    tokens = values["ggml.tokens"]
    for name, kinds in ARRAYS.items():
        array = values.get(key := f"ggml.{name}")
        if array is not None:
            right = isinstance(array, list) and all(isinstance(value, kinds) for value in array)
            check(key, right, "a list of texts" if kinds is str else "a list of numbers")
            check(key, name == "merges" or not array or len(array) == len(tokens), "as long as the tokens")
    for key, kind in SCALARS.items():
        check(key, isinstance(values.get(key, kind()), kind), "text" if kind is str else "true or false")
    for name in NAMED.values():
        index = values.get(key := f"ggml.{name}_token_id", 0)
        whole = isinstance(index, int) and not isinstance(index, bool)
        check(key, key not in values or (whole and 0 <= index < len(tokens)), "the id of a token")


def _require(values: Mapping[str, Any], path: Path, *keys: str) -> None:
    for key in keys:
        if key not in values:
            raise UserError(
                f"metadata key 'tokenizer.{key}' is missing from {path}: its tokenizer is unknown"
            )


def _context_length(values: Mapping[str, Any]) -> int:
    length = values.get(f"{values.get('general.architecture')}.context_length")
    return length if isinstance(length, int) else 1 << 30


def _vocabulary(values: Mapping[str, Any]) -> dict[str, int]:
    return {token: index for index, token in enumerate(values["ggml.tokens"])}


def _byte_level(values: Mapping[str, Any], path: Path) -> tuple[Tokenizer, bool]:
    """(byte-level BPE tokenizer as GPT-2's, whether its texts begin with bos by default)."""
    _require(values, path, "ggml.merges")
    name = values.get("ggml.pre", "default")
    if name not in SPLITS:
        raise UserError(
            f"metadata key 'tokenizer.ggml.pre' of {path} is {shown(name)}: only {', '.join(SPLITS)} are "
            "supported"
        )
    split = SPLITS[name]
    # A merge is two tokens with a space between them. The first token may itself begin with a space.
    cuts = [(merge, merge.find(" ", 1)) for merge in values["ggml.merges"]]
    merges = [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]
    tokenizer = _model(
        path, vocab=_vocabulary(values), merges=merges, fuse_unk=False, ignore_merges=split.whole_words
    )
    if split.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(split, bool(values.get("ggml.add_space_prefix", False)))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.add_bos


def pre_tokenizer(split: Split, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    """The step that splits text before merging. With `prefix`, a space is put in front of a text."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    return pre_tokenizers.Sequence([*steps, whole])


def _sentencepiece(values: Mapping[str, Any], path: Path) -> tuple[Tokenizer, bool]:
    """(SentencePiece BPE tokenizer as Llama 2's, whether its texts begin with bos by default).

    Merges are recovered from the scores. Unknown characters become bytes.
    """
    _require(values, path, "ggml.scores")
    tokens = values["ggml.tokens"]
    types = values.get("ggml.token_type") or [NORMAL] * len(tokens)
    if sum(len(token) ** 2 for token in tokens) > MOST_CUTS:
        raise UserError(f"metadata key 'tokenizer.ggml.tokens' of {path} has tokens longer than any model's")
    vocab = _vocabulary(values)
    unknown = tokens[values["ggml.unknown_token_id"]] if "ggml.unknown_token_id" in values else None
    tokenizer = _model(
        path,
        vocab=vocab,
        merges=merges_from_scores(vocab, values["ggml.scores"], types),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = values.get("ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), replace] if prefix else [replace]
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, True


def _model(path: Path, **arguments: Any) -> Tokenizer:
    with refusing(f"the vocabulary and merges of {path} do not fit together"):
        return Tokenizer(models.BPE(**arguments))


def merges_from_scores(
    vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies, best first.

    These are all pairs of tokens that together form a token.
    """
    merges = [
        (-scores[index], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, index in vocab.items()
        if types[index] in (NORMAL, USER_DEFINED)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [(left, right) for _, _, _, left, right in sorted(merges)]


def _add_special_tokens(tokenizer: Tokenizer, values: Mapping[str, Any]) -> None:
    """Add the tokens that are found in a text before it is split, and stay whole."""
    pairs = list(zip(values["ggml.tokens"], values.get("ggml.token_type") or [], strict=False))
    special = [AddedToken(token, normalized=False) for token, kind in pairs if kind in (CONTROL, UNKNOWN)]
    plain = [AddedToken(token, normalized=False) for token, kind in pairs if kind == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _named_tokens(values: Mapping[str, Any]) -> dict[str, str]:
    """The bos, eos, unk and pad tokens that the file names."""
    indices = {short: values.get(f"ggml.{long}_token_id") for short, long in NAMED.items()}
    tokens = values["ggml.tokens"]
    return {f"{short}_token": tokens[index] for short, index in indices.items() if index is not None}


def _add_template(
    tokenizer: Tokenizer, values: Mapping[str, Any], special: Mapping[str, str], add_bos: bool
) -> None:
    """Make encoded texts begin with bos and end with eos, if the file asks for it."""
    bos = special.get("bos_token") if values.get("ggml.add_bos_token", add_bos) else None
    eos = special.get("eos_token") if values.get("ggml.add_eos_token", False) else None
    if not (bos or eos):
        return
    ends = [token for token in dict.fromkeys((bos, eos)) if token]

    def around(part: str, kind: int) -> list[str]:
        pieces = (bos, part, eos)
        return [f"{piece}:{kind}" for piece in pieces if piece]

    tokenizer.post_processor = processors.TemplateProcessing(
        single=around("$A", 0),
        pair=around("$A", 0) + around("$B", 1),
        special_tokens=[(token, values["ggml.tokens"].index(token)) for token in ends],
    )
