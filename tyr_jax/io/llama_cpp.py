"""llama.cpp through its C interface: its quantiser, and running models in it."""

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import LlamaFileType

from tyr_jax import process
from tyr_jax.errors import UserError
from tyr_jax.io.gguf_header import open_gguf

TYPES = {
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q3_k_m": LlamaFileType.MOSTLY_Q3_K_M,
}
"""llama.cpp's mixtures of types, by its names for them."""

QUANTISER = Path(__file__).with_name("llama_quantiser.py")

MULTIPLE = 256
"""Block size of these types. Rows whose length is not a multiple of it get a larger type."""


def bindings() -> tuple[Any, Any]:
    """(cffi interface, llama.cpp library), with logging switched off.

    Raises:
        UserError: it is not installed.
    """
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ImportError:
        raise UserError(
            f"{', '.join(TYPES)} of --quantize, and --llama-cpp, need llama.cpp, which is not installed: pip "
            "install 'tyr-jax[llama]'"
        ) from None
    ffi, lib = get_ffi(), get_lib()
    lib.llama_log_set(_silence(ffi), ffi.NULL)
    lib.llama_backend_init()
    return ffi, lib


@functools.cache
def _silence(ffi: Any) -> Any:
    """A callback that drops llama.cpp's log. It is cached, as it must outlive the call that registers it."""

    def stopped(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """Send a signal again that arrived within the callback, where its exception would be lost."""
        if issubclass(kind, KeyboardInterrupt):
            process.again(kind)

    return ffi.callback(
        "void(enum ggml_log_level, char *, void *)", lambda level, text, data: None, onerror=stopped
    )


def quantise_file(source: Path, target: Path, kind: str) -> None:
    """Quantise the GGUF file `source` to `kind`, one of `TYPES`, and write it to `target`.

    This runs in a separate process, because llama.cpp may abort.

    Raises:
        UserError: llama.cpp is not installed, refuses or aborts, or the disk is full.
    """
    bindings()
    result = subprocess.run(
        [sys.executable, "-P", str(QUANTISER), str(source), str(target), str(int(TYPES[kind]))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Without it, an abort starts a debugger, if one is installed, to print a backtrace.
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    if result.returncode:
        target.unlink(missing_ok=True)
        raise UserError(
            f"llama.cpp could not write {target} as {kind}; free space, or choose another --quantize "
            f"({_said(result)})"
        )
    open_gguf(target)


def _said(result: "subprocess.CompletedProcess[bytes]") -> str:
    """The last line of llama.cpp's output that is about a failure, or else its exit status."""
    lines = [line for line in result.stderr.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"fail|error|assert|invalid", line, re.IGNORECASE)]
    ended = f"it ended with status {result.returncode}"
    return telling[-1].strip()[:300] if telling else ended


class Session:
    """A model that runs in llama.cpp, one sequence at a time, with keys and values cached in float32."""

    def __init__(self, ffi: Any, lib: Any, context: Any, vocab: int) -> None:
        self._ffi, self._lib, self._context, self._vocab = ffi, lib, context, vocab

    def clear(self) -> None:
        """Forget all tokens that were run."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def forget(self, start: int) -> None:
        """Forget the tokens from position `start` on."""
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), 0, start, -1)

    def run(self, tokens: np.ndarray, start: int, *, every: bool = False) -> np.ndarray:
        """Run `tokens [T]` at positions from `start` on.

        Returns:
            Logits after the last token, `[1, V]`, or with `every`, after each token, `[T, V]`.

        Raises:
            UserError: llama.cpp fails.
        """
        count = len(tokens)
        batch = self._lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = int(token), start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = every or place == count - 1
        failed = self._lib.llama_decode(self._context, batch)
        self._lib.llama_batch_free(batch)
        if failed:
            raise UserError(f"llama.cpp could not run {count} tokens at position {start} (status {failed})")
        rows = count if every else 1
        buffer = self._ffi.buffer(self._lib.llama_get_logits(self._context), rows * self._vocab * 4)
        return np.frombuffer(buffer, np.float32).reshape(rows, self._vocab).copy()


@contextlib.contextmanager
def session(path: Path, slots: int, threads: int | None = None) -> Iterator[Session]:
    """Load the model of a GGUF file into llama.cpp.

    Args:
        path: the file.
        slots: number of tokens that it can hold.
        threads: number of threads (default: the number of processors).

    Raises:
        UserError: llama.cpp is not installed, does not load the file, or has no room for that many tokens.
    """
    ffi, lib = bindings()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    if model == ffi.NULL:
        raise UserError(f"llama.cpp cannot load {path}: leave out --llama-cpp")
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = slots
    parameters.n_threads = parameters.n_threads_batch = threads or os.cpu_count() or 1
    parameters.type_k = parameters.type_v = 0
    parameters.flash_attn_type = 0
    context = lib.llama_init_from_model(model, parameters)
    if context == ffi.NULL:
        lib.llama_model_free(model)
        raise UserError(
            f"llama.cpp has no room to run {slots} tokens of {path}; free memory or ask for fewer"
        )
    try:
        yield Session(ffi, lib, context, lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
    finally:
        lib.llama_free(context)
        lib.llama_model_free(model)
