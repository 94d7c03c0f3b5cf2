"""From documents to tokens, and disjoint splits of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import BOS, CHAT, EOS, Bytes, Numbers, decode, numbers, spec_of, write
from hypothesis import given
from hypothesis import strategies as st

from tyr_jax.data import (
    Source,
    Splits,
    evaluation_sources,
    fingerprint,
    load_evaluation,
    load_splits,
    parse_source,
    read_tokens,
    to_write,
    tokenize,
)
from tyr_jax.data.packing import apportion, deal, hold_out, interleave, with_bos, with_noise
from tyr_jax.data.splits import PERIOD
from tyr_jax.errors import UserError

# --- tokens


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_no_token_is_lost(texts: list[str]) -> None:
    stream = tokenize(texts, Bytes())
    parts = [[byte + 3 for byte in text.encode()] for text in texts]
    expected = [token for part in parts for token in [EOS, *part]][1:]
    assert stream.dtype == np.int32
    assert stream.tolist() == expected
    assert tokenize(texts, Bytes(), 7).tolist() == expected[:7]


def test_without_eos_documents_follow_each_other() -> None:
    tokenizer = Bytes()
    tokenizer.eos_token_id = None
    assert decode(tokenize(["ab", "c"], tokenizer)) == "abc"


@given(st.integers(1, 900), st.integers(1, 900))
def test_a_longer_read_begins_with_the_shorter(first: int, second: int) -> None:
    use = Source("builtin", "topics")
    streams = [read_tokens(use, Bytes(), limit) for limit in (first, second)]
    shortest = min(first, second)
    assert [len(stream) for stream in streams] == [first, second]
    assert np.array_equal(streams[0][:shortest], streams[1][:shortest])


def test_a_text_cut_short_loses_and_invents_nothing(tmp_path: Path) -> None:
    # Words far longer than CHARS_PER_TOKEN, so that the first amount read is too small and cuts a word.
    path = write(tmp_path / "long.txt", numbers(500, 10**60))
    small, whole = (read_tokens(parse_source(str(path)), Numbers(), limit).tolist() for limit in (20, None))
    assert small == whole[:20]
    assert len(whole) == 500


def test_conversations_need_the_chat_template(tmp_path: Path) -> None:
    source = parse_source(str(write(tmp_path / "c.jsonl", [{"messages": CHAT}])))
    with pytest.raises(UserError, match=r"'.*c.jsonl' holds conversations, .*evaluate --chat-template True"):
        read_tokens(source, Bytes(), 10)
    assert decode(read_tokens(source, Bytes(), 100, chat_template=True)) == "<user>hi<assistant>ho"


def test_a_chat_template_that_fails(tmp_path: Path) -> None:
    class Strict(Bytes):
        chat_template = "{{ raise_exception('roles must alternate') }}"

    source = parse_source(str(write(tmp_path / "c.jsonl", [{"messages": CHAT}])))
    with pytest.raises(UserError, match=r"cannot render a conversation of .*: roles must alternate"):
        read_tokens(source, Strict(), 10, chat_template=True)


def test_a_template_that_writes_the_date_is_given_a_fixed_one(tmp_path: Path) -> None:
    class Dated(Bytes):
        chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"

    source = parse_source(str(write(tmp_path / "c.jsonl", [{"messages": CHAT}])))
    assert decode(read_tokens(source, Dated(), 100, chat_template=True)) == "26 Jul 2024: hi"


# --- splits


@given(
    st.integers(0, 500),
    st.integers(1, 20),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)
def test_parts_of_a_stream_are_disjoint_and_whole(
    tokens: int, window: int, lengths: tuple[int, int], needs: tuple[int, int, int]
) -> None:
    windows, rest = hold_out(np.arange(tokens, dtype=np.int32), window)
    assert sorted([*windows.reshape(-1), *rest]) == list(range(tokens))
    assert (windows % (PERIOD * window) == np.arange(window)).all()
    # The longer sequences come whole. Each remaining one is cut into as many shorter ones as fit.
    long, short = max(lengths), min(lengths)
    sizes = (*lengths, short)
    most = sum(need for need, size in zip(needs, sizes, strict=True) if size == long)
    few = sum(needs) - most
    left = len(rest) // long - most
    if left < 0 or left * (long // short) < few:
        with pytest.raises(UserError, match="tokens outside its evaluation part"):
            deal(rest, sizes, needs, np.random.default_rng(0), "x")
        return
    parts = deal(rest, sizes, needs, np.random.default_rng(0), "x")
    assert [part.shape for part in parts] == [*zip(needs, sizes, strict=True)]
    used = np.concatenate([windows.reshape(-1), *(part.reshape(-1) for part in parts)])
    assert len(set(used.tolist())) == len(used)


@given(st.integers(1, 8), st.integers(1, 6))
def test_sequences_do_not_straddle_a_seam_when_they_divide_the_window(length: int, factor: int) -> None:
    _, rest = hold_out(np.arange(1000), length * factor)
    sequences = rest[: len(rest) // length * length].reshape(-1, length)
    assert (np.diff(sequences, axis=1) == 1).all()


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_apportion_honours_weights(total: int, weights: list[float]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part - total * w / sum(weights)) < 1 + 1e-6 for part, w in zip(parts, weights, strict=True)
    )


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_every_prefix_is_mixed(sizes: list[int]) -> None:
    mixed = interleave([np.full((size, 3), i) for i, size in enumerate(sizes)])[:, 0]
    assert sorted(mixed.tolist()) == [i for i, size in enumerate(sizes) for _ in range(size)]
    for end in range(len(mixed) + 1):
        for i, size in enumerate(sizes):
            assert abs((mixed[:end] == i).sum() - end * size / max(sum(sizes), 1)) <= len(sizes)


def positions(splits: Splits) -> list[int]:
    arrays = [splits.calibration, splits.search, splits.choice, *splits.evaluation.values()]
    return [int(token) for array in arrays for token in array.reshape(-1)]


def test_splits_of_one_source(corpus: Path) -> None:
    spec = spec_of(corpus)
    splits = load_splits(spec, Numbers(), seed=3)
    assert splits.calibration.shape == (10, 8)
    assert splits.search.shape == splits.choice.shape == (5, 8)
    assert splits.evaluation["corpus.txt"].shape == (4, 8)
    assert splits.sources["corpus.txt"].startswith(f"{corpus} (sha256 ")
    used = positions(splits)
    assert len(set(used)) == len(used)
    again, other = load_splits(spec, Numbers(), seed=3), load_splits(spec, Numbers(), seed=4)
    assert fingerprint(again.calibration) == fingerprint(splits.calibration)
    assert fingerprint(again.search) == fingerprint(splits.search)
    assert fingerprint(other.calibration) != fingerprint(splits.calibration)
    assert set(other.calibration.reshape(-1)) != set(splits.calibration.reshape(-1))
    assert np.array_equal(other.evaluation["corpus.txt"], splits.evaluation["corpus.txt"])


def test_noise_replaces_half_the_tokens_of_some_calibration_sequences(corpus: Path) -> None:
    spec = spec_of(corpus, calibration_tokens=1600)
    clean, noisy = (
        load_splits(dataclasses.replace(spec, calibration_noise=noise), Numbers(), 3) for noise in (0.0, 0.25)
    )
    changed = clean.calibration != noisy.calibration
    assert changed.any(axis=1).sum() in (49, 50)
    assert 0.4 < changed[changed.any(axis=1)].mean() < 0.6
    fresh = noisy.calibration[changed]
    assert fresh.min() >= 3
    assert fresh.max() < len(Numbers())
    assert len(np.unique(fresh)) > 60
    np.testing.assert_array_equal(clean.search, noisy.search)
    np.testing.assert_array_equal(clean.evaluation["corpus.txt"], noisy.evaluation["corpus.txt"])


def test_openings_are_pieces_of_calibration_text(corpus: Path) -> None:
    spec = spec_of(corpus, calibration_tokens=1600, calibration_noise=0.0, calibration_openings=70)
    splits = load_splits(spec, Numbers(), 3)
    assert splits.openings.shape == (70, 4)
    assert (np.diff(splits.openings) == 1).all()  # the words of the text are consecutive numbers
    assert set(splits.openings.reshape(-1)) <= set(splits.calibration.reshape(-1))
    assert len(np.unique(splits.openings[:, 0] - splits.calibration[0, 0])) > 50
    assert load_splits(dataclasses.replace(spec, calibration_openings=0), Numbers(), 3).openings.size == 0


def test_a_small_budget_draws_from_all_over_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "long.txt", numbers(400_000))
    tokenizer = Numbers()
    tokenizer.below = 400_010
    drawn = load_splits(spec_of(path, calibration_tokens=1600), tokenizer, 0).calibration
    thirds = np.histogram(drawn[:, 0], bins=3, range=(0, 400_010))[0]
    assert (thirds > 200 / 6).all()


@given(st.integers(0, 5), st.integers(0, 20), st.integers(0, 20), st.sampled_from([4, 8, 24]))
def test_evaluation_depends_on_neither_seed_nor_budgets(
    tmp_path_factory: pytest.TempPathFactory, seed: int, calibration: int, search: int, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fixed.txt"
    if not path.exists():
        path.write_text(numbers(4000))
    spec = spec_of(
        path,
        sequence_length=length,
        search_length=12,
        calibration_tokens=calibration * length,
        search_tokens=search * 12,
    )
    splits = load_splits(spec, Numbers(), seed)
    expected = 10 + np.arange(4)[:, None] * PERIOD * 8 + np.arange(8)
    assert np.array_equal(splits.evaluation["fixed.txt"], expected)
    assert np.array_equal(load_evaluation(spec, Numbers())["fixed.txt"], expected)
    assert len(set(positions(splits))) == len(positions(splits))


def test_what_the_model_writes_is_a_source(tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", numbers(4000, 10_000))
    spec = spec_of(path, calibration_tokens=96, sequence_length=8, search_tokens=48, search_length=12)
    mixed = dataclasses.replace(spec, calibration=(str(path), "self@3"), calibration_openings=0)
    # 9 of 12 and 3 of 4 sequences. Each of the longer ones is cut into one short one.
    assert to_write(mixed) == (9 + 3, 12)
    assert to_write(spec) is None
    written = np.arange(12 * 12).reshape(12, 12)
    splits = load_splits(mixed, Numbers(), 0, written)
    own = [row for row in splits.calibration if row[0] < 1000]
    assert (len(splits.calibration), len(own)) == (12, 9)
    assert sum(row[0] < 1000 for row in splits.search) == 3
    drawn = np.concatenate([np.ravel(own), *[row for row in splits.search if row[0] < 1000]])
    assert len(set(drawn.tolist())) == len(drawn) == 9 * 8 + 3 * 12
    # None of the model's own text is held out to measure on.
    assert list(splits.evaluation) == list(load_evaluation(mixed, Numbers())) == ["words.txt"]
    assert splits.sources["self"] == "self (written by the model)"
    assert evaluation_sources(mixed).keys() == {"words.txt"}
    assert splits.calibrated == ("words.txt",)


def test_search_text_of_its_own(tmp_path: Path, corpus: Path) -> None:
    """What is calibrated on, and what candidates are scored and models are chosen on, in any mixture."""
    other = write(tmp_path / "other.txt", numbers(4000, 10_000))
    spec = dataclasses.replace(spec_of(corpus), calibration_noise=0.0, search_text=(str(other),))
    splits = load_splits(spec, Numbers(), 0)
    assert (splits.calibration < 10_000).all()
    assert (np.concatenate([splits.search, splits.choice]) >= 10_000).all()
    assert list(splits.evaluation) == ["corpus.txt", "other.txt"] == list(load_evaluation(spec, Numbers()))
    assert splits.calibrated == ("corpus.txt",)
    both = dataclasses.replace(spec, search_text=(f"{other}@3", str(corpus)))
    mixed = load_splits(both, Numbers(), 0)
    assert [sum(part[:, 0] >= 10_000) for part in (mixed.search, mixed.choice)] == [4, 4]
    assert len(set(positions(mixed))) == len(positions(mixed))


def test_own_text_chooses_no_model_unless_it_is_the_only_text(corpus: Path) -> None:
    written = np.arange(20_000, 20_000 + 40 * 8).reshape(40, 8)
    spec = dataclasses.replace(spec_of(corpus), search_text=("self", str(corpus)))
    splits = load_splits(spec, Numbers(), 0, written)
    assert (splits.search >= 20_000).any()
    assert (splits.choice < 20_000).all()
    alone = load_splits(dataclasses.replace(spec, search_text=("self",)), Numbers(), 0, written)
    assert (alone.choice >= 20_000).all()
    assert to_write(dataclasses.replace(spec, search_text=("self",))) == (5 + 5, 8)


def test_a_small_weight_of_own_text_writes_none(tmp_path: Path) -> None:
    path = write(tmp_path / "words.txt", numbers(4000, 10_000))
    spec = spec_of(path, calibration_tokens=96, sequence_length=8, search_tokens=48, search_length=12)
    tiny = dataclasses.replace(spec, calibration=(str(path), "self@0.001"))
    assert to_write(tiny) is None
    splits = load_splits(tiny, Numbers(), 0)
    assert splits.calibration.shape == (12, 8)
    assert splits.search.shape == (4, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": ("self",)}, "'self' holds nothing out to measure on; name a text"),
        ({"evaluation": ("self",)}, "--evaluation self: nothing is measured on what a model writes itself"),
        (
            {"calibration": ("self:topics", "builtin")},
            "'self:topics' is no source: text that the model writes has no parts",
        ),
        ({"calibration": ("self", "builtin")}, "'self' is text that the dense model writes"),
        ({"self_temperature": 0.0}, "--self-temperature is 0.0, but must be above 0 and finite"),
    ],
    ids=str,
)
def test_own_text_that_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path / "words.txt", numbers(4000, 10_000)))
    with pytest.raises(UserError, match=message):
        load_splits(dataclasses.replace(spec, **options), Numbers(), 0)


def test_own_text_is_nothing_to_read() -> None:
    with pytest.raises(UserError, match="'self' is text that the dense model writes, not a text to read"):
        read_tokens(parse_source("self"), Numbers(), 10)


def test_several_sources_by_weight(tmp_path: Path) -> None:
    one = write(tmp_path / "one.txt", numbers(4000, 10_000))
    two = write(tmp_path / "two.jsonl", [{"text": numbers(100, 20_000 + 100 * i)} for i in range(40)])
    splits = load_splits(spec_of(f"{one}@3", two, calibration_tokens=160), Numbers(), 0)
    of_one = (splits.calibration[:, 1] < 20_000) & (splits.calibration[:, 1] > EOS)
    assert of_one.sum() == 15
    assert of_one[:4].sum() == of_one[-4:].sum() == 3
    assert list(splits.evaluation) == ["one.txt", "two.jsonl"]


def test_an_evaluation_source_of_its_own_is_read_from_its_start(corpus: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.txt", numbers(50, 9000))
    spec = spec_of(corpus, evaluation=(str(other), str(other)))
    splits = load_splits(spec, Numbers(), 0)
    assert list(splits.evaluation) == ["corpus.txt", "other.txt"]
    assert splits.evaluation["other.txt"].tolist() == (9000 + np.arange(32)).reshape(4, 8).tolist()
    more = load_evaluation(dataclasses.replace(spec, evaluation_windows=100), Numbers())
    assert more["other.txt"].shape == (50 // 8, 8)
    alone = load_evaluation(dataclasses.replace(spec, calibration=()), Numbers())
    assert list(alone) == ["other.txt"]
    assert np.array_equal(alone["other.txt"], splits.evaluation["other.txt"])
    assert splits.calibrated == ("corpus.txt",)


def test_an_evaluation_source_that_is_a_calibration_source_is_its_held_out_part(
    corpus: Path, tmp_path: Path
) -> None:
    copy = write(tmp_path / "copy.txt", corpus.read_bytes())
    splits = load_splits(spec_of(corpus, evaluation=(str(copy), f"{corpus}@2")), Numbers(), 0)
    assert list(splits.evaluation) == ["corpus.txt"]
    assert len(set(positions(splits))) == len(positions(splits))
    builtin = load_splits(spec_of("builtin", evaluation=("builtin:topics", "builtin")), Bytes(), 0)
    assert list(builtin.evaluation) == ["builtin:topics", "builtin:docstrings"]


def test_bos_comes_first_in_every_sequence(corpus: Path) -> None:
    plain = load_splits(spec_of(corpus), Numbers(), 0)
    splits = load_splits(spec_of(corpus, bos=True), Numbers(), 0)
    pairs = [
        (plain.calibration, splits.calibration),
        (plain.openings, splits.openings),
        (plain.search, splits.search),
        (plain.evaluation["corpus.txt"], splits.evaluation["corpus.txt"]),
    ]
    for without, array in pairs:
        assert (array[:, 0] == BOS).all()
        assert np.array_equal(array[:, 1:], without[:, :-1])
    assert with_bos(plain.search, None) is plain.search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration_tokens": 4000},
            "'.*corpus.txt' has 3496 tokens outside its evaluation part, but 4080 are needed to prune, to s",
        ),
        (
            {"evaluation_length": 4001},
            "has 4000 tokens, but an evaluation window takes 4001; lower --evaluation-le",
        ),
        ({"calibration_tokens": 7}, "--calibration-tokens 7 is less than one sequence of 8 tokens; raise it"),
        ({"calibration_noise": 1.5}, "--calibration-noise is 1.5, but must be between 0 and 1"),
        (
            {"search_tokens": 7},
            "--search-tokens 7 is less than one .* lower --search-length",
        ),
        ({"calibration_openings": -1}, "--calibration-openings is -1, but must be at least 0"),
        ({"search_tokens": -1}, "--search-tokens is -1, but must be at least 0"),
        ({"sequence_length": 1}, "--sequence-length is 1, but must be at least 2"),
        ({"evaluation_windows": 0}, "--evaluation-windows is 0"),
        ({"calibration": ()}, "no calibration source is given"),
    ],
)
def test_requests_that_cannot_be_met(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_splits(spec_of(corpus, **changes), Numbers(), 0)


def test_other_requests_that_cannot_be_met(corpus: Path, tmp_path: Path) -> None:
    tokenizer = Numbers()
    tokenizer.bos_token_id = None
    with pytest.raises(UserError, match="tokenizer has no BOS token; leave out --bos"):
        load_splits(spec_of(corpus, bos=True), tokenizer, 0)
    short = write(tmp_path / "short.txt", numbers(5))
    with pytest.raises(UserError, match=r"'.*short.txt' has 5 tokens, but an evaluation window takes 8"):
        load_evaluation(spec_of(corpus, evaluation=(str(short),)), Numbers())


@pytest.mark.slow
def test_builtin_splits_are_the_same_every_time() -> None:
    spec = spec_of("builtin", calibration_tokens=400, search_tokens=0)
    first, second = (load_splits(spec, Bytes(), 7) for _ in range(2))
    assert np.array_equal(first.calibration, second.calibration)
    assert first.search.shape == (0, 8)
    assert set(first.sources) == {"builtin:topics", "builtin:docstrings"}


def test_noise_of_a_tokenizer_that_has_special_tokens_alone() -> None:
    class Special(Bytes):
        all_special_ids = tuple(range(259))

    with pytest.raises(UserError, match="all of this tokenizer's tokens are special"):
        with_noise(np.zeros((4, 8), np.int32), 0.5, Special(), np.random.default_rng(0))
