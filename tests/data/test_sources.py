"""How sources are written and read."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_samples import CHAT, EOS, Bytes, Numbers, documents, numbers, spec_of, write
from hypothesis import given
from hypothesis import strategies as st

from tyr_jax import confined, confinement
from tyr_jax.data import Source, describe, load_splits, parse_source, read_documents, read_tokens
from tyr_jax.data import builtin as builtin_text
from tyr_jax.data.sources import leaves
from tyr_jax.data.splits import short_names
from tyr_jax.errors import UserError

# --- how a source is written


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("builtin", Source("builtin", "")),
        ("builtin:topics@2", Source("builtin", "topics", weight=2.0)),
        ("a/b.txt@0.5", Source("file", "a/b.txt", weight=0.5)),
        ("me@home.txt", Source("file", "me@home.txt")),
        ("me@home/b.jsonl:body", Source("file", "me@home/b.jsonl", column="body")),
        ("c.PARQUET", Source("file", "c.PARQUET")),
        ("imdb", Source("hub", "imdb")),
        (
            "Salesforce/wikitext:wikitext-2-raw-v1:test",
            Source("hub", "Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        ),
        ("o/d::validation:body@3", Source("hub", "o/d", "", "validation", "body", 3.0)),
    ],
)
def test_parse_source(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no source"),
        (":x", "names no source"),
        ("builtin:poems", "no builtin text 'poems'; choose from topics, docstrings"),
        ("a.txt@much", "weight 'much' of 'a.txt' is not a positive number"),
        ("a.txt@0", "positive"),
        ("a.txt@inf", "positive"),
        ("./notes.pdf", "cannot tell what './notes.pdf' holds"),
        ("a.txt:body", "has no columns"),
        ("a:b:c:d:e", "name:config:split:column"),
    ],
)
def test_a_source_written_wrongly(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_source(text)


FIELD = st.text("abc-_1", min_size=1, max_size=4)


@given(FIELD, st.just("") | FIELD, FIELD, FIELD)
def test_a_label_reads_back_as_its_source(name: str, config: str, split: str, column: str) -> None:
    source = Source("hub", f"owner/{name}", config, split, column)
    assert parse_source(source.label) == source


def test_plain_builtin_is_both_domains_three_to_one() -> None:
    weights = {source.label: source.weight for source in leaves([parse_source("builtin@4")])}
    assert weights == {"builtin:topics": 3.0, "builtin:docstrings": 1.0}


def test_a_repeated_source_adds_to_its_weight(corpus: Path, tmp_path: Path) -> None:
    copy = write(tmp_path / "copy.txt", corpus.read_bytes())
    merged = leaves(map(parse_source, (f"{corpus}@2", "builtin", f"{copy}@3", "builtin:topics@1.25")))
    assert [source.weight for source in merged] == [5.0, 2.0, 0.25]


def test_names_are_short_where_that_tells_them_apart() -> None:
    sources = [parse_source(text) for text in ("a/x.txt", "b/x.txt", "c/y.txt", "org/set:conf/ig:test")]
    assert list(short_names(sources).values()) == ["a/x.txt", "b/x.txt", "y.txt", "set:conf/ig:test"]


# --- reading


@pytest.mark.slow
def test_builtin_text_repeats_no_paragraph_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "imaplib", raising=False)
    for domain in builtin_text.DOMAINS:
        texts = documents(f"builtin:{domain}")
        assert sum(map(len, texts)) > 200_000
        paragraphs = [" ".join(part.split()) for text in texts for part in text.split("\n\n")]
        long = [part for part in paragraphs if len(part) >= builtin_text.REPEAT_LENGTH]
        assert len(long) == len(set(long))
    assert "imaplib" not in sys.modules
    assert "of Python 3." in describe(parse_source("builtin:topics"))


def test_a_python_without_its_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    for domain in builtin_text.DOMAINS:
        with pytest.raises(UserError, match=f"carries no text for 'builtin:{domain}'; name a text file"):
            documents(f"builtin:{domain}")


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "one\n\n  two, ü\n\n\nthree\n"
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + text.encode())
    assert documents(path) == [text]
    assert list(read_documents(parse_source(str(path)), 5)) == [text[:5]]


SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]


def test_rows_of_text_and_of_conversations(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"messages": CHAT}, {"text": None, "conversations": SHAREGPT}, {"text": "b"}]
    assert documents(write(tmp_path / "a.jsonl", rows)) == ["a", CHAT, CHAT, "b"]
    assert documents(write(tmp_path / "a.json", rows)) == ["a", CHAT, CHAT, "b"]
    assert documents(write(tmp_path / "b.json", json.dumps(rows, indent=1))) == ["a", CHAT, CHAT, "b"]


def test_parquet_and_a_named_column(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", "b"], "text": ["c", "d"], "n": [1, 2]}), path)
    assert documents(path) == ["c", "d"]
    assert documents(f"{path}:body") == ["a", "b"]
    with pytest.raises(
        UserError, match=r"has no column 'x' \(it has: body, text, n\); name one as .*:COLUMN"
    ):
        documents(f"{path}:x")
    with pytest.raises(UserError, match=r"column 'n' of .* is neither text nor a list"):
        documents(f"{path}:n")


def test_lines_of_a_text_are_joined(tmp_path: Path) -> None:
    lines = ["", " = Title = \n", "", " Some text. \n"]
    path = write(tmp_path / "lines.jsonl", [{"text": line} for line in lines])
    assert documents(path) == ["\n\n".join(lines)]
    assert list(read_documents(parse_source(str(path)), 5)) == ["\n\n".join(lines[:2])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "'.*a.txt' is empty"),
        ("a.txt", "  \n\n", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"text": ""}', "is empty"),
        ("a.txt", b"ab\xff\xfe", "is not UTF-8 text; convert it"),
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8 text"),
        ("a.txt", b"ab\0c", "holds NUL bytes, so it is not text"),
        ("a.jsonl", b"\0\0", "line 1 of .* holds NUL bytes"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "\\u0000"}', "line 3 of .* holds NUL bytes"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2 of '.*a.jsonl' is not valid JSON"),
        ("a.json", '[{"text": "a"}, {]', "'.*a.json' is not valid JSON"),
        ("a.json", '[{"text": "a"}, 3]', "row 2 of .* is not a JSON object"),
        ("a.jsonl", '"a"', "line 1 of .* is not a JSON object"),
        ("a.jsonl", '{"body": "a", "id": 1}', r"line 1 of .* has no column 'text' \(it has: body, id\)"),
        ("a.jsonl", '{"text": 3}', "column 'text' of line 1 of .* is neither text nor a list"),
        ("a.jsonl", '{"messages": []}', "neither text nor"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "neither text nor"),
        ("a.parquet", "no parquet at all", "'.*a.parquet' cannot be read as Parquet"),
    ],
)
def test_files_that_hold_no_text(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        documents(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"there is no file '.*{name}'"):
        documents(tmp_path / name)
    with pytest.raises(UserError, match=f"there is no file '.*{name}'"):
        load_splits(spec_of(tmp_path / name), Bytes(), 0)


@pytest.mark.parametrize(("module", "text"), [("pyarrow", "{}/a.parquet"), ("datasets", "owner/name")])
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, text: str) -> None:
    write(tmp_path / "a.parquet", "x")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=rf"needs the package '{module}'; .*pip install 'tyr-jax\[data\]'"):
        documents(text.format(tmp_path))


class Hub:
    """Stands in for `datasets.load_dataset`; counts the rows taken."""

    def __init__(self, rows: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.rows, self.error, self.taken, self.calls = rows, error, 0, []  # type: ignore[var-annotated]

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        self.calls.append((args, kwargs))
        for row in self.rows:
            self.taken += 1
            yield row
        if self.error is not None:
            raise self.error


def in_this_process(what: str, function: str, *arguments: Any, limits: object) -> Iterator[Any]:
    found: Iterator[Any] = confined.called(function, *arguments)
    return found


def use_hub(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], error: Exception | None = None
) -> Hub:
    hub = Hub(rows, error)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=hub))
    monkeypatch.setattr(confinement, "stream", in_this_process)
    return hub


def test_a_hub_dataset_is_streamed_only_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, [{"text": numbers(100, 100 * i)} for i in range(1000)])
    stream = read_tokens(parse_source("owner/name:conf"), Numbers(), 1000)
    assert hub.calls == [(("owner/name", "conf"), {"split": "train", "streaming": True})]
    assert hub.taken < 16
    assert stream[:101].tolist() == [*range(100), EOS]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError("Dataset 'owner/name' doesn't exist.\nmore"),
            "does not exist or is not open to you",
        ),
        (ValueError('Unknown split "test".'), 'Unknown split "test".*name:config:split:column'),
        (ConnectionError("Couldn't reach 'owner/name' on the Hub"), "Couldn't reach.*check the connection"),
        (RuntimeError(), r"cannot be read \(RuntimeError\)"),
    ],
)
def test_a_hub_dataset_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    use_hub(monkeypatch, [], error)
    with pytest.raises(UserError, match=f"hub dataset 'owner/name' .*{message}"):
        documents("owner/name")


def test_the_installed_datasets_streams_as_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b"}])
    real = datasets.load_dataset

    def load(name: str, config: str | None, **options: Any) -> Any:
        assert (name, config) == ("owner/name", None)
        return real("json", data_files=str(path), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(confinement, "stream", in_this_process)
    assert documents("owner/name") == ["a", "b"]
    with pytest.raises(UserError, match=r"Bad split|Unknown split"):
        documents("owner/name::nowhere")
