"""Untrusted texts: rows of every shape, endless documents, and paths that are not regular files."""

import itertools
import json
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import CHAT, Bytes, documents, write

from tyr_jax import confinement
from tyr_jax.confinement import Limits
from tyr_jax.data import packing, parse_source, read_documents, read_tokens, sources
from tyr_jax.data.encoding import encode
from tyr_jax.errors import UserError

BAD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        10**300,
        "",
        "x",
        "\0",
        [],
        [1],
        ["x"],
        [None],
        [[]],
        {},
        {"x": 1},
        [{}],
        [[CHAT]],
    ),
    *(
        [{"role": 3, "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ["x"]}],
    ),
    *(
        [{"from": "human", "value": 3}],
        [{"role": "\0", "content": "x"}],
        [*CHAT, "x"],
        [*CHAT, {"role": "user"}],
    ),
)


def refusal(path: Path) -> str:
    try:
        found = documents(path)
    except UserError as error:
        return str(error)
    # An accepted document is a text, or turns of text, as all other code expects.
    for document in found:
        turns = [{"role": "", "content": document}] if isinstance(document, str) else document
        assert all(isinstance(text, str) for turn in turns for text in turn.values())
    return ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "list.json"])
def test_rows_of_every_shape(name: str, tmp_path: Path) -> None:
    whole: tuple[dict[str, Any], ...] = (
        {"text": "a"},
        {"messages": CHAT},
        {"instruction": "a", "output": "b"},
    )
    keys = ("text", "messages", "conversations", "instruction", "input", "output")
    rows: list[Any] = [row | {key: value} for row, key, value in itertools.product(whole, keys, BAD)]
    rows += [
        {"messages": [{key: value, "content": "x"}]}
        for key, value in itertools.product(("role", "from"), BAD)
    ]
    for row in [*rows, *BAD]:
        content = json.dumps([row, {"text": "b"}]) if name == "list.json" else json.dumps(row)
        message = refusal(write(tmp_path / name, content))
        assert not message or name in message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "\\ud800"}', "line 1 of '.*' is not valid JSON: it holds an unpaired surrogate"),
        (
            '{"text": "a"}\n{"text": "b\\udfff c"}',
            "line 2 of '.*' is not valid JSON: it holds an unpaired surrogate",
        ),
        ('{"messages": [{"role": "\\ud800", "content": "x"}]}', "it holds an unpaired surrogate"),
        (b'{"text": "\xed\xa0\x80"}', "is not UTF-8 text"),
        (b'{"text": "a"}\n{"text": "\xc3"}', "is not UTF-8 text"),
        ("[" * 10**5, "is not valid JSON: it is nested too deeply"),
        ('{"text": ' + "[" * 900 + "]" * 900 + "}", "neither text nor a list"),
        ('{"text": ' + "9" * 5000 + "}", "is not valid JSON: Exceeds"),
        ('{"text": 1e999}', "neither text nor a list"),
        ('{"instruction": "a", "input": 3, "output": "b"}', "column 'input' of line 1 of '.*' is not text"),
    ],
)
def test_lines_that_are_no_rows(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        documents(write(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}': it is not a regular file"):
        documents(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}': it is not a regular file"):
        documents(tmp_path / name)
    with pytest.raises(UserError, match="cannot read text"):
        documents(tmp_path / ("x" * 5000 + name))


@pytest.mark.slow
def test_a_small_table_that_takes_gigabytes(tmp_path: Path) -> None:
    """A text that is repeated is stored once."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 16), pyarrow.array(["a" * 2**27]))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    with pytest.raises(UserError, match=r"'.*a\.parquet' cannot be read: it needs too much memory"):
        list(read_documents(parse_source(str(path))))


@pytest.mark.slow
def test_of_a_document_without_end_the_beginning_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens are the same as those of the text in a plain file."""
    text = "".join(random.Random(0).choices("abcdefghij \n", k=20_000_000))
    row = write(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n" + json.dumps({"text": "more"}))
    plain = write(tmp_path / "a.txt", text.encode())
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lengths = []

    def noted(tokenizer: Bytes, text: str) -> np.ndarray:
        lengths.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(packing, "encode", noted)
    found = read_tokens(parse_source(str(row)), Bytes(), 10_000)
    assert max(lengths) < 10**5
    np.testing.assert_array_equal(found, read_tokens(parse_source(str(plain)), Bytes(), 10_000))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18


def test_cutting_documents_changes_no_token(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abc ", k=rng.choice((0, 1, 10, 300, 4000)))) for _ in range(50)]
    path = write(tmp_path / "a.jsonl", [{"text": text or "x"} for text in texts])
    source = parse_source(str(path))
    whole = read_tokens(source, Bytes())
    for limit in (0, 1, 17, 100, 1000, 5000, len(whole) - 1, len(whole), len(whole) + 5):
        np.testing.assert_array_equal(read_tokens(source, Bytes(), limit), whole[:limit])


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b" * 100}])
    monkeypatch.setattr("tyr_jax.data.documents.MOST_LINE", 50)
    with pytest.raises(UserError, match=r"line 2 of '.*a\.jsonl' has 50 characters or more; cut it"):
        documents(path)
    monkeypatch.setattr("tyr_jax.data.documents.MOST_LIST", 50)
    with pytest.raises(UserError, match=r"a\.json' has more than 50 bytes; write its rows as lines"):
        documents(write(tmp_path / "a.json", "[" + " " * 100 + "]"))


def test_conversations_without_end(tmp_path: Path) -> None:
    for turns in (CHAT * 513, [{"role": "user", "content": "x" * (2**21 + 1)}]):
        with pytest.raises(UserError, match=r"line 1 of '.*' is a conversation of \d+ messages .*; cut it"):
            documents(write(tmp_path / "a.jsonl", [{"messages": turns}]))


def test_a_file_that_changes_unseen(tmp_path: Path) -> None:
    """The size stays, the changes lie within a clock tick, and the modification time is set back."""
    path = tmp_path / "a.txt"
    digests = set()
    for number in range(50):
        path.write_text(f"{number:04}")
        os.utime(path, ns=(10**18, 10**18))
        digests.add(sources._digest(str(path)))
    assert len(digests) == 50


def test_an_old_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "x")
    monkeypatch.setattr(sources, "FRESH", 0)
    sources._hash.cache_clear()
    for _ in range(3):
        sources._digest(str(path))
    assert sources._hash.cache_info().misses == 1


def test_every_damage_to_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "bc"], "messages": [CHAT, CHAT]}), path)
    whole = path.read_bytes()
    places = [*range(8), *range(len(whole) - 600, len(whole))]
    for place in places[:: 1 if len(places) < 300 else 2]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        message = refusal(path)
        assert not message or "a.parquet" in message
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "a.parquet" in refusal(path)


def test_a_json_list_may_take_a_gibibyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the file: all of its values are in memory at once."""
    asked: dict[str, Limits] = {}
    monkeypatch.setattr(
        confinement, "stream", lambda what, *rest, limits: iter([asked.setdefault(what, limits)])
    )
    for name in ("x.JSON", "x.jsonl"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**9)
        list(read_documents(parse_source(str(tmp_path / name))))
    listed, lines = asked.values()
    assert listed.memory == 2**30 < lines.memory
