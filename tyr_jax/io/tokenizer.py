"""Tokenizers of Hugging Face directories and GGUF files, without torch.

transformers' own way from a GGUF file needs torch and splits numbers unlike SmolLM2's training did, so the
tokenizer is built here from the file's metadata, to split text as llama.cpp does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader
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
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from tyr_jax.errors import UserError, first_line
from tyr_jax.files import read_json
from tyr_jax.io.gguf import metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Token types of GGUF."""

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text before merging."""

CASELESS_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen2 do, which differ in how many digits stay together."""


class Split(NamedTuple):
    """What `tokenizer.ggml.pre` stands for."""

    patterns: tuple[str, ...]
    """Regular expressions, each cutting what the one before left."""
    whole_words: bool = False
    """Whether a piece that is in the vocabulary is taken as it is, without merging."""
    add_bos: bool = False
    """Whether texts begin with the bos token where the file does not say."""
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

ARRAYS = {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges")}


def tokenizer_from_directory(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face directory, chat template included.

    Raises `UserError` naming the directory when it has none, or one that needs more than `tokenizers`.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{directory} has no tokenizer: tokenizer.json is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, config=_plain_config(directory), local_files_only=True
        )
    except Exception as error:
        # transformers raises whatever its parsers do: OSError, ValueError, KeyError, bare Exception.
        raise UserError(f"cannot load the tokenizer of {directory}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {directory} has no fast version (tokenizer.json), which is needed")
    return tokenizer


def _plain_config(directory: Path) -> PreTrainedConfig | None:
    """What to show transformers in place of a `config.json` whose layers differ, which it refuses.

    It looks at the configuration only to choose the tokenizer's class, but reads all of it to do so.
    """
    path = directory / "config.json"
    values = read_json(path) if path.is_file() else {}
    if not values.get("per_layer_config"):
        return None
    return AutoConfig.for_model(
        **{key: value for key, value in values.items() if key not in ("per_layer_config", "auto_map")}
    )


def tokenizer_from_gguf(reader: GGUFReader, path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer a GGUF file describes, chat template included.

    Raises `UserError` naming the metadata that is missing or not supported.
    """
    values = {key.removeprefix("tokenizer."): value for key, value in metadata(reader).items()}
    arrays = metadata(reader, ARRAYS)
    values |= {key.removeprefix("tokenizer."): value for key, value in arrays.items()}
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = values.get("ggml.model")
    if kind not in builders:
        raise UserError(f"metadata key 'tokenizer.ggml.model' of {path} is {kind!r}: not gpt2 or llama")
    _require(values, path, "ggml.tokens")
    tokenizer, add_bos = builders[kind](values, path)
    _add_special_tokens(tokenizer, values)
    special = _named_tokens(values, path)
    _add_template(tokenizer, values, special, add_bos)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=_context_length(values),
        **special,
    )
    result.chat_template = values.get("chat_template")
    return result


def _require(values: Mapping[str, Any], path: Path, *keys: str) -> None:
    for key in keys:
        if key not in values:
            raise UserError(
                f"metadata key 'tokenizer.{key}' is missing from {path}: its tokenizer is unknown"
            )


def _context_length(values: Mapping[str, Any]) -> int:
    return int(values.get(f"{values.get('general.architecture')}.context_length", 1 << 30))


def _vocabulary(values: Mapping[str, Any]) -> dict[str, int]:
    return {token: index for index, token in enumerate(values["ggml.tokens"])}


def _byte_level(values: Mapping[str, Any], path: Path) -> tuple[Tokenizer, bool]:
    """A byte-level BPE (GPT-2's kind) and whether its texts begin with bos by default."""
    _require(values, path, "ggml.merges")
    name = values.get("ggml.pre", "default")
    if name not in SPLITS:
        raise UserError(
            f"metadata key 'tokenizer.ggml.pre' of {path} is {name!r}: only {', '.join(SPLITS)} are supported"
        )
    split = SPLITS[name]
    # A merge is two tokens with a space between; a token may itself begin with a space.
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
    """What cuts text before merging; with `prefix`, a text begins with a space."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    return pre_tokenizers.Sequence([*steps, whole])


def _sentencepiece(values: Mapping[str, Any], path: Path) -> tuple[Tokenizer, bool]:
    """A SentencePiece BPE (Llama 2's kind): merges recovered from the scores, unknown letters as bytes."""
    _require(values, path, "ggml.scores")
    tokens = values["ggml.tokens"]
    types = values.get("ggml.token_type") or [NORMAL] * len(tokens)
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
    try:
        return Tokenizer(models.BPE(**arguments))
    except Exception as error:
        # `tokenizers` raises bare exceptions, for merges whose tokens are not in the vocabulary.
        raise UserError(
            f"the vocabulary and merges of {path} do not fit together: {first_line(error)}"
        ) from error


def merges_from_scores(
    vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges, best first, that a SentencePiece vocabulary implies: every way to make a token of two."""
    merges = [
        (-scores[index], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, index in vocab.items()
        if types[index] in (NORMAL, USER_DEFINED)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [(left, right) for _, _, _, left, right in sorted(merges)]


def _add_special_tokens(tokenizer: Tokenizer, values: Mapping[str, Any]) -> None:
    """Tokens that are found in the text before anything else, and stay whole."""
    pairs = list(zip(values["ggml.tokens"], values.get("ggml.token_type") or [], strict=False))
    special = [AddedToken(token, normalized=False) for token, kind in pairs if kind in (CONTROL, UNKNOWN)]
    plain = [AddedToken(token, normalized=False) for token, kind in pairs if kind == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _named_tokens(values: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The bos, eos, unk and pad tokens that the file names."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    tokens = values["ggml.tokens"]
    result = {}
    for short, long in names.items():
        index = values.get(f"ggml.{long}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise UserError(
                f"metadata key 'tokenizer.ggml.{long}_token_id' of {path} is {index}: no such token"
            )
        result[f"{short}_token"] = tokens[index]
    return result


def _add_template(
    tokenizer: Tokenizer, values: Mapping[str, Any], special: Mapping[str, str], add_bos: bool
) -> None:
    """Make encoded texts begin with bos and end with eos where the file asks for it."""
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
