"""Tokens of sources, and the splits cut from them.

Every `PERIOD`-th window of `evaluation_length` tokens of a calibration source is held out for evaluation.
Which windows those are depends only on the text and that length, so runs with other seeds and other budgets
are measured on the same text. The text in between is cut into sequences, shuffled by the seed, and dealt to
calibration and search. (Where both `sequence_length` and `search_length` divide `evaluation_length`, no
sequence straddles the seam that a held-out window leaves.)

Letters: `B` sequences, `T` tokens in a sequence, `W` evaluation windows.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

from tyr_jax.data import chat
from tyr_jax.data.encoding import encode
from tyr_jax.data.sources import (
    Conversation,
    Source,
    describe,
    identity,
    leaves,
    parse_source,
    read_documents,
)
from tyr_jax.errors import UserError, require

PERIOD = 8
# Twice the text needed is read, so that another seed draws other text, not just another order. At least
# `LEAST_READ` tokens are read, so that small budgets draw from all over a text, not just from its start.
POOL = 2
LEAST_READ = 2**19
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

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        """A mapping with the token ids of `text` under "input_ids"."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Special tokens by their names in chat templates."""

    def get_chat_template(self) -> str:
        """The chat template. Raises `ValueError` if there is none."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What text a run uses; sources are written as `sources.parse_source` reads them.

    `evaluation_windows` is a maximum per source. With `bos`, the tokenizer's BOS is the first of the T
    tokens of every sequence and window.
    """

    calibration: tuple[str, ...] = ("builtin", "self")
    """Sources of calibration and search text, each SOURCE[@WEIGHT]: `builtin` (Python's own documentation),
    `self` (text that the model writes itself), a .txt, .jsonl, .json or .parquet file, or a hub dataset
    `name[:config][:split][:column]`. A part of each but `self` is held out for evaluation."""
    evaluation: tuple[str, ...] = ()
    """Further sources to evaluate on, in the format of `--calibration`."""
    sequence_length: int = 1024
    """Tokens in a calibration sequence. Short ones bring more varied text for the same number of tokens."""
    search_length: int = 1024
    """Tokens in a search sequence. Long ones show which layers matter in long contexts."""
    calibration_tokens: int = 65536
    """Tokens that the layers are pruned on."""
    calibration_noise: float = 0.2
    """Share of calibration sequences in which half of the tokens are replaced by random ones. Without
    noise, units that a few domains never use are pruned first, and other domains suffer."""
    calibration_openings: int = 512
    """Number of sequences of four tokens, cut from the calibration text, that layers are pruned on in
    addition to its long sequences. The first token of any sequence is an attention sink. Long sequences have
    few first tokens, and where pruned layers lose the sink, every later token suffers. 0 leaves them out (as
    in the paper)."""
    search_tokens: int = 32768
    """Tokens that the search draws from."""
    evaluation_length: int = 2048
    """Tokens in an evaluation window."""
    evaluation_windows: int = 20
    """At most this many windows of each evaluation text."""
    self_temperature: float = 1.0
    """Temperature at which the model writes the text of the source `self`."""
    bos: bool = False
    """Start every sequence and window with the tokenizer's BOS."""
    chat_template: bool = False
    """Render conversations with the model's chat template."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Disjoint parts of the text, int32. `sources` describes each text, by the name used in `evaluation`.
    `held` names the evaluation texts that are held-out parts of calibration sources."""

    calibration: np.ndarray  # [B, T]
    openings: np.ndarray  # [B, 4], taken from the calibration part
    search: np.ndarray  # [B, T]
    evaluation: dict[str, np.ndarray]  # name → [W, T]
    sources: dict[str, str]
    held: tuple[str, ...]


def load_splits(spec: DataSpec, tokenizer: Tokenizer, seed: int, written: np.ndarray | None = None) -> Splits:
    """Calibration and search sequences `[B, T]` drawn by `seed`, and the evaluation windows of `spec`.

    The same arguments and texts give the same arrays on any machine. Sequences come from the sources in
    proportion to their weights, interleaved so that every prefix is mixed. `written [B, T]`, with the sizes
    from `to_write`, is the text that the model has written itself, for the source `self`.

    Raises:
        UserError: a source cannot be read, or is too small for what is asked.
    """
    _check(spec, tokenizer)
    held, extra = _sources(spec)
    if not held:
        raise UserError("no calibration source is given; name one with --calibration, e.g. builtin")
    lengths, counts = _counts(spec, held)
    names = short_names([*held, *extra])
    calibration, search, evaluation = [], [], {}
    for index, (source, needs) in enumerate(zip(held, counts, strict=True)):
        if source.kind == "self":
            if written is None and any(needs):
                raise UserError(
                    "'self' is text that the dense model writes, not a text to read: name another source"
                )
            rest = np.zeros(0, np.int32) if written is None else written.reshape(-1)
        else:
            count = tokens_to_read(spec, int(np.dot(needs, lengths)))
            stream = read_tokens(source, tokenizer, count, spec.chat_template)
            windows, rest = hold_out(stream, spec.evaluation_length)
            evaluation[names[source]] = _evaluation_windows(windows, spec, tokenizer, source, len(stream))
        first, second = deal(rest, lengths, needs, np.random.default_rng([seed, index]), source.label)
        calibration.append(first)
        search.append(second)
    for source in extra:
        evaluation[names[source]] = _load_extra(source, spec, tokenizer)
    bos, rng = _bos(spec, tokenizer), np.random.default_rng([seed, len(held)])
    noisy = with_noise(interleave(calibration), spec.calibration_noise, tokenizer, rng)
    return Splits(
        with_bos(noisy, bos),
        with_bos(openings(noisy, spec.calibration_openings, rng), bos),
        with_bos(interleave(search), bos),
        evaluation,
        {names[source]: describe(source) for source in (*held, *extra)},
        tuple(names[source] for source in _measured(held)),
    )


def _counts(spec: DataSpec, held: Sequence[Source]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """(lengths of calibration and search sequences, how many of each every source provides)."""
    lengths, weights = (spec.sequence_length, spec.search_length), [source.weight for source in held]
    budgets = zip((spec.calibration_tokens, spec.search_tokens), lengths, strict=True)
    counts = (apportion(budget // length, weights) for budget, length in budgets)
    return lengths, list(zip(*counts, strict=True))


def to_write(spec: DataSpec) -> tuple[int, int] | None:
    """(sequences, tokens in each) that the model has to write itself; None if `self` is not a source, or its
    weight is too small for a single sequence."""
    held, _ = _sources(spec)
    lengths, counts = _counts(spec, held)
    for source, needs in zip(held, counts, strict=True):
        if source.kind == "self" and any(needs):
            long = int(lengths[1] > lengths[0])
            # `deal` cuts longer sequences into shorter ones.
            cut = math.ceil(needs[1 - long] / (lengths[long] // lengths[1 - long]))
            return needs[long] + cut, lengths[long]
    return None


def load_evaluation(spec: DataSpec, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The same `evaluation` windows that `load_splits` gives for any seed, `{name: [W, T]}`.

    `sequence_length` and the token budgets of `spec` do not matter; without calibration sources, every
    evaluation source is taken from its start.

    Raises:
        UserError: as `load_splits`.
    """
    _check(spec, tokenizer)
    held, extra = _sources(spec)
    names = short_names([*held, *extra])
    evaluation = {}
    for source in _measured(held):
        stream = read_tokens(source, tokenizer, tokens_to_read(spec, 0), spec.chat_template)
        windows, _ = hold_out(stream, spec.evaluation_length)
        evaluation[names[source]] = _evaluation_windows(windows, spec, tokenizer, source, len(stream))
    return evaluation | {names[source]: _load_extra(source, spec, tokenizer) for source in extra}


def evaluation_sources(spec: DataSpec) -> dict[str, tuple[str, str]]:
    """(description, which part is read) of each evaluation text of `spec`, by its name."""
    held, extra = _sources(spec)
    names = short_names([*held, *extra])
    parts = dict.fromkeys(_measured(held), f"every {PERIOD}th window, held out") | dict.fromkeys(
        extra, "its start"
    )
    return {names[source]: (describe(source), part) for source, part in parts.items()}


def fingerprint(array: np.ndarray) -> str:
    """The sha256 of the tokens as little-endian int32, for comparing the data of two runs."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<i4").tobytes()).hexdigest()


def check_sizes(spec: DataSpec) -> None:
    """Check the sizes in `spec`, its temperature and its share of noise.

    Raises:
        UserError: a value is out of range; the message names its flag.
    """
    for field, least in (
        ("sequence_length", 2),
        ("search_length", 2),
        ("evaluation_length", 2),
        ("evaluation_windows", 1),
        ("calibration_tokens", 0),
        ("calibration_openings", 0),
        ("search_tokens", 0),
    ):
        value = getattr(spec, field)
        require(value >= least, f"--{field.replace('_', '-')}", value, f"at least {least}")
    warm = spec.self_temperature
    require(0 < warm < math.inf, "--self-temperature", warm, "above 0 and finite")
    noise = spec.calibration_noise
    require(0 <= noise <= 1, "--calibration-noise", noise, "between 0 and 1")
    pairs = (("calibration_tokens", "sequence_length"), ("search_tokens", "search_length"))
    for field, length in pairs:
        if 0 < getattr(spec, field) < getattr(spec, length):
            raise UserError(
                f"--{field.replace('_', '-')} {getattr(spec, field)} is less than one sequence of "
                f"{getattr(spec, length)} tokens; raise it or lower --{length.replace('_', '-')}"
            )


def _check(spec: DataSpec, tokenizer: Tokenizer) -> None:
    check_sizes(spec)
    if spec.bos and tokenizer.bos_token_id is None:
        raise UserError("this model's tokenizer has no BOS token; leave out --bos")


def _sources(spec: DataSpec) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """(calibration sources, evaluation sources that are not among them)."""
    held = leaves(map(parse_source, spec.calibration))
    known = {identity(source) for source in held}
    evaluation = leaves(map(parse_source, spec.evaluation))
    if any(source.kind == "self" for source in evaluation):
        raise UserError(
            "--evaluation self: nothing is measured on what a model writes itself; name another text"
        )
    if held and not _measured(held) and not evaluation:
        raise UserError("'self' holds nothing out to measure on; name a text with --evaluation")
    return held, tuple(source for source in evaluation if identity(source) not in known)


def _measured(sources: Iterable[Source]) -> list[Source]:
    """The sources of which a part is held out: all but `self`."""
    return [source for source in sources if source.kind != "self"]


def short_names(sources: Sequence[Source]) -> dict[Source, str]:
    """A readable, distinct name per source: its label, without folders or owner where that is enough."""
    short = [dataclasses.replace(source, name=PurePath(source.name).name).label for source in sources]
    return {
        source: name if short.count(name) == 1 else source.label
        for source, name in zip(sources, short, strict=True)
    }


def tokenize(texts: Iterable[str], tokenizer: Tokenizer, limit: int | None = None) -> np.ndarray:
    """Token ids of texts as one int32 stream `[tokens]`; with a `limit`, no more texts are taken than needed.

    No special tokens are added except the tokenizer's EOS, if it has one, between texts.
    """
    # The text is cut into windows later, so a warning that it exceeds the model's context would mislead.
    getattr(tokenizer, "deprecation_warnings", {})["sequence-length-is-longer-than-the-specified-maximum"] = (
        True
    )
    parts: list[np.ndarray] = []
    size = 0
    for text in texts:
        joint = [] if not parts or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = encode(tokenizer, text)
        parts.append(np.asarray([*joint, *ids], np.int32))
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
    windows = _windows(stream, length)
    held = np.arange(len(windows)) % PERIOD == 0
    return windows[held], np.concatenate([windows[~held].reshape(-1), stream[windows.size :]])


def _windows(stream: np.ndarray, length: int) -> np.ndarray:
    """The whole windows `[W, length]` of a stream, one after the other."""
    return stream[: len(stream) // length * length].reshape(-1, length)


def tokens_to_read(spec: DataSpec, drawn: int) -> int:
    """Tokens to read of a source for its windows and for `drawn` others, in whole periods of windows."""
    rest = POOL * drawn
    periods = max(
        spec.evaluation_windows,
        math.ceil(rest / ((PERIOD - 1) * spec.evaluation_length)),
        math.ceil(LEAST_READ / (PERIOD * spec.evaluation_length)),
    )
    return periods * PERIOD * spec.evaluation_length


def deal(
    stream: np.ndarray, lengths: Sequence[int], needs: Sequence[int], rng: np.random.Generator, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint random draws, `[needs[i], lengths[i]]`, of sequences from a stream.

    The longer sequences are dealt first, whole. What they leave is cut into the shorter ones.

    Raises:
        UserError: the stream has too few sequences.
    """
    long = int(lengths[1] > lengths[0])
    short = 1 - long
    blocks = _windows(stream, lengths[long])
    order = rng.permutation(len(blocks))
    rest = blocks[order[needs[long] :]]
    pieces = rest[:, : lengths[long] // lengths[short] * lengths[short]].reshape(-1, lengths[short])
    if len(blocks) < needs[long] or len(pieces) < needs[short]:
        raise UserError(
            f"'{label}' has {len(stream)} tokens outside its evaluation part, but {np.dot(needs, lengths)} "
            "are needed; lower --calibration-tokens, --search-tokens or its weight, or add a source"
        )
    drawn = {long: blocks[order[: needs[long]]], short: pieces[rng.permutation(len(pieces))[: needs[short]]]}
    return drawn[0], drawn[1]


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


def _bos(spec: DataSpec, tokenizer: Tokenizer) -> int | None:
    return tokenizer.bos_token_id if spec.bos else None


def _load_extra(source: Source, spec: DataSpec, tokenizer: Tokenizer) -> np.ndarray:
    """The first windows of a source that is not used for calibration: consecutive ones, from its start."""
    length = spec.evaluation_length
    stream = read_tokens(source, tokenizer, spec.evaluation_windows * length, spec.chat_template)
    return _evaluation_windows(_windows(stream, length), spec, tokenizer, source, len(stream))


def _evaluation_windows(
    windows: np.ndarray, spec: DataSpec, tokenizer: Tokenizer, source: Source, tokens: int
) -> np.ndarray:
    """The first `evaluation_windows` of `windows`, with BOS if `spec` has it."""
    if not len(windows):
        raise UserError(
            f"'{source.label}' has {tokens} tokens, but an evaluation window takes {spec.evaluation_length}; "
            "lower --evaluation-length or give more text"
        )
    return with_bos(windows[: spec.evaluation_windows], _bos(spec, tokenizer))
