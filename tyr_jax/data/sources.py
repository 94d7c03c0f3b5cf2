"""Where text comes from: how a source is written, and when two sources are the same.

SOURCE[@WEIGHT]     SOURCE = builtin[:topics | :docstrings]
                           | self, text that the dense model writes
                           | path.txt | path.jsonl[:column] | path.json[:column] | path.parquet[:column]
                           | name[:config][:split][:column] of a hub dataset (an empty field is the default)
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from tyr_jax.data.builtin import DOMAINS
from tyr_jax.errors import UserError
from tyr_jax.files import check_regular, sha256

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
# Nanoseconds after a change for which a file counts as still changing.
FRESH = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Source:
    """One text: `kind` is "builtin", "file", "hub", or "self" for what the model writes; `name` a domain (or
    ""), a path or a dataset."""

    kind: str
    name: str
    config: str = ""
    split: str = "train"
    column: str = "text"
    weight: float = 1.0

    @property
    def label(self) -> str:
        """The source as one would write it, defaults left out; the name it has in messages and results."""
        if self.kind in ("builtin", "self"):
            return f"{self.kind}:{self.name}" if self.name else self.kind
        column = "" if self.column == "text" else self.column
        if self.kind == "file":
            return f"{self.name}:{column}" if column else self.name
        split = "" if self.split == "train" else self.split
        return ":".join((self.name, self.config, split, column)).rstrip(":")


def parse_source(text: str) -> Source:
    """The source that `SOURCE[@WEIGHT]` names; nothing is opened yet.

    Raises:
        UserError: the source is empty or an unknown builtin text, its weight is not a positive number, it has
            too many fields, or a local file is of an unknown kind.
    """
    name, weight = _split_weight(os.path.expanduser(text.strip()))
    head, _, tail = name.partition(":")
    if not head:
        raise UserError(f"'{text}' names no source; write builtin, self, a file, or a hub dataset")
    if head == "builtin":
        if tail and tail not in DOMAINS:
            raise UserError(f"there is no builtin text '{tail}'; choose from {', '.join(DOMAINS)}")
        return Source("builtin", tail, weight=weight)
    if head == "self":
        if tail:
            raise UserError(f"'{name}' is no source: text that the model writes has no parts; write self")
        return Source("self", "", weight=weight)
    path, _, column = name.rpartition(":")
    if name.lower().endswith(SUFFIXES):
        return Source("file", name, weight=weight)
    if path.lower().endswith(".txt"):
        raise UserError(f"'{path}' has no columns, being plain text; leave out ':{column}'")
    if path.lower().endswith(SUFFIXES):
        return Source("file", path, column=column or "text", weight=weight)
    if name[0] in "./~\\" or Path(name).is_file():
        raise UserError(f"cannot tell what '{name}' holds; a text file ends in {', '.join(SUFFIXES)}")
    fields = name.split(":")
    if len(fields) > 4:
        raise UserError(f"'{name}' has too many fields; a hub dataset is written name:config:split:column")
    config, split, column = (fields[1:] + [""] * 3)[:3]
    return Source("hub", head, config, split or "train", column or "text", weight)


def needs_trust(text: str) -> bool:
    """Whether reading a record's `SOURCE[@WEIGHT]` means opening a file or dataset that a stranger chose."""
    return parse_source(text).kind not in ("builtin", "self")


def anchored(text: str) -> str:
    """`SOURCE[@WEIGHT]` in a form that is valid in any folder: a file gets its whole path.

    Raises:
        UserError: as `parse_source`.
    """
    return str(Path.cwd() / text.strip()) if parse_source(text).kind == "file" else text


def _split_weight(text: str) -> tuple[str, float]:
    name, at, tail = text.rpartition("@")
    # An `@` may also belong to a path: `me@home/notes.txt`.
    if not at or os.sep in tail or any(suffix in tail.lower() for suffix in SUFFIXES):
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"the weight '{tail}' of '{name}' is not a positive number; write e.g. '{name}@0.5'")
    return name, weight


def leaves(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Sources with `builtin` replaced by its domains, and repeats merged: the first gets their weights too.

    Raises:
        UserError: a file is missing (files are compared by content).
    """
    merged: dict[tuple[str, ...], Source] = {}
    for source in itertools.chain.from_iterable(_domains(source) for source in sources):
        key = identity(source)
        known = merged.get(key)
        merged[key] = (
            dataclasses.replace(known, weight=known.weight + source.weight) if known is not None else source
        )
    return tuple(merged.values())


def _domains(source: Source) -> list[Source]:
    if source.kind != "builtin" or source.name:
        return [source]
    unit = source.weight / sum(DOMAINS.values())
    return [Source("builtin", name, weight=unit * share) for name, share in DOMAINS.items()]


def identity(source: Source) -> tuple[str, ...]:
    """What makes two sources the same text: a file's content and column, otherwise all but the weight."""
    if source.kind == "file":
        return ("file", _digest(source.name), source.column)
    return (source.kind, source.name, source.config, source.split, source.column)


def describe(source: Source) -> str:
    """The label, with what identifies the text: a file's hash, or the Python version it comes with."""
    if source.kind == "file":
        return f"{source.label} (sha256 {_digest(source.name)[:16]})"
    if source.kind == "builtin":
        return f"{source.label} (of Python {platform.python_version()})"
    if source.kind == "self":
        return "self (written by the model)"
    return source.label


def is_described(source: Source, description: str) -> bool:
    """Whether `describe` may have given this description of `source`, here or on another machine.

    Files are compared by content, and builtin texts without the Python version. What is described need not
    be there.
    """
    if source.kind == "file":
        return description.endswith(describe(source).removeprefix(source.label))
    if source.kind == "self":
        return description == describe(source)
    return description.partition(" (of Python")[0] == source.label


def labels(names: Iterable[str]) -> set[str]:
    """Labels of all texts that the `SOURCE[@WEIGHT]` in `names` stand for. Nothing is read."""
    return {source.label for name in names for source in _domains(parse_source(name))}


def _digest(name: str) -> str:
    check_file(Path(name))
    stat = Path(name).stat()
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    # A second change within a tick of the file system's clock does not show in the times.
    fresh = time.time_ns() - max(times) < FRESH
    take = _hash.__wrapped__ if fresh else _hash
    return take(name, stat.st_dev, stat.st_ino, stat.st_size, times)


@functools.lru_cache
def _hash(name: str, device: int, inode: int, size: int, times: tuple[int, int]) -> str:
    """The sha256 of a file, computed once for as long as the file does not change."""
    return sha256(Path(name))


def check_file(path: Path) -> None:
    """Check that a text's file is there and can be read.

    Raises:
        UserError: it is not; names the path.
    """
    # An impossible path, such as one that is too long, is refused below.
    with contextlib.suppress(OSError, ValueError):
        if not path.exists():
            raise UserError(f"there is no file '{path}'; check the path")
    check_regular(path, "text")
