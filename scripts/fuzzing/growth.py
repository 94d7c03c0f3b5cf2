"""Small files that ask for much time or memory: one for every parser."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PAD = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
WORDS = {
    "type": "WordPiece",
    "unk_token": "<unk>",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 10**9,
    "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "##a": 4},
}

TOKENIZERS: dict[str, dict[str, Any]] = {
    "fixed padding": {"padding": {**PAD, "strategy": {"Fixed": 3 * 10**7}, "pad_to_multiple_of": None}},
    "a multiple": {"padding": {**PAD, "strategy": "BatchLongest", "pad_to_multiple_of": 2**40}},
    "replacing": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 4}},
    "bytes of bytes": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}},
    "both": {
        "normalizer": REPLACE,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 3},
    },
    "decoding": {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 4}},
    "long words": {"model": WORDS, "normalizer": None, "pre_tokenizer": None, "post_processor": None},
}
"""What a tokenizer is changed to."""


def tokenizer(change: dict[str, Any]) -> Callable[[random.Random, Any], str]:
    """A model whose tokenizer is changed."""

    def make(draw: random.Random, place: Any) -> str:
        model: Path = place.copy("dense")
        file = model / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        return str(model)

    return make


def made_before(name: str) -> Callable[[random.Random, Any], str]:
    """One of `FILES`."""
    return lambda draw, place: str(place.base / "growth" / name)


def make_files(directory: Path) -> None:
    """Write `FILES`. It takes much memory, so the process should end afterwards."""
    directory.mkdir()
    for name, content in FILES.items():
        made = content()
        if isinstance(made, pyarrow.Table):
            pyarrow.parquet.write_table(made, directory / name, compression="zstd")
        else:
            (directory / name).write_bytes(made)


def repeated(value: str, count: int) -> pyarrow.Table:
    """A table that has `value` many times, and stores it once."""
    indices = pyarrow.array([0]).take(pyarrow.array([0] * count))
    return pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([value]))})


def words_of_gguf() -> bytes:
    """A GGUF file with two million empty words."""
    key = b"tokenizer.ggml.tokens"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    return head + struct.pack("<IIQ", 9, 8, 2 * 10**6) + bytes(16 * 10**6)


FILES: dict[str, Callable[[], pyarrow.Table | bytes]] = {
    "words.gguf": words_of_gguf,
    "equal rows.parquet": lambda: repeated("a" * 2**28, 16),
    "a long row.parquet": lambda: pyarrow.table({"text": ["b" * 700_000_000]}),
    "empty rows.parquet": lambda: repeated("", 20_000_000),
    "many messages.parquet": lambda: pyarrow.table(
        {"messages": [[{"role": "user", "content": "x"}] * 3_000_000]}
    ),
    "a list of lists.json": lambda: b"[" + b",".join([b"[]"] * 10_000_000) + b"]",
    "a long line.jsonl": lambda: json.dumps({"text": "the cat " * 5_000_000}).encode(),
    "a long word.txt": lambda: b"a" * 5_000_000,
}
"""Files that need no other, by name."""


def laughs(draw: random.Random, place: Any) -> str:
    """Data of a task whose description refers to itself again and again."""
    tasks: Path = place.copy("tasks")
    (file,) = tasks.rglob("README.md")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    whole = file.read_text()
    if draw.random() < 0.5:
        whole = whole.replace("data_files:", "data_files: *a9\n  x:")
    file.write_text(whole.replace("---\n", "---\n" + "\n".join(lines) + "\n", 1))
    return str(tasks)


def long_question(draw: random.Random, place: Any) -> str:
    """Data of a task with a question of many megabytes."""
    tasks: Path = place.copy("tasks")
    (file,) = tasks.rglob("test.jsonl")
    row = json.loads(file.read_text().splitlines()[0])
    row["question"] = "the cat " * draw.choice((10**4, 10**6, 4 * 10**6))
    file.write_text(json.dumps(row))
    return str(tasks)


def led_out(draw: random.Random, place: Any) -> str:
    """Data of a task that names a file outside its directory."""
    tasks: Path = place.copy("tasks")
    (readme,) = tasks.rglob("README.md")
    secret = place.given / "secret.jsonl"
    shutil.copy2(readme.with_name("test.jsonl"), secret)
    named = draw.choice((str(secret), "../../../secret.jsonl", f"file://{secret}"))
    readme.write_text(readme.read_text().replace("path: test.jsonl", f"path: {named}"))
    return str(tasks)


BOMBS: dict[str, Callable[[random.Random, Any], str]] = {
    **{f"model: {name}": tokenizer(change) for name, change in TOKENIZERS.items()},
    **{f"{'model' if name.endswith('.gguf') else 'text'}: {name}": made_before(name) for name in FILES},
    "tasks: laughs": laughs,
    "tasks: a long question": long_question,
    "tasks: led out": led_out,
}
"""What makes such a file, and returns its path, by what it is: a model, a text, or data of tasks."""
