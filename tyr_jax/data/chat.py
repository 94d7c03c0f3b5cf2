"""Conversations as a model's own chat template writes them.

A chat template is a program of a stranger's. jinja's sandbox keeps it from files and from the network, but
not from running for ever, nor from doubling a text until memory is used up, and what a single call allocates
cannot be stopped from within. So templates run in a process of their own, with so much time and memory and no
more.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, cast

from tyr_jax.errors import UserError

SECONDS = 10
MEMORY = 2**30
MOST = 2**20
"""Characters that a template may write beside eight times those of the conversation."""

PROGRAM = Path(__file__).with_name("renderer.py")


class Templated(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Special tokens by their names in templates."""

    def get_chat_template(self) -> str:
        """The template; raises `ValueError` where there is none, or none that is meant."""


def template_of(tokenizer: Templated) -> str:
    """The chat template of a tokenizer.

    Raises:
        UserError: it has none, or several without a default.
    """
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise UserError("the model has no chat template, or none that is meant; give plain text") from None


def written(
    tokenizer: Templated, conversation: Sequence[Mapping[str, str]], template: str = "", **options: Any
) -> str:
    """A conversation as a tokenizer's chat template writes it, or another `template`, with its `options`.

    Raises:
        UserError: there is no template, or it fails, or takes too long or too much; says which.
    """
    size = sum(len(turn["content"]) for turn in conversation)
    request = {
        "conversation": conversation,
        "template": template or template_of(tokenizer),
        "options": {**tokenizer.special_tokens_map, **options},
        "most": MOST + 8 * size,
    }
    reply: dict[str, str] = json.loads(_renderer.ask(json.dumps(request)))
    if "error" in reply:
        raise UserError(f"the model's chat template fails: {reply['error']}")
    return reply["text"]


class _Renderer:
    """The process, started when it is first needed, and again after it has been stopped."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: str) -> str:
        """The answer to a request, a line each."""
        with self._lock:
            process = self._running()
            to, back = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
            try:
                to.write(request.encode() + b"\n")
                to.flush()
                reply = back.readline()
            except BrokenPipeError:
                reply = b""
            except BaseException:
                # Its answer must not be taken for that to the next request.
                self.stop()
                raise
            if not reply:
                return json.dumps({"error": self._reason(process)})
            return reply.decode()

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        # That of a process which has forked is not its child's.
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(SECONDS), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Of many threads' stacks and buffers, more memory would be set aside than is ever used.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        return self._process

    def _reason(self, process: "subprocess.Popen[bytes]") -> str:
        status = process.wait()
        self.stop()
        if status == -getattr(signal, "SIGALRM", 0):
            return f"it takes more than {SECONDS} s"
        return f"the process that runs it ended with status {status}"


_renderer = _Renderer()
atexit.register(_renderer.stop)
