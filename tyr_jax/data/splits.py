"""Disjoint splits of a run's text: for calibration, search, the choice between models, and evaluation.

Every `PERIOD`-th window of `evaluation_length` tokens of a source of calibration or search text is held out
for evaluation. Which windows those are depends only on the text and that length, so runs with other seeds and
other budgets are measured on the same text. The text in between is cut into sequences, shuffled by the seed,
and dealt to calibration, search and choice. (Where both `sequence_length` and `search_length` divide
`evaluation_length`, no sequence straddles the seam that a held-out window leaves.)

Letters: `B` sequences, `T` tokens in a sequence, `W` evaluation windows.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from tyr_jax.data.packing import (
    PERIOD,
    Tokenizer,
    apportion,
    deal,
    hold_out,
    interleave,
    openings,
    read_tokens,
    whole_windows,
    with_bos,
    with_noise,
)
from tyr_jax.data.sources import Source, describe, identity, leaves, parse_source
from tyr_jax.errors import UserError, require

# Twice the text needed is read, so that another seed draws other text, not just another order. At least
# `LEAST_READ` tokens are read, so that small budgets draw from all over a text, not just from its start.
POOL = 2
LEAST_READ = 2**19
# The text for the choice has as many tokens as the search text, within these limits.
LEAST_CHOICE, MOST_CHOICE = 2, 2**14  # sequences, tokens


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What text a run uses; sources are written as `sources.parse_source` reads them.

    `evaluation_windows` is a maximum per source. With `bos`, the tokenizer's BOS is the first of the T
    tokens of every sequence and window.
    """

    calibration: tuple[str, ...] = ("builtin", "self")
    """Sources of calibration text, each SOURCE[@WEIGHT]: `builtin` (Python's own documentation), `self` (text
    that the model writes itself), a .txt, .jsonl, .json or .parquet file, or a hub dataset
    `name[:config][:split][:column]`. A part of each but `self` is held out for evaluation."""
    search_text: tuple[str, ...] = ()
    """Sources of the text that candidates are scored on and models are chosen on, in the format of
    `--calibration`; by default, the same sources. The model will be best on text like this."""
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

    @property
    def drawn(self) -> tuple[str, ...]:
        """The sources that sequences are drawn from, and a part is held out of."""
        return self.calibration + self.search_text


@dataclasses.dataclass(frozen=True)
class Splits:
    """Disjoint parts of the text, int32. `sources` describes each text, by the name used in `evaluation`.
    `calibrated` names the evaluation texts that are held-out parts of calibration sources."""

    calibration: np.ndarray  # [B, T]
    openings: np.ndarray  # [B, 4], taken from the calibration part
    search: np.ndarray  # [B, T]
    choice: np.ndarray  # [B, T]
    evaluation: dict[str, np.ndarray]  # name → [W, T]
    sources: dict[str, str]
    calibrated: tuple[str, ...]


def load_splits(spec: DataSpec, tokenizer: Tokenizer, seed: int, written: np.ndarray | None = None) -> Splits:
    """Sequences `[B, T]` for calibration, search and choice, drawn by `seed`, and the evaluation windows of
    `spec`.

    The same arguments and texts give the same arrays on any machine. Sequences come from the sources in
    proportion to their weights, interleaved so that every prefix is mixed. `written [B, T]`, with the sizes
    from `to_write`, is the text that the model has written itself, for the source `self`.

    Raises:
        UserError: a source cannot be read, or is too small for what is asked.
    """
    _check(spec, tokenizer)
    held, extra = _sources(spec)
    if not spec.calibration:
        raise UserError("no calibration source is given; name one with --calibration, e.g. builtin")
    lengths, counts = _counts(spec, held)
    names = short_names([*held, *extra])
    dealt, evaluation = [], {}
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
        dealt.append(deal(rest, lengths, needs, np.random.default_rng([seed, index]), source.label))
    for source in extra:
        evaluation[names[source]] = _load_extra(source, spec, tokenizer)
    bos, rng = _bos(spec, tokenizer), np.random.default_rng([seed, len(held)])
    calibration, search, choice = map(interleave, zip(*dealt, strict=True))
    noisy = with_noise(calibration, spec.calibration_noise, tokenizer, rng)
    calibrated = set(map(identity, _calibration_sources(spec)))
    return Splits(
        with_bos(noisy, bos),
        with_bos(openings(noisy, spec.calibration_openings, rng), bos),
        with_bos(search, bos),
        with_bos(choice, bos),
        evaluation,
        {names[source]: describe(source) for source in (*held, *extra)},
        tuple(names[source] for source in _measured(held) if identity(source) in calibrated),
    )


class Part(NamedTuple):
    """A part of the text that is not held out: `tokens` in sequences of `length` tokens, from `sources`."""

    tokens: int
    length: int
    sources: Sequence[Source]


def _parts(spec: DataSpec) -> tuple[Part, Part, Part]:
    """Calibration, search and choice. What the model writes itself says little about which model to choose,
    so it is used for the choice only if there is no other text."""
    search = leaves(map(parse_source, spec.search_text)) or _calibration_sources(spec)
    sequences, length = choice_size(spec)
    return (
        Part(spec.calibration_tokens, spec.sequence_length, _calibration_sources(spec)),
        Part(spec.search_tokens, spec.search_length, search),
        Part(sequences * length, length, _measured(search) or search),
    )


def choice_size(spec: DataSpec) -> tuple[int, int]:
    """(sequences for the choice between models, tokens in each)."""
    length = min(spec.sequence_length, spec.search_length)
    return max(LEAST_CHOICE, min(spec.search_tokens, MOST_CHOICE) // length), length


def _calibration_sources(spec: DataSpec) -> tuple[Source, ...]:
    return leaves(map(parse_source, spec.calibration))


def _counts(spec: DataSpec, held: Sequence[Source]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """(lengths of calibration, search and choice sequences, how many of each every source provides)."""
    parts, counts = _parts(spec), []
    for tokens, length, sources in parts:
        shares = apportion(tokens // length, [source.weight for source in sources])
        known = dict(zip(map(identity, sources), shares, strict=True))
        counts.append([known.get(identity(source), 0) for source in held])
    return tuple(part.length for part in parts), list(zip(*counts, strict=True))


def to_write(spec: DataSpec) -> tuple[int, int] | None:
    """(sequences, tokens in each) that the model has to write itself; None if `self` is not a source, or its
    weight is too small for a single sequence."""
    held, _ = _sources(spec)
    lengths, counts = _counts(spec, held)
    for source, needs in zip(held, counts, strict=True):
        if source.kind == "self" and any(needs):
            long, short = max(lengths), min(lengths)
            whole = sum(need for need, length in zip(needs, lengths, strict=True) if length == long)
            # `deal` cuts longer sequences into shorter ones.
            cut = sum(need for need, length in zip(needs, lengths, strict=True) if length < long)
            return whole + math.ceil(cut / (long // short)), long
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
    """(sources of calibration and search text, evaluation sources that are not among them)."""
    held = leaves(map(parse_source, spec.drawn))
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


def tokens_to_read(spec: DataSpec, drawn: int) -> int:
    """Tokens to read of a source for its windows and for `drawn` others, in whole periods of windows."""
    rest = POOL * drawn
    periods = max(
        spec.evaluation_windows,
        math.ceil(rest / ((PERIOD - 1) * spec.evaluation_length)),
        math.ceil(LEAST_READ / (PERIOD * spec.evaluation_length)),
    )
    return periods * PERIOD * spec.evaluation_length


def _bos(spec: DataSpec, tokenizer: Tokenizer) -> int | None:
    return tokenizer.bos_token_id if spec.bos else None


def _load_extra(source: Source, spec: DataSpec, tokenizer: Tokenizer) -> np.ndarray:
    """The first windows of a source that nothing is calibrated or searched on: consecutive ones, from its
    start."""
    length = spec.evaluation_length
    stream = read_tokens(source, tokenizer, spec.evaluation_windows * length, spec.chat_template)
    return _evaluation_windows(whole_windows(stream, length), spec, tokenizer, source, len(stream))


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
