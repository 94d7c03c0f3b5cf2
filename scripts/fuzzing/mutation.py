"""Corrupt valid input: its bytes, the values in its JSON, the numbers in its headers, or the file itself."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 2**31, -(2**31), 2**53, 2**63, 10**20, 1e308, -1e308),
    *(float("nan"), float("inf"), "", "0", "x", "\0", "\x1b[2J\x07", "[red]x[/y]"),
    "<script>alert(1)</script>",
    *("a/../../../b", "/etc/passwd", "é" * 1000, "{{ 1/0 }}", "(" * 500, "😀", "null", "NaN", [], {}, [[]]),
    *([None], [0] * 5000, {"": None}, ["x", 1, None, {}], "|`*_]()", "\u202e\u2028", "x" * 100_000),
)
"""Values that no field expects, or few do."""

TEXTS = (
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[" * 3000, b'{"a":' * 3000, b"null"),
    *(b"[]", b"{}", b'""', b"1" * 5000, b'{"a": NaN}', b'"\\ud800"', b"\n" * 1000, b"x" * 1_000_000),
)
"""Replacements for a whole text."""

LARGE = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
"""Numbers for headers."""


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of a JSON value and of everything in it."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += nodes(each, (*path, key))
    return found


def spoil_json(draw: random.Random, text: str) -> tuple[str, str]:
    """(a JSON text with one value replaced, removed, repeated, nested or added, what was done)."""
    value = json.loads(text)
    path = draw.choice(nodes(value))
    if not path:
        return json.dumps(draw.choice(VALUES)), "all of it"
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    key, how = path[-1], draw.choice(("replace", "replace", "replace", "delete", "nest", "add", "repeat"))
    if how == "replace":
        owner[key] = draw.choice(VALUES)
    elif how == "delete":
        del owner[key]
    elif how == "nest":
        for _ in range(draw.choice((1, 900, 5000))):
            owner[key] = [owner[key]]
    elif isinstance(owner, dict):
        owner["added" if how == "add" else f"{key}2"] = draw.choice(VALUES) if how == "add" else owner[key]
    else:
        owner += [draw.choice(VALUES)] if how == "add" else [owner[key]] * draw.choice((1, 10_000))
    try:
        return json.dumps(value), f"{how} {'.'.join(map(str, path))}"
    except RecursionError:
        return "[" * 5000 + "]" * 5000, "nested"


def spoil_bytes(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """(bytes with some changed, removed, repeated or added, what was done)."""
    how = draw.choice(("flip", "flip", "flip", "cut", "cut", "zero", "double", "grow", "other"))
    place = draw.randrange(max(len(content), 1))
    # Headers are where corruption can do the most.
    place = place if draw.random() < 0.3 else place % 4096
    array = bytearray(content)
    if how == "flip" and array:
        for _ in range(draw.choice((1, 1, 8))):
            array[draw.randrange(min(len(array), max(place, 1)))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del array[place:]
    elif how == "zero":
        array[place : place + 64] = bytes(len(array[place : place + 64]))
    elif how == "double":
        array[place:place] = array[place : place + 512]
    elif how == "grow":
        array += draw.randbytes(1000)
    elif how == "other":
        return draw.choice(TEXTS), "other content"
    return bytes(array), f"{how} at {place}"


def spoil_number(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """(bytes with eight of them near the beginning replaced by a number, what was done)."""
    array = bytearray(content)
    place = draw.randrange(min(len(array) - 8, 20_000)) if len(array) > 8 else 0
    number = draw.choice(LARGE)
    array[place : place + 8] = struct.pack("<Q", number)
    return bytes(array), f"{number} at {place}"


def spoil_safetensors(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """(a safetensors file with a corrupted header, what was done)."""
    (size,) = struct.unpack("<Q", content[:8])
    header, how = spoil_json(draw, content[8 : 8 + size].decode())
    return struct.pack("<Q", len(header.encode())) + header.encode() + content[8 + size :], f"header: {how}"


def spoil_lines(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """(a text with one line corrupted or replaced, what was done)."""
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    if draw.random() < 0.6 and lines[place][:2] == b'{"':
        spoilt, how = spoil_json(draw, lines[place].decode())
        lines[place] = spoilt.encode("utf-8", "surrogatepass")
    else:
        lines[place], how = draw.choice(TEXTS), "other content"
    return b"\n".join(lines), f"line {place}: {how}"


def spoil_file(draw: random.Random, path: Path) -> str:
    """Corrupt a file in a way that suits its type, and return what was done."""
    ways: list[Callable[[random.Random, bytes], tuple[bytes, str]]] = [spoil_bytes]
    if path.suffix == ".json":
        ways += [_json_bytes] * 8
    elif path.suffix == ".safetensors":
        ways += [spoil_safetensors] * 4
    elif path.suffix in (".gguf", ".parquet"):
        ways += [spoil_number] * 6
    elif path.suffix in (".jsonl", ".txt", ".jinja", ".md"):
        ways += [spoil_lines] * 4
    content, how = draw.choice(ways)(draw, path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {how}"


def _json_bytes(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    text, how = spoil_json(draw, content.decode())
    return text.encode("utf-8", "surrogatepass"), how


def spoil_place(draw: random.Random, path: Path, outside: Path) -> str:
    """Remove a file, or replace it by something that is not a regular file, and return what was done."""
    how = draw.choice(("gone", "pipe", "directory", "unreadable", "dangling", "loop", "device", "outside"))
    if path.is_dir() and not path.is_symlink():
        return "nothing"
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "unreadable":
        path.touch(0o000)
    elif how != "gone":
        path.symlink_to(
            {
                "dangling": path.with_name("nothing"),
                "loop": path,
                "device": Path("/dev/zero"),
                "outside": outside,
            }[how]
        )
    return f"{path.name}: {how}"
