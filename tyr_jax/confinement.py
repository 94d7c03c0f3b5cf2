"""Work on strangers' files, done by a process of its own with limits on processor time and memory.

A small file can ask for gigabytes or hours: a compressed table, a tokenizer that makes a thousand characters
of one, a chat template that never ends. Neither a call of another language nor one large allocation can be
stopped from within a process. So what such a file asks for happens in another one, which ends when it takes
too much, and the file is refused.
"""

import atexit
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from tyr_jax import confined
from tyr_jax.errors import UserError

PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})  # it may be a clone that was never installed
from tyr_jax.confined import main
main()
"""

MOST_KEPT = 8
"""Texts that the process keeps at most."""


class Limits(NamedTuple):
    """Processor time in seconds, and bytes of memory beyond what the process starts with."""

    seconds: float = 10
    memory: int = 3 * 2**28


class Kept:
    """A long text that many calls share. It is sent to the process once."""

    _numbers = itertools.count()

    def __init__(self, text: str) -> None:
        self.number, self.text = next(self._numbers), text


def call(what: str, function: str, *arguments: Any, limits: Limits | None = None) -> Any:
    """What a function of this package returns that the process calls.

    Args:
        what: the beginning of messages, which names the file.
        function: the function, as `module:name`. It returns an int32 array or a value for JSON.
        *arguments: its arguments, which are pickled; a `Kept` becomes its text.
        limits: what it may take (default: `Limits()`).

    Raises:
        UserError: the function raises it, or takes too much.
    """
    return _process.ask(what, "called", [function, *arguments], limits or Limits())


def stream(what: str, function: str, *arguments: Any, limits: Limits | None = None) -> Iterator[Any]:
    """The texts and conversations that a function of this package gives. The process calls it as in `call`.

    Raises:
        UserError: as in `call`. Limits hold for every `confined.BATCH` characters.
    """
    limits = limits or Limits()
    number = _process.ask(what, "opened", [function, *arguments], limits)
    asked = _process.process
    try:
        while values := _process.ask(what, "batch", [number], limits, asked):
            yield from values
    finally:
        if _process.process is asked:
            _process.ask(what, "closed", [number], limits)


class _Process:
    """The process. It is started when first needed, and again after it has ended."""

    def __init__(self) -> None:
        self.lock, self._owner = threading.RLock(), 0
        self.process: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []

    def ask(
        self,
        what: str,
        do: str,
        arguments: list[Any],
        limits: Limits,
        only: "subprocess.Popen[bytes] | None" = None,
    ) -> Any:
        """The value that the process replies with. With `only`, this very process must still run."""
        with self.lock:
            process = self.running()
            if only is not None and process is not only:
                raise UserError(f"{what}: reading it was interrupted; start again")
            request = {"do": do, **self._given(arguments), **limits._asdict()}
            reply = self._exchanged(process, pickle.dumps(request))
            if reply is None or reply == b"m":
                why = "it needs too much memory" if reply else self._reason(process, limits)
                self.stop()
                raise UserError(f"{what}: {why}")
        kind, content = reply[:1], reply[1:]
        if kind == b"i":
            return np.frombuffer(content, "<i4")
        if kind == b"j":
            return json.loads(content)
        text = content.decode()
        raise UserError(text) if kind == b"u" else RuntimeError(text)

    def stop(self) -> None:
        """End the process."""
        process, self.process, self._kept = self.process, None, []
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def running(self) -> "subprocess.Popen[bytes]":
        """The process, started if there is none."""
        # After a fork, the child must not use its parent's process.
        if self.process is None or self.process.poll() is not None or self._owner != os.getpid():
            self._owner, self._kept = os.getpid(), []
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Pools of memory and of threads would reserve more than is ever used.
                env=os.environ
                | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
                | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
            )
        return self.process

    def _given(self, arguments: list[Any]) -> dict[str, Any]:
        """The `arguments` of a request, the `texts` that the process lacks, and those to `forget`."""
        kept = {each.number: each.text for each in arguments if isinstance(each, Kept)}
        texts = {number: text for number, text in kept.items() if number not in self._kept}
        self._kept = [number for number in self._kept if number not in kept] + [*kept]
        forget, self._kept = self._kept[:-MOST_KEPT], self._kept[-MOST_KEPT:]
        short = [confined.Reference(each.number) if isinstance(each, Kept) else each for each in arguments]
        return {"arguments": short, "texts": texts, "forget": forget}

    def _exchanged(self, process: "subprocess.Popen[bytes]", request: bytes) -> bytes | None:
        """The reply to a request, or None if the process ends."""
        try:
            confined.send(cast(IO[bytes], process.stdin), request)
            return confined.receive(cast(IO[bytes], process.stdout))
        except BrokenPipeError:
            return None
        except BaseException:
            # Its reply must not be taken for the reply to the next request.
            self.stop()
            raise

    def _reason(self, process: "subprocess.Popen[bytes]", limits: Limits) -> str:
        status = process.wait()
        if status == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {limits.seconds:.0f} s of processor time"
        if status == -getattr(signal, "SIGABRT", 0):
            return "it needs too much memory"  # what is written in Rust or C++ ends so
        return f"the process that reads it ended with status {status}"


_process = _Process()
atexit.register(_process.stop)
