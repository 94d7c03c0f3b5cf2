"""llama.cpp's quantiser in a separate process: what it refuses, when it aborts, and how it is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from io_samples import finish
from transformers import PreTrainedTokenizerFast

from tyr_jax import process
from tyr_jax.errors import UserError
from tyr_jax.io import deci, llama_cpp
from tyr_jax.model.tensors import random_params

pytest.importorskip("llama_cpp_py_sync")


@pytest.fixture
def file(tmp_path: Path, tiny_config: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    config = tiny_config(vocab=300)
    deci.write_gguf(
        tmp_path / "x.gguf", config, random_params(config, jax.random.key(0)), tiny_tokenizer, "f32"
    )
    return tmp_path / "x.gguf"


def test_what_is_written_can_be_read(file: Path) -> None:
    target = file.with_name("y.gguf")
    llama_cpp.quantise_file(file, target, "q6_k")
    names = {tensor.name for tensor in gguf.GGUFReader(target).tensors}
    assert names == {tensor.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_what_llama_cpp_refuses(share: float, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    target = file.with_name("y.gguf")
    with pytest.raises(
        UserError, match=r"could not write .*y\.gguf as q4_k_m; free space, .* \(.+\)"
    ) as error:
        llama_cpp.quantise_file(file, target, "q4_k_m")
    assert "\n" not in str(error.value)
    assert not target.exists()
    assert not capfd.readouterr().err


def test_where_llama_cpp_aborts(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "aborts.py"
    said = "print('a\\nx.cpp:3: GGML_ASSERT(n > 0) failed\\n', file=sys.stderr, flush=True)"
    program.write_text(f"import os, sys\n{said}\nos.abort()")
    monkeypatch.setattr(llama_cpp, "QUANTISER", program)
    with pytest.raises(UserError, match=r"as q4_k_m; .*\(x\.cpp:3: GGML_ASSERT\(n > 0\) failed\)"):
        llama_cpp.quantise_file(file, file.with_name("y.gguf"), "q4_k_m")
    program.write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"\(it ended with status -9\)"):
        llama_cpp.quantise_file(file, file.with_name("y.gguf"), "q4_k_m")


CODE = """
import signal, sys
from pathlib import Path
from tyr_jax import process
from tyr_jax.io import llama_cpp
llama_cpp.QUANTISER = Path(sys.argv[1])
# A shell that runs tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
process.run(lambda: llama_cpp.quantise_file(Path("x"), Path("y"), "q4_k_m"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_stopped_with_the_command(number: int, tmp_path: Path) -> None:
    program, there = tmp_path / "waits.py", tmp_path / "pid"
    program.write_text(
        f"import os, pathlib, time\npathlib.Path({str(there)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", CODE, str(program)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as job:
        while not (there.exists() and there.read_text()):
            time.sleep(0.05)
        job.send_signal(number)
        _, error = job.communicate(timeout=20)
    assert job.returncode == 128 + number
    assert len(error.splitlines()) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(there.read_text()), 0)


def test_a_signal_within_the_log_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[type[BaseException]] = []
    monkeypatch.setattr(process, "again", sent.append)

    class Interface:
        def callback(self, kind: str, function: Any, onerror: Any) -> Any:
            return onerror

    stopped = llama_cpp._silence(Interface())
    for error in (KeyboardInterrupt, process.Terminated, ValueError):
        stopped(error, error(), None)
    assert sent == [KeyboardInterrupt, process.Terminated]


def test_values_that_are_damaged(tmp_path: Path) -> None:
    """Files that are not a model at all."""
    for name in ("llama", "deci", "nothing"):
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, name)
        writer.add_tensor("token_embd.weight", np.zeros((4, 256), np.float32))
        finish(writer)
        with pytest.raises(UserError, match="could not write"):
            llama_cpp.quantise_file(path, tmp_path / "y.gguf", "q4_k_m")
