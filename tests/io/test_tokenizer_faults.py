"""Untrusted tokenizers: damaged files, code that must not run, and steps that never end."""

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from io_samples import BAD_VALUES, refusal
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tyr_jax.data.encoding import encode
from tyr_jax.errors import Notice, UserError
from tyr_jax.io.tokenizer import growth, tokenizer_from_directory

Node = tuple[str | int, ...]


def description() -> dict[str, Any]:
    """A small tokenizer with every kind of step that models use."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 3)}
    vocab = {"<unk>": 0, "<s>": 1, "ab": 2} | letters
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])
    digits = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>:0", "$A:0"], pair=["$A:0", "$B:0"], special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    found["model"]["vocab"] = {token: vocab[token] for token in vocab}
    return found


SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
FURTHER = (
    *("eos_token", "pad_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"),
    *("model_max_length", "chat_template", "clean_up_tokenization_spaces", "padding_side", "truncation_side"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "model_input_names", "split_special_tokens"),
    *(
        "fast_tokenizer_files",
        "tokenizer_file",
        "vocab_file",
        "init_inputs",
        "legacy",
        "use_fast",
        "auto_map",
    ),
    *("processor_class", "name_or_path", "special_tokens_map_file", "spaces_between_special_tokens", "x"),
)
FILES = ("special_tokens_map.json", "added_tokens.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that contains only the tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "tokenizer.json").write_text(json.dumps(description()))
    return tmp_path


def use(directory: Path) -> None:
    """Use a tokenizer in all the ways that the package does."""
    tokenizer = tokenizer_from_directory(directory)
    tokenizer.decode(encode(tokenizer, "ab 12 x <s>", special=True), skip_special_tokens=True)
    assert isinstance(tokenizer.chat_template, str | dict | None)
    assert isinstance(tokenizer.model_max_length, int | float)


def nodes(value: Any, above: Node = ()) -> Iterator[Node]:
    """Paths of everything in a JSON value. Of a vocabulary, only those of the first tokens."""
    yield above
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in itertools.islice(keys, 12):
            yield from nodes(value[key], (*above, key))


def changed(whole: Any, node: Node, value: Any) -> Any:
    if not node:
        return value
    whole = copy.deepcopy(whole)
    place = whole
    for key in node[:-1]:
        place = place[key]
    place[node[-1]] = value
    return whole


@pytest.mark.slow
def test_every_node_with_every_kind_of_value(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = description()
    values = itertools.cycle(BAD_VALUES)
    # Try a quarter of the bad values at each node. Its neighbours get the others.
    for node, _ in itertools.product(nodes(whole), range(len(BAD_VALUES) // 4)):
        (model / "tokenizer.json").write_text(json.dumps(changed(whole, node, next(values))))
        message = refusal(lambda: use(model))
        assert not message or str(model) in message
        assert len(message) < 600
    # This must hold even if the Rust code fails.
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer_config.json", *FILES])
def test_every_setting_with_every_kind_of_value(name: str, model: Path) -> None:
    values = itertools.cycle(BAD_VALUES)
    for key, _ in itertools.product((*SETTINGS, *FURTHER), range(len(BAD_VALUES) // 2)):
        settings = SETTINGS if name == "tokenizer_config.json" else {}
        (model / name).write_text(json.dumps(settings | {key: next(values)}))
        message = refusal(lambda: use(model))
        assert not message or str(model) in message
        assert len(message) < 600
    for text in (
        "",
        "{",
        "[]",
        "3",
        "[" * 10**5,
        '{"a": "\\ud800"}',
        '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}",
    ):
        (model / name).write_text(text)
        with pytest.raises(UserError, match=name):
            tokenizer_from_directory(model)


@pytest.mark.parametrize("pattern", ["(", "[", "\\", "(?i", "(a|ab)(c|bcd)(d*"])
def test_bad_regular_expressions(pattern: str, model: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    for change in ({"pre_tokenizer": split}, {"normalizer": replace}, {"decoder": replace}):
        (model / "tokenizer.json").write_text(json.dumps(description() | change))
        assert "tokenizer.json" in refusal(lambda: use(model))


def test_an_expression_that_takes_for_ever(model: Path) -> None:
    """The library reports an error of its own, and this process survives."""
    split = {"type": "Split", "pattern": {"Regex": "(a*)*(b*)*c"}, "behavior": "Isolated", "invert": False}
    (model / "tokenizer.json").write_text(json.dumps(description() | {"pre_tokenizer": split}))
    tokenizer = tokenizer_from_directory(model)
    start = time.monotonic()
    refusal(lambda: encode(tokenizer, "a" * 5000))
    assert time.monotonic() - start < 20


PAD = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLINGS = {
    "normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40},
    "decoder": {"type": "Sequence", "decoders": [REPLACE] * 40},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40},
    "padding": {"strategy": {"Fixed": 3 * 10**7}, "pad_to_multiple_of": 2**40, **PAD},
}


@pytest.mark.parametrize("part", DOUBLINGS)
def test_steps_that_double_a_text_again_and_again(part: str, model: Path) -> None:
    (model / "tokenizer.json").write_text(json.dumps(description() | {part: DOUBLINGS[part]}))
    start = time.monotonic()
    if part == "padding":
        assert len(encode(tokenizer_from_directory(model), "ab")) == 1
    else:
        with pytest.raises(UserError, match=r"needs too much memory|one character into more than 64"):
            tokenizer_from_directory(model)
    assert time.monotonic() - start < 20


def test_tokens_are_the_same_every_time(model: Path) -> None:
    whole = description()
    whole["model"]["dropout"] = 0.9
    (model / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.warns(Notice, match=r"drops merges at random \(BPE dropout\), which is switched off here"):
        tokenizer = tokenizer_from_directory(model)
    assert (
        encode(tokenizer, "ab" * 99).tolist()
        == tokenizer("ab" * 99, add_special_tokens=False)["input_ids"]
        == [2] * 99
    )


def test_growth() -> None:
    assert growth({"type": "Fuse"}) == 1
    assert growth({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}) == 1
    assert growth({"type": "Replace", "pattern": {"Regex": "x"}, "content": "abc"}) == 3
    nested = {"type": "Sequence", "decoders": [DOUBLINGS["decoder"], REPLACE]}
    assert growth(nested) == 2**41


@pytest.mark.parametrize("class_", ["MyTokenizer", None, "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "auto_map", [["mine.My", "mine.My"], {"AutoTokenizer": ["mine.My", None]}, ["x--y.My"] * 2]
)
def test_code_of_a_tokenizer_is_not_run(
    auto_map: Any, class_: str | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is not asked whether to run it, either."""
    (model / "mine.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    settings = {"tokenizer_class": class_} if class_ else {}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for kind in ("unheard-of", "llama"):
        config = {"model_type": kind, "auto_map": {"AutoConfig": "mine.My"}}
        (model / "config.json").write_text(json.dumps(config))
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": auto_map}))
        message = refusal(lambda: tokenizer_from_directory(model))
        assert not message or "tokenizer_config.json names code of its own ('auto_map')" in message
        assert message or class_ == "PreTrainedTokenizerFast" or kind == "llama"
    assert not (model / "ran").exists()


def test_a_tokenizer_file_that_leads_out(model: Path) -> None:
    settings = SETTINGS | {"fast_tokenizer_files": ["../../tokenizer.1.json"]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"tokenizer_config\.json names '\.\./\.\./token.*which is not a"):
        tokenizer_from_directory(model)


@pytest.mark.slow
def test_tokens_longer_than_any(tmp_path: Path, sentencepiece_file: Callable[..., Path]) -> None:
    """The number of parts of a token grows with the square of its length."""
    from tyr_jax.io.gguf_header import open_gguf
    from tyr_jax.io.gguf_tokenizer import tokenizer_from_gguf

    changes = {"tokenizer.ggml.tokens": ["a" * 10**5] * 2000}
    path = sentencepiece_file(tmp_path / "m.gguf", changes)
    with pytest.raises(UserError, match=r"'tokenizer\.ggml\.tokens' of .*m\.gguf has tokens longer"):
        tokenizer_from_gguf(open_gguf(path), path)
