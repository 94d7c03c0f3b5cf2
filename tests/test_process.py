"""How commands end: their message and status, whatever stops them and wherever they write."""

import gc
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from tyr_jax import process
from tyr_jax.errors import UserError

COMMANDS = ("prune", "evaluate", "finetune", "export", "generate", "benchmark", "report")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[1])}

STOPS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up"),
]


def start(code: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a Python that runs some code."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT} | options
    return subprocess.Popen([sys.executable, "-c", code], text=True, **given)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [None, "7"])
def test_factorisations_leave_a_core_free_unless_asked(asked: str | None) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "OPENBLAS_NUM_THREADS"}
    if asked:
        environment["OPENBLAS_NUM_THREADS"] = asked
    # JAX loads OpenBLAS with SciPy, when it first factorises: the variable is set by then.
    code = (
        "import jax, tyr_jax, os, sys;"
        "print('scipy.linalg' in sys.modules, os.environ['OPENBLAS_NUM_THREADS'])"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert found.split() == ["False", asked or str(max(1, cores - 1))]


def test_a_command_that_succeeds_just_returns(capsys: pytest.CaptureFixture[str]) -> None:
    process.run(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


def test_what_is_no_mistake_of_the_users_is_not_hidden() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        process.run(fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such thing"), "error: no such thing"),
        (UserError("no\nsuch \x1b[31mthing\x07"), re.escape(r"error: no\nsuch \x1b[31mthing\x07")),
        (UserError("no \udc80 such"), re.escape(r"error: no \udc80 such")),
        (PermissionError(13, "Permission denied", "x"), "error: cannot use 'x': Permission denied; .*"),
        (OSError(28, "No space left on device"), "error: cannot read or write: No space left on device; .*"),
        (MemoryError(), "error: out of memory .*--plan.*"),
        (RuntimeError("RESOURCE_EXHAUSTED: 12 GB"), "error: out of memory .RESOURCE_EXHAUSTED: 12 GB.*"),
    ],
)
def test_what_a_user_can_mend(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        process.run(fail)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.fullmatch(said, err.strip())


# Signals

LOOP = """
import sys, time
from tyr_jax import process
def command():
    {before}
    print("begun", flush=True)
    try:
        while True:
            {step}
    finally:
        time.sleep({cleaning})
        print("cleaned up", flush=True)
process.run(command)
"""

SWALLOWED = {
    "nothing": ("pass", "time.sleep(0.01)"),
    "ctypes": (
        "import ctypes; f = ctypes.CFUNCTYPE(None)(lambda: time.sleep(0.2))",
        "f(); time.sleep(0.1)",
    ),
    "destructor": ("D = type('D', (), {'__del__': lambda self: time.sleep(0.2)})", "D(); time.sleep(0.1)"),
    "collection": (
        "import gc; gc.callbacks.append(lambda *_: time.sleep(0.2))",
        "gc.collect(); time.sleep(0.1)",
    ),
    "weakref": (
        "import weakref; C = type('C', (), {})",
        "c = C(); r = weakref.ref(c, lambda _: time.sleep(0.2)); del c; time.sleep(0.1)",
    ),
}
"""Places where a signal's exception may be raised and get lost: (code before, code that is repeated)."""


@pytest.mark.parametrize("where", SWALLOWED)
@pytest.mark.parametrize(("number", "status", "said"), STOPS)
def test_signals_end_a_command_wherever_it_is(where: str, number: int, status: int, said: str) -> None:
    before, step = SWALLOWED[where]
    # The tests themselves may ignore these signals, in the background or under `nohup`.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    code += LOOP.format(before=before, step=step, cleaning=0)
    with start(code) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        time.sleep(0.05)
        running.send_signal(number)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (status, "cleaned up\n")
    assert err == f"{said}: nothing was written\n"


def test_a_second_signal_does_not_disturb_the_cleaning() -> None:
    code = LOOP.format(before="pass", step="time.sleep(0.01)", cleaning=0.5)
    with start(code) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(0.05)
        for _ in range(3):
            running.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (143, "cleaned up\n", "terminated: nothing was written\n")


def test_a_signal_after_the_writing_says_that_it_is_done(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from tyr_jax import process
from tyr_jax.workspace.output import new_directory, staged_file

def work():
    with new_directory(Path({str(tmp_path / "model")!r}), False) as staging:
        (staging / "x").write_text("x")
    with staged_file(Path({str(tmp_path / "file")!r}), False, lambda path: True) as staging:
        staging.write_text("x")
    print("begun", flush=True)
    time.sleep(20)

process.run(work)
"""
    with start(code) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=20)
    wanted = f"terminated: {tmp_path / 'model'}, {tmp_path / 'file'} is complete\n"
    assert (running.returncode, err) == (143, wanted)
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


def test_what_a_command_is_told_to_ignore_it_ignores() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    code += LOOP.format(before="n = 0", step="n += 1; time.sleep(0.01); n < 50 or sys.exit(7)", cleaning=0)
    with start(code) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGHUP)
        running.communicate(timeout=20)
    assert running.returncode == 7


def test_a_hook_outlives_its_command() -> None:
    """Another thread may be about to call it when the command ends."""
    hooks = []
    process.run(lambda: hooks.append(weakref.ref(sys.unraisablehook)))
    gc.collect()
    assert hooks[0]() is not None


def test_handlers_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before, hook = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    process.run(lambda: None)
    assert [signal.getsignal(number) for number in numbers] == before
    assert sys.unraisablehook is hook


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_end_a_command_that_still_starts(command: str, tmp_path: Path) -> None:
    """Imports take seconds, in which a user may change their mind."""
    running = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", f"tyr_jax.{command}", "x", "y"],
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=tmp_path,
        text=True,
    )
    with running:
        assert running.stderr is not None
        lines = iter(running.stderr.readline, "")
        assert any("numpy" in line for line in lines)
        running.send_signal(signal.SIGTERM)
        said = [line for line in lines if not line.startswith("import time:")]
    assert (running.returncode, said) == (143, ["terminated: nothing was written\n"])
    assert os.listdir(tmp_path) == []


# Streams

PRINT = """
from tyr_jax import process
process.run(lambda: print({text}))
"""


@pytest.mark.parametrize("size", [1, 100_000])
def test_output_that_cannot_be_written_is_an_error(size: int) -> None:
    code = PRINT.format(text=f"'x' * {size}")
    with Path("/dev/full").open("w") as full, start(code, stdout=full) as running:
        _, err = running.communicate(timeout=20)
    assert running.returncode == 2
    said = "error: cannot write to standard output: {}; the result is below\n" + "x" * size + "\n"
    assert err == said.format("No space left on device")
    with start(code, stdout=None, preexec_fn=lambda: os.close(1)) as running:
        _, err = running.communicate(timeout=20)
    assert running.returncode == 2
    assert err == said.format("Bad file descriptor")


@pytest.mark.parametrize("platform", ["nowhere", "cuda"])
def test_a_platform_that_is_not_there(platform: str) -> None:
    code = "from tyr_jax import process\ndef use():\n    import jax\n    jax.devices()\nprocess.run(use)"
    with start(code, env=ENVIRONMENT | {"JAX_PLATFORMS": platform}) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    said = f"error: JAX_PLATFORMS={platform} does not fit this installation of JAX.*: name another, .*\n"
    assert re.fullmatch(said, err)


def test_too_few_addresses() -> None:
    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    with start(PRINT.format(text="1"), preexec_fn=narrow) as running:
        _, err = running.communicate(timeout=20)
    assert running.returncode == 2
    assert "may reserve only 2.15 GB of addresses (ulimit -v)" in err


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_reader_that_has_had_enough(size: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(PRINT.format(text=f"'x' * {size}"), stdout=writing) as running:
        os.close(writing)
        _, err = running.communicate(timeout=20)
    assert (running.returncode, err) == (141, "")


@pytest.mark.parametrize("closed", [True, False])
def test_errors_need_no_standard_error(closed: bool) -> None:
    code = """
from tyr_jax import process
from tyr_jax.errors import UserError
def fail():
    raise UserError("no")
process.run(fail)
"""
    with Path("/dev/full").open("w") as full:
        options: dict[str, Any] = (
            {"preexec_fn": lambda: os.close(2), "stderr": None} if closed else {"stderr": full}
        )
        with start(code, **options) as running:
            running.communicate(timeout=20)
    assert running.returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks(encoding: str) -> None:
    code = PRINT.format(text=r"'× … \udc80 日本'")
    running = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert running.returncode == 0
    assert running.stdout.decode(encoding).startswith("× … ? 日本"[:1] if encoding != "ascii" else "? ? ? ??")


# As a user starts them


@pytest.mark.slow
def test_modules_in_the_current_directory_are_not_run(tmp_path: Path) -> None:
    names = {"gguf", "json", "jax", "tokenizers", "signal", "tyro", "rich", "typing"}
    for name in names:
        (tmp_path / f"{name}.py").write_text("open('run', 'w').close()")
    running = subprocess.run(
        [sys.executable, "-m", "tyr_jax.export", "gone/nowhere/at-all"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert running.returncode == 2
    assert running.stderr.splitlines()[-1] == "error: no such file or directory: 'gone/nowhere/at-all'"
    assert {path.stem for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_arguments_from_python(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(
        f"tyr_jax.{command}" if command != "report" else "tyr_jax.report.__main__"
    )
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert not stopped.value.code
    assert "--help" in capsys.readouterr().out
