"""Conversations as a model's own chat template writes them.

A chat template is a stranger's program. jinja's sandbox keeps it away from files and from the network, but
does not stop it from running for ever, or from doubling a text until memory is used up. Nor can the
allocation of a single call be stopped from within. So templates run in a process of their own, with limits on
time and memory.
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
"""Seconds, and bytes beyond what the process starts with, that rendering may take."""

MOST = 2**20
"""Characters that a template may write, beyond eight times those of the conversation."""

PROGRAM = Path(__file__).with_name("renderer.py")


class Templated(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """Special tokens by their names in templates."""

    def get_chat_template(self) -> str:
        """The template. Raises `ValueError` if there is none, or several without a default."""


def template_of(tokenizer: Templated) -> str:
    """The chat template of a tokenizer.

    Raises:
        UserError: it has none, or several without a default.
    """
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            "the model has no chat template, or several without a default; give plain text"
        ) from None


def written(
    tokenizer: Templated, conversation: Sequence[Mapping[str, str]], template: str = "", **options: Any
) -> str:
    """Render a conversation with a tokenizer's chat template, or another `template`, and its `options`.

    Raises:
        UserError: there is no template, it fails, takes too long, needs too much memory or writes too much.
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
    """The process that renders. It is started when first needed, and again after it was stopped."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: str) -> str:
        """The reply to a request. Each is one line."""
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
                # Its reply must not be taken for the reply to the next request.
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
        # After a fork, the child must not use its parent's process.
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(SECONDS), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The stacks and buffers of many threads would reserve more memory than is ever used.
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
