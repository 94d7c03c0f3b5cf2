"""Tokens of sources, and how they are cut into windows and sequences.

Every `PERIOD`-th window of a calibration source is held out for evaluation.

Letters: `B` sequences, `T` tokens in a sequence, `W` evaluation windows.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tyr_jax.data import chat
from tyr_jax.data.documents import Conversation, read_documents
from tyr_jax.data.encoding import encode
from tyr_jax.data.sources import Source
from tyr_jax.errors import UserError

PERIOD = 8
# Characters of text read for each token wanted; English has four to five.
CHARS_PER_TOKEN = 8
# Tokens dropped where a text is cut short, as its last word may have been cut.
MARGIN = 16
# Tokens of an opening: the first token of a sequence, and a few that attend to it.
OPENING = 4
# Some chat templates write today's date. This, put before a template, keeps its text the same on any day.
FIXED_DATE = "{%- macro strftime_now(format) -%} 26 Jul 2024 {%- endmacro -%}"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int | None
    bos_token_id: int | None
    all_special_ids: Sequence[int]

    def __len__(self) -> int:
        """Entries of the vocabulary."""

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the library `tokenizers`."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Special tokens by their names in chat templates."""

    def get_chat_template(self) -> str:
        """The chat template. Raises `ValueError` if there is none."""


def fingerprint(array: np.ndarray) -> str:
    """The sha256 of the tokens as little-endian int32, for comparing the data of two runs."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<i4").tobytes()).hexdigest()


def tokenize(texts: Iterable[str], tokenizer: Tokenizer, limit: int | None = None) -> np.ndarray:
    """Token ids of texts as one int32 stream `[tokens]`; with a `limit`, no more texts are taken than needed.

    No special tokens are added except the tokenizer's EOS, if it has one, between texts.
    """
    parts: list[np.ndarray] = []
    size = 0
    for text in texts:
        joint = [] if not parts or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        parts.append(np.concatenate([np.asarray(joint, np.int32), encode(tokenizer, text)]))
        size += len(parts[-1])
        if limit is not None and size >= limit:
            break
    return np.concatenate([np.zeros(0, np.int32), *parts])[:limit]


def read_tokens(
    source: Source, tokenizer: Tokenizer, limit: int | None = None, chat_template: bool = False
) -> np.ndarray:
    """The first `limit` tokens of a source, int32 `[tokens]`; fewer if it has no more.

    A larger `limit` only ever adds tokens at the end.

    Raises:
        UserError: the source cannot be read, or holds conversations and `chat_template` is false.
    """
    if limit is None:
        return tokenize(_texts(source, tokenizer, chat_template), tokenizer)
    wanted = limit + MARGIN
    chars = CHARS_PER_TOKEN * wanted
    while True:
        taken: list[int] = []
        texts = _texts(source, tokenizer, chat_template, chars)
        stream = tokenize(_first(texts, chars, taken), tokenizer, wanted)
        if len(stream) >= wanted or sum(taken) < chars:
            return stream[:limit]
        chars *= 4


def _first(texts: Iterable[str], chars: int, taken: list[int]) -> Iterator[str]:
    """The first `chars` characters of texts; the last text is cut there. Their lengths go into `taken`."""
    left = chars
    for text in texts:
        taken.append(min(len(text), left))
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _texts(
    source: Source, tokenizer: Tokenizer, chat_template: bool, max_chars: int | None = None
) -> Iterator[str]:
    for document in read_documents(source, max_chars):
        if isinstance(document, str):
            yield document
        elif chat_template:
            yield render(document, source, tokenizer)
        else:
            raise UserError(
                f"'{source.label}' holds conversations, which can be read as text only with the model's chat "
                "template (prune --chat-template, evaluate --chat-template True; finetune as the model was "
                "pruned): use it, or name a column of text"
            )


def render(conversation: Conversation, source: Source, tokenizer: Tokenizer, **options: Any) -> str:
    """Render a conversation with the model's own chat template and its `options`.

    Raises:
        UserError: the template fails.
    """
    template = chat.template_of(tokenizer)
    if "strftime_now" in template:
        template = f"{FIXED_DATE}{template}"
    try:
        return chat.written(tokenizer, conversation, template, **options)
    except UserError as error:
        raise UserError(f"cannot render a conversation of '{source.label}': {error}") from None


def hold_out(stream: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(every `PERIOD`-th window of `length` tokens, from the first on, `[W, length]`; all other text)."""
    windows = whole_windows(stream, length)
    held = np.arange(len(windows)) % PERIOD == 0
    return windows[held], np.concatenate([windows[~held].reshape(-1), stream[windows.size :]])


def whole_windows(stream: np.ndarray, length: int) -> np.ndarray:
    """The whole windows `[W, length]` of a stream, one after the other."""
    return stream[: len(stream) // length * length].reshape(-1, length)


def deal(
    stream: np.ndarray, lengths: Sequence[int], needs: Sequence[int], rng: np.random.Generator, label: str
) -> list[np.ndarray]:
    """Disjoint random draws, `[needs[i], lengths[i]]`, of sequences from a stream.

    The longest sequences are dealt first, whole. What they leave is cut into shorter ones.

    Raises:
        UserError: the stream has too few sequences.
    """
    drawn, rest = {}, stream[None]
    for part in sorted(range(len(lengths)), key=lambda part: -lengths[part]):
        length = lengths[part]
        pieces = rest[:, : rest.shape[1] // length * length].reshape(-1, length)
        if len(pieces) < needs[part]:
            raise UserError(
                f"'{label}' has {len(stream)} tokens outside its evaluation part, but "
                f"{np.dot(needs, lengths)} are needed to prune, to search and to choose between models; "
                "lower --calibration-tokens, --search-tokens or its weight, or add a source"
            )
        order = rng.permutation(len(pieces))
        drawn[part], rest = pieces[order[: needs[part]]], pieces[order[needs[part] :]]
    return [drawn[part] for part in range(len(lengths))]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole parts proportional to `weights`; the largest remainders are rounded up."""
    quotas = [total * weight / sum(weights) for weight in weights]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def interleave(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several arrays `[S_i, T]` in one `[Σ S_i, T]`, with each array's rows evenly spread over it."""
    places = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts])
    return np.concatenate(parts)[np.argsort(places, kind="stable")]


def with_noise(
    sequences: np.ndarray, share: float, tokenizer: Tokenizer, rng: np.random.Generator
) -> np.ndarray:
    """Sequences `[B, T]` with noise in a `share` of them: about half of their tokens, at random places, are
    replaced by random tokens that are not special.

    Raises:
        UserError: the tokenizer has only special tokens.
    """
    if not share:
        return sequences
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    if not len(ordinary):
        raise UserError("all of this tokenizer's tokens are special; give the one that the model came with")
    noisy = rng.permutation(len(sequences)) < round(share * len(sequences))
    replaced = noisy[:, None] & (rng.random(sequences.shape) < 0.5)
    return np.where(replaced, rng.choice(ordinary, sequences.shape), sequences).astype(sequences.dtype)


def openings(sequences: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pieces `[count, OPENING]` from random places in sequences `[B, T]`; none if B is 0.

    Pieces have T tokens if T is less than `OPENING`.
    """
    length = min(OPENING, sequences.shape[1])
    shape = (count if len(sequences) else 0, 1)
    rows = rng.integers(max(1, len(sequences)), size=shape)
    starts = rng.integers(sequences.shape[1] - length + 1, size=shape)
    return sequences[rows, starts + np.arange(length)]


def with_bos(sequences: np.ndarray, bos: int | None) -> np.ndarray:
    """Sequences `[B, T]` with `bos`, if given, put first: each moves right by one, losing its last token."""
    if bos is None:
        return sequences
    return np.concatenate([np.full_like(sequences[:, :1], bos), sequences[:, :-1]], axis=1)
