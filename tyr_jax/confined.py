"""The process that works on strangers' files. `tyr_jax.confinement` starts it, and asks it.

A request and a reply are each a length and that many bytes. Requests are pickled; replies are not, because
what a stranger's file did to this process must not reach the other. The first byte of a reply tells what
follows: a value as JSON (`j`), an int32 array (`i`), a sentence for the user (`u`), a traceback (`x`), or
nothing, because memory ran out (`m`).
"""

import contextlib
import importlib
import itertools
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from tyr_jax.errors import UserError

BATCH = 2**20
"""Characters of the values of a stream that go into one reply, or a few more."""


class Reference(NamedTuple):
    """Stands, among the arguments of a request, for a text that was sent before."""

    number: int


_kept: dict[int, str] = {}
_streams: dict[int, Iterator[Any]] = {}
_numbers = itertools.count()


def receive(stream: IO[bytes]) -> bytes | None:
    """The next message, or None at the end of the stream, even within a message."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    message = stream.read(size) if len(head) == 8 else b""
    return message if len(head) == 8 and len(message) == size else None


def send(stream: IO[bytes], message: bytes) -> None:
    """Write a message."""
    stream.write(len(message).to_bytes(8, "little"))
    stream.write(message)
    stream.flush()


def data_size() -> int:
    """Bytes of this process's data, as the limit below counts them."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


def limit(seconds: float, memory: int) -> None:
    """Let this process take so much more processor time, and have so many bytes of data, from now on.

    A system without such limits ignores this.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
        # Nor may it fill a disk instead.
        resource.setrlimit(resource.RLIMIT_FSIZE, (memory, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if hasattr(signal, "setitimer"):
        # The signal ends the process, even within a call of another language.
        signal.setitimer(signal.ITIMER_PROF, seconds)


def called(function: str, *arguments: Any) -> Any:
    """What the function `module:name` returns."""
    module, _, name = function.partition(":")
    given = [_kept[each.number] if isinstance(each, Reference) else each for each in arguments]
    return getattr(importlib.import_module(module), name)(*given)


def opened(function: str, *arguments: Any) -> int:
    """Start the stream of values that a function gives, and return its number."""
    number = next(_numbers)
    _streams[number] = iter(called(function, *arguments))
    return number


def batch(number: int) -> list[Any]:
    """The next values of a stream; none at its end."""
    values, size = [], 0
    for value in _streams[number]:
        values.append(value)
        size += len(value) if isinstance(value, str) else sum(len(turn["content"]) for turn in value)
        if size >= BATCH:
            break
    return values


def closed(number: int) -> None:
    """Forget a stream."""
    _streams.pop(number, None)


DOING: dict[str, Callable[..., Any]] = {"called": called, "opened": opened, "batch": batch, "closed": closed}


def answered(request: dict[str, Any]) -> bytes:
    """The reply to a request: see the module's docstring."""
    try:
        value = DOING[request["do"]](*request["arguments"])
        if isinstance(value, np.ndarray):
            return b"i" + value.astype("<i4").tobytes()
        return b"j" + json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except UserError as error:
        return b"u" + str(error).encode("utf-8", "replace")
    except MemoryError:
        return b"m"
    except Exception:
        return b"x" + traceback.format_exc().encode("utf-8", "replace")


def main() -> None:
    """Answer requests until there are no more."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    began = 0
    with contextlib.suppress(OSError, ValueError):
        began = data_size()
    while (message := receive(requests)) is not None:
        request = pickle.loads(message)
        _kept.update(request["texts"])
        for number in request["forget"]:
            _kept.pop(number, None)
        limit(request["seconds"], began + request["memory"])
        reply = answered(request)
        limit(0, -1)
        send(replies, reply)
