"""Documents of a source: lines, rows and conversations of files and of hub datasets."""

import contextlib
import importlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from tyr_jax import confinement
from tyr_jax.confinement import Limits
from tyr_jax.data.builtin import builtin_documents
from tyr_jax.data.encoding import is_unicode
from tyr_jax.data.sources import Source, check_file
from tyr_jax.errors import UserError
from tyr_jax.files import parse_json, reason

Conversation = list[dict[str, str]]
Document = str | Conversation
Rows = Iterator[tuple[dict[str, Any], str]]
"""Rows of a data set, each with where it comes from."""

CONVERSATION_COLUMNS = ("messages", "conversations")
# A task and its answer, as Alpaca's rows have them; there may be an "input" as well.
TASK_COLUMNS = ("instruction", "output")
# The roles of ShareGPT rows, in the words chat templates expect.
ROLES = {"human": "user", "gpt": "assistant"}
# How many leading rows are looked at to see whether a dataset's rows are lines of one text.
LINE_PROBE = 8
# Maximum number of characters of a line of JSON; this many can still be parsed in a second or two.
MOST_LINE = 2**25
# Maximum number of bytes of a JSON list, which is read whole.
MOST_LIST = 2**30
# Maximum numbers of messages and of characters of a conversation. It is rendered again up to each of its
# answers.
MOST_TURNS = 2**10
MOST_CHARS = 2**21
# Bytes that reading a JSON list may take: its values are in memory all at once, which .jsonl does not need.
MOST_JSON_MEMORY = 2**30


def read_documents(source: Source, max_chars: int | None = None) -> Iterator[Document]:
    """As `parse_documents`; a process with limits on time and memory parses files and hub datasets.

    Raises:
        UserError: something cannot be read as text, or takes too much.
    """
    if source.kind not in ("file", "hub"):
        return parse_documents(source, max_chars)
    size = 0
    if source.kind == "file":
        check_file(Path(source.name))
        size = Path(source.name).stat().st_size
    default = Limits()
    memory = default.memory + 8 * size
    if Path(source.name).suffix.lower() == ".json":
        memory = min(memory, MOST_JSON_MEMORY)
    limits = Limits(default.seconds + size / 2e7, memory)
    what = f"'{source.label}' cannot be read"
    return confinement.stream(
        what, "tyr_jax.data.documents:parse_documents", source, max_chars, limits=limits
    )


def parse_documents(source: Source, max_chars: int | None = None) -> Iterator[Document]:
    """Documents of a source, lazily and in its own order, until `max_chars` characters were given out.

    A `.txt` file is one document (its first `max_chars` characters). A row of any other source is one
    document: text, or a conversation. Rows may also be lines of one text, as in WikiText. An empty row among
    the first few shows this, as no document is empty; such rows are joined by blank lines into one document.

    Raises:
        UserError: something cannot be read as text.
    """
    if source.kind == "self":
        raise UserError("'self' is text that the dense model writes, not a text to read: name another source")
    if source.kind == "builtin":
        documents: Iterator[Document] = iter(builtin_documents(source.name))
    elif source.name.lower().endswith(".txt") and source.kind == "file":
        documents = iter([_read_text(Path(source.name), max_chars)])
    else:
        documents = _join_lines(_row_documents(source), max_chars)
    given = 0
    for document in documents:
        if max_chars is not None and given >= max_chars:
            return
        if document:
            yield document
        given += (
            len(document) if isinstance(document, str) else sum(len(turn["content"]) for turn in document)
        )
    if not given:
        raise UserError(f"'{source.label}' is empty; give a source that holds text")


def _read_text(path: Path, max_chars: int | None) -> str:
    with _opened(path) as file:
        # Python allocates room for as many characters as are asked for. A file has at most one per byte.
        size = os.fstat(file.fileno()).st_size
        text = file.read(size if max_chars is None else min(size, max_chars))
    return _checked(text if text.strip() else "", f"'{path}'")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A file of UTF-8 text.

    Raises:
        UserError: there is no such file, it cannot be read, or it turns out not to be UTF-8 while it is read.
    """
    check_file(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not UTF-8 text; convert it, or give a text file") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({reason(error)}); check the file") from None


def _checked(text: str, where: str) -> str:
    if "\0" in text:
        raise UserError(f"{where} holds NUL bytes, so it is not text; give a text file")
    if not is_unicode(text):
        raise UserError(f"{where} holds an unpaired surrogate, so it is not text; fix or remove it")
    return text


def _join_lines(documents: Iterator[Document], max_chars: int | None) -> Iterator[Document]:
    """Rows as they are, or all in one document if a blank row shows that they are lines of one text."""
    probe = list(itertools.islice(documents, LINE_PROBE))
    rows = itertools.chain(probe, documents)
    blank = any(isinstance(row, str) and not row.strip() for row in probe)
    if not blank or not all(isinstance(row, str) for row in probe):
        yield from rows
        return
    lines: list[str] = []
    size = 0
    for row in rows:
        if isinstance(row, str):
            lines.append(row)
            size += len(row)
        if max_chars is not None and size >= max_chars:
            break
    text = "\n\n".join(lines)
    yield text if text.strip() else ""


def _row_documents(source: Source) -> Iterator[Document]:
    """Documents of the rows of a JSON, Parquet or hub source."""
    if source.kind == "hub":
        rows = _hub_rows(source)
    elif source.name.lower().endswith(".parquet"):
        rows = _parquet_rows(Path(source.name), _columns(source))
    else:
        rows = _json_rows(Path(source.name))
    return (_row_document(row, where, source) for row, where in rows)


def _columns(source: Source) -> tuple[str, ...]:
    """Columns to look for, in order. If no column was named, columns of conversations follow `text`."""
    return (source.column, *CONVERSATION_COLUMNS) if source.column == "text" else (source.column,)


def _row_document(row: dict[str, Any], where: str, source: Source) -> Document:
    present = [name for name in _columns(source) if name in row]
    if (
        not present
        and source.column == "text"
        and all(isinstance(row.get(name), str) for name in TASK_COLUMNS)
    ):
        return _task(row, where)
    if not present:
        columns = ", ".join(map(str, row)) or "none"
        how = f"{source.name}:COLUMN" if source.kind == "file" else "name:config:split:column"
        raise UserError(f"{where} has no column '{source.column}' (it has: {columns}); name one as {how}")
    name = next((name for name in present if row[name] is not None), present[0])
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, str):
        return _checked(value, where)
    turns = [_turn(turn) for turn in value] if isinstance(value, list) else []
    conversation = [turn for turn in turns if turn is not None]
    if not turns or len(conversation) < len(turns):
        raise UserError(
            f"column '{name}' of {where} is neither text nor a list of {{role, content}} messages; "
            "name the column that holds the text"
        )
    return _checked_turns(conversation, where)


def _checked_turns(conversation: Conversation, where: str) -> Conversation:
    for turn in conversation:
        for text in turn.values():
            _checked(text, where)
    size = sum(len(turn["content"]) for turn in conversation)
    if len(conversation) > MOST_TURNS or size > MOST_CHARS:
        raise UserError(
            f"{where} is a conversation of {len(conversation)} messages and {size} characters; cut it into "
            f"several of at most {MOST_TURNS} and {MOST_CHARS}"
        )
    return conversation


def _task(row: dict[str, Any], where: str) -> Conversation:
    """A row with a task and its answer, as a conversation."""
    further = row.get("input")
    if not isinstance(further, str | None):
        raise UserError(f"column 'input' of {where} is not text; fix or remove it")
    question = "\n\n".join(filter(None, (row["instruction"], further)))
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    return _checked_turns(turns, where)


def _turn(turn: Any) -> dict[str, str] | None:
    """A message as {role, content}, from that form or ShareGPT's {from, value}; None if it is neither."""
    if not isinstance(turn, dict):
        return None
    role, content = (turn.get("role") or turn.get("from"), turn.get("content", turn.get("value")))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return {"role": ROLES.get(role, role), "content": content}


def _json_rows(path: Path) -> Rows:
    """Rows of a file of JSON lines, or of one JSON list, each with a phrase that says where it is."""
    with _opened(path) as file:
        listed = path.suffix.lower() == ".json" and file.read(64).lstrip().startswith("[")
        file.seek(0)
        if listed:
            yield from _json_list(file, path)
            return
        for number in itertools.count(1):
            line = file.readline(MOST_LINE)
            if not line:
                return
            where = f"line {number} of '{path}'"
            if len(line) == MOST_LINE:
                raise UserError(f"{where} has {MOST_LINE} characters or more; cut it into several rows")
            if line.strip():
                yield _json_row(parse_json(_checked(line, where), where), where), where


def _json_list(file: TextIO, path: Path) -> Rows:
    if path.stat().st_size > MOST_LIST:
        raise UserError(f"'{path}' has more than {MOST_LIST} bytes; write its rows as lines of a .jsonl file")
    for number, row in enumerate(parse_json(file.read(), f"'{path}'"), 1):
        where = f"row {number} of '{path}'"
        yield _json_row(row, where), where


def _json_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f'{where} is not a JSON object; a row looks like {{"text": "..."}}')
    return row


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Rows:
    check_file(path)
    parquet = _optional("pyarrow.parquet", f"'{path}'")
    where = f"'{path}'"
    try:
        with parquet.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            # If no column is present, whole rows are read, so that the error message can list the columns.
            # Batches are small, as a repeated text takes room once in the file, but once per row in memory.
            for batch in file.iter_batches(batch_size=16, columns=present or None):
                yield from ((row, where) for row in batch.to_pylist())
    except MemoryError:
        raise
    except Exception as error:  # pyarrow has its own exception for each of Python's
        raise UserError(f"{where} cannot be read as Parquet ({reason(error)}); check the file") from None


def _hub_rows(source: Source) -> Rows:
    where = f"hub dataset '{source.label}'"
    datasets = _optional("datasets", where)
    try:
        # `datasets` runs no code that a dataset brings; since version 4 it cannot.
        stream = datasets.load_dataset(source.name, source.config or None, split=source.split, streaming=True)
        for row in stream:
            yield row, where
    except (FileNotFoundError, ValueError) as error:  # no such dataset, configuration, split or file
        raise UserError(
            f"{where} does not exist or is not open to you ({reason(error)}); "
            "write it as name:config:split:column, or a local file as path.txt"
        ) from None
    except Exception as error:  # whatever the network, the hub and the dataset's reader may raise
        raise UserError(
            f"{where} cannot be read ({reason(error)}); "
            "check the connection, or give 'builtin' or a local file"
        ) from None


def _optional(module: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(
            f"{where} needs the package '{package}'; install it with: pip install 'tyr-jax[data]'"
        ) from None
