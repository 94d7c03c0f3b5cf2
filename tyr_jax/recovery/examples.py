"""What recovery trains on: text, all of which is learnt, and conversations, of which the answers are learnt.

The part of a text that pruning held out for evaluation stays held out. Of conversations, none are held out.

Letters: `B` rows, `T` tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tyr_jax.data.documents import Conversation, read_documents
from tyr_jax.data.encoding import encode
from tyr_jax.data.packing import (
    Tokenizer,
    apportion,
    hold_out,
    interleave,
    read_tokens,
    render,
    with_bos,
)
from tyr_jax.data.sources import Source
from tyr_jax.data.splits import POOL, DataSpec, tokens_to_read
from tyr_jax.errors import UserError

MOST_PASSES = 100
"""How often a text is read, at most: long before that, a model knows it by heart."""

GLANCE = 2**20
"""Characters that are read of a source to see whether it is text."""


class Examples(NamedTuple):
    """`tokens [B, T]`, and which of them to `learn [B, T]`."""

    tokens: np.ndarray
    learn: np.ndarray


def holds_text(source: Source) -> bool:
    """Whether a source holds text, not conversations. What a model generates itself is text."""
    return source.kind == "self" or isinstance(next(read_documents(source, GLANCE)), str)


def rows_of(sources: list[Source], count: int) -> list[int]:
    """How many of `count` rows each source gives, in proportion to their weights."""
    return apportion(count, [source.weight for source in sources])


def rows_to_write(sources: list[Source], count: int) -> int:
    """How many of `count` rows the dense model generates itself."""
    needs = zip(sources, rows_of(sources, count), strict=True)
    return sum(need for source, need in needs if source.kind == "self")


def load(
    sources: list[Source],
    spec: DataSpec,
    count: int,
    tokenizer: Tokenizer,
    seed: int,
    written: np.ndarray | None = None,
) -> tuple[Examples, dict[str, float]]:
    """(`count` rows of `spec.sequence_length` tokens, how often each source is read).

    Rows come from the sources in proportion to their weights, are drawn by `seed`, and are interleaved. A
    source with too few rows is read again; one that gives no row is not read. The rows of the source `self`
    are `written [B, T]`.

    Raises:
        UserError: a source cannot be read, has less than one row, or far too few for its part of `count`.
    """
    length, parts, passes = spec.sequence_length, [], {}
    for index, (source, need) in enumerate(zip(sources, rows_of(sources, count), strict=True)):
        if not need:
            passes[source.label] = 0.0
            continue
        if source.kind == "self":
            assert written is not None
            found = Examples(written.reshape(-1), np.ones(written.size, bool))
        else:
            read = text if holds_text(source) else answers
            found = read(source, spec, need * length, tokenizer)
        whole = len(found.tokens) // length
        if not whole:
            raise UserError(
                f"'{source.label}' has {len(found.tokens)} tokens to train on, but a sequence takes "
                f"{length}; lower --sequence-length, or give another text"
            )
        if need > MOST_PASSES * whole:
            raise UserError(
                f"'{source.label}' has only {whole} sequences of {length} tokens, which --tokens would "
                f"repeat {need / whole:.0f} times (at most {MOST_PASSES}); lower --tokens, or give more text"
            )
        rng = np.random.default_rng([seed, index])
        drawn = np.concatenate([rng.permutation(whole) for _ in range(-(-need // whole))])[:need]
        parts.append(Examples(*(array[: whole * length].reshape(whole, length)[drawn] for array in found)))
        passes[source.label] = need / whole
    tokens, learn = (interleave(arrays) for arrays in zip(*parts, strict=True))
    if spec.bos:
        tokens, learn = with_bos(tokens, tokenizer.bos_token_id), with_bos(learn, 0)
    return Examples(tokens, learn), passes


def text(source: Source, spec: DataSpec, wanted: int, tokenizer: Tokenizer) -> Examples:
    """Text outside the windows that are held out, as a stream; all of it is learnt."""
    stream = read_tokens(source, tokenizer, tokens_to_read(spec, wanted))
    _, rest = hold_out(stream, spec.evaluation_length)
    return Examples(rest, np.ones(len(rest), bool))


def answers(source: Source, spec: DataSpec, wanted: int, tokenizer: Tokenizer) -> Examples:
    """Conversations one after the other, as a stream; their answers are learnt. Reading stops after `POOL`
    times the `wanted` tokens.

    Raises:
        UserError: the source holds text as well; or as `pieces`.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    for conversation in read_documents(source):
        if isinstance(conversation, str):
            raise UserError(f"'{source.label}' holds conversations and text; make two sources of it")
        for piece, learnt in pieces(conversation, source, tokenizer):
            ids = encode(tokenizer, piece).tolist()
            tokens += ids
            learn += [learnt] * len(ids)
        if len(tokens) > POOL * wanted:
            break
    return Examples(np.asarray(tokens, np.int32), np.asarray(learn, bool))


def pieces(conversation: Conversation, source: Source, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """A conversation as the model's chat template writes it, up to its last answer: (piece, whether it is an
    answer).

    Raises:
        UserError: the template writes the beginning of a conversation in another way than within the whole.
    """
    done = ""
    for index, turn in enumerate(conversation):
        if turn["role"] != "assistant":
            continue
        question = render(conversation[:index], source, tokenizer, add_generation_prompt=True)
        whole = render(conversation[: index + 1], source, tokenizer)
        if not (whole.startswith(question) and question.startswith(done)):
            raise UserError(
                f"the model's chat template does not write a conversation of '{source.label}' turn by turn, "
                "so its answers cannot be told apart; give plain text"
            )
        yield question[len(done) :], False
        yield whole[len(question) :], True
        done = whole
